"""Makes this process die at a numbered point: wraps one function of shmrpc, which itself knows nothing of crashes."""

import functools
import importlib
import inspect
import os
import signal
from typing import Any, Final, Literal, NoReturn

from shmrpc import _native
from shmrpc.shm import frames

Way = Literal["exit", "kill"]
NATIVE: Final = "native:"
STATUS: Final = 86
"""Of a process that died as it should."""
TORN_BYTES: Final = 5
"""What of a frame has left when its sender dies within it: its magic number, and a byte of its length."""


def die(way: Way) -> NoReturn:
    """Ends this process at once, without any cleaning up."""
    if way == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
        while True:
            signal.pause()
    os._exit(STATUS)


def arm(where: str, when: str, passage: int, way: Way) -> None:
    """From now on this process dies at a passage of a function.

    Args:
        where: Like ``shm.session:Session.start``, under ``shmrpc``; or ``native:`` and a step of ``_native/steps.h``, in
            an extension that has them.
        when: ``before`` or ``after`` it ran, or ``within``: for ``frames.send_some``, when part of the frame has left.
        passage: Which of its calls it is; the first is 1.
        way: How to die.
    """
    if where.startswith(NATIVE):
        plan_steps = vars(_native)["plan_steps"]  # in no normal build
        plan_steps(f"{where.removeprefix(NATIVE)}:{passage}:{way}")
        return
    module, _, path = where.partition(":")
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(f"shmrpc.{module}")
    for each in owners:
        owner = getattr(owner, each)
    function = inspect.getattr_static(owner, name)
    is_static = isinstance(function, staticmethod)
    wrapped = _wrapper(function.__func__ if is_static else function, when, passage, way)
    setattr(owner, name, staticmethod(wrapped) if is_static else wrapped)


def _wrapper(function: Any, when: str, passage: int, way: Way) -> Any:
    passed = 0

    def is_now() -> bool:
        nonlocal passed
        passed += 1
        return passed == passage

    @functools.wraps(function)
    async def wrapped_coroutine(*args: Any, **kwargs: Any) -> Any:
        now = is_now()
        if now and when == "before":
            die(way)
        result = await function(*args, **kwargs)
        if now and when == "after":
            die(way)
        return result

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        now = is_now()
        if now and when == "before":
            die(way)
        if now and when == "within":
            _send_torn(*args)
            die(way)
        result = function(*args, **kwargs)
        if now and when == "after":
            die(way)
        return result

    return wrapped_coroutine if inspect.iscoroutinefunction(function) else wrapped


_send_some: Final = frames.send_some


def _send_torn(sock: Any, rest: memoryview, fds: list[int]) -> None:
    _send_some(sock, rest[:TORN_BYTES], fds)
