"""What is left behind: each kind of thing is found, and what is in order is not."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from faulty_api import Shop, ShopService

import shmrpc
from shmrpc.testing import all_released, no_leaks, pair
from shmrpc.testing.holdings import Held

# no_leaks


def test_an_fd_that_is_left_is_found() -> None:
    with pytest.raises(AssertionError, match=r"left behind: fd \d+ -> /dev/null"):
        with no_leaks():
            fd = os.open(os.devnull, os.O_RDONLY)
    os.close(fd)


def test_an_fd_that_is_another_now_is_found() -> None:
    fd = os.open(os.devnull, os.O_RDONLY)
    with pytest.raises(AssertionError, match=f"left behind: fd {fd} -> /proc/"):
        with no_leaks():
            os.close(fd)
            assert os.open("/proc/self/status", os.O_RDONLY) == fd
    os.close(fd)


def test_a_thread_that_is_left_is_found() -> None:
    go_on = threading.Event()
    thread = threading.Thread(target=go_on.wait, name="forgotten", daemon=True)
    with pytest.raises(AssertionError, match="left behind: thread forgotten"):
        with no_leaks():
            thread.start()
    go_on.set()
    thread.join()


def test_a_child_process_that_is_left_is_found() -> None:
    with pytest.raises(AssertionError, match=r"left behind: child process \d+"):
        with no_leaks():
            child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.DEVNULL)
    child.wait()


async def test_an_array_that_is_kept_is_found_by_its_mapping() -> None:
    with pytest.raises(AssertionError, match=r"1 shared mapping \(a connection that was not closed, or an"):
        with no_leaks():
            async with pair(Shop, ShopService()) as shop:
                kept = await shop.copy(np.ones(100_000, np.uint8))
    assert kept.all()


async def test_a_pair_that_was_left_is_found_to_be_in_order() -> None:
    with no_leaks():
        async with pair(Shop, ShopService()) as shop:
            assert await shop.add_in_thread(1) == 2  # the thread is its loop's
            assert (await shop.copy(np.ones(5 << 20, np.uint8))).all()


def test_where_there_is_no_proc_only_threads_are_known(
    monkeypatch: pytest.MonkeyPatch, folder: os.PathLike[str]
) -> None:
    monkeypatch.setattr("shmrpc.testing.holdings.SELF", folder / "missing")  # type: ignore[operator]
    held = Held.now()
    assert threading.current_thread() in held.threads
    assert not held.fds


# all_released


async def test_released_is_what_nobody_sees_any_more() -> None:
    both = pair(Shop, ShopService())
    async with both as shop:
        image = await shop.copy(np.ones(100_000, np.uint8))
        await all_released(shop)
        with pytest.raises(
            AssertionError, match=r"not released within 0 s: pid \d+ .* holds \d+ bytes in 1 blocks of Shop\.copy"
        ):
            await all_released(both.server, timeout=0)
        del image
        await all_released(both.server)


async def test_what_a_worker_keeps_is_not_released() -> None:
    for opened in (pair(Shop, ShopService()), shmrpc.local(Shop, ShopService())):
        async with opened as shop:
            await shop.keep(np.ones(100_000, np.uint8))
            with pytest.raises(AssertionError, match=r"in 1 blocks of Shop\.keep"):
                await all_released(shop, timeout=0.05)


async def test_an_array_of_this_process_is_named_as_its_own() -> None:
    async with pair(Shop, ShopService()) as shop:
        image = shmrpc.empty(100_000, np.uint8, to=shop)
        with pytest.raises(AssertionError, match=r"this process holds .* of its own making"):
            await all_released(shop, timeout=0)
        del image
        await all_released(shop)
