"""The knobs: their defaults are the documented ones, and a value that cannot work is refused by name."""

import os
from typing import Any

import pytest

from shmrpc.shm.layout import Geometry
from shmrpc.shm.liveness import UNMAPPED
from shmrpc.shm.settings import MAX_IN_FLIGHT, Settings

ME = os.getuid()
STRANGER = 54321


def test_the_defaults_are_the_documented_limits() -> None:
    settings = Settings()
    assert settings.max_in_flight == 1024
    assert settings.max_message == 1 << 30
    assert settings.geometry.inline_limit == 8 * 1024
    assert settings.max_connections == 1024
    assert settings.max_connections_per_uid == 64
    assert settings.drain_budget == 64
    assert settings.handshake_timeout == 5.0
    assert settings.max_extent_bytes == 1 << 30
    assert (settings.stream_items, settings.stream_bytes) == settings.stream_window == (256, 4 << 20)
    assert settings.extent_idle == 10.0
    assert settings.lease_warning == 60.0
    assert settings.polling == "adaptive"


WRONG: list[tuple[str, Any, str]] = [
    ("max_message", 0, "max_message must be positive, not 0"),
    ("max_message", 1000, "max_message is 1000, it must be at least [0-9]+"),
    ("max_in_flight", 0, "max_in_flight must be positive, not 0"),
    ("max_in_flight", MAX_IN_FLIGHT + 1, "max_in_flight is 1048577, the limit is 1048576"),
    ("stream_items", 0, "stream_items must be positive, not 0"),
    ("stream_bytes", -1, "stream_bytes must be positive, not -1"),
    ("drain_budget", -1, "drain_budget must be positive, not -1"),
    ("max_connections", 0, "max_connections must be positive, not 0"),
    ("handshake_timeout", 0.0, "handshake_timeout must be positive, not 0.0"),
    ("handshake_timeout", float("nan"), "handshake_timeout must be positive, not nan"),
    ("max_extent_bytes", -1, "max_extent_bytes must not be negative, not -1"),
    ("extent_idle", 0, "extent_idle must be positive and finite, not 0"),
    ("extent_idle", float("inf"), "extent_idle must be positive and finite, not inf"),
    ("lease_warning", -2.5, "lease_warning must be positive and finite, not -2.5"),
    ("lease_warning", float("nan"), "lease_warning must be positive and finite, not nan"),
    ("polling", "sometimes", "polling is 'adaptive', 'never' or seconds from 0 to 1, not 'sometimes'"),
    ("polling", -0.5, "polling is .* not -0.5"),
    ("polling", 2, "polling is .* not 2"),
    ("polling", True, "polling is .* not True"),
    ("doorbell", "bell", "doorbell is one of auto, eventfd, pipe, not 'bell'"),
    ("segment", "sysv", "segment is one of auto, memfd, posix, not 'sysv'"),
    ("geometry", Geometry(ring_bytes=5000), "ring_bytes is 5000, it must be a power of two"),
]


@pytest.mark.parametrize(("name", "value", "text"), WRONG)
def test_a_value_that_cannot_work_is_refused_by_name(name: str, value: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Settings(**{name: value})


def test_extents_can_be_forbidden() -> None:
    assert Settings(max_extent_bytes=0).max_extent_bytes == 0


def test_settings_do_not_change() -> None:
    settings = Settings()
    with pytest.raises(AttributeError):
        settings.max_message = 5  # type: ignore[misc]


# Who may be talked to


def test_ones_own_user_and_root_are_welcome() -> None:
    settings = Settings()
    assert settings.why_refused(ME, 0) is None
    assert settings.why_refused(0, 0) is None


def test_a_stranger_is_refused_with_who_is_allowed() -> None:
    allowed = ", ".join(map(str, sorted({0, ME})))
    assert Settings().why_refused(STRANGER, 77) == (
        f"uid {STRANGER} (gid 77) is not allowed; allowed are uids {allowed} (allow_uids, allow_gids)"
    )
    why = Settings(allow_uids=frozenset((5,)), allow_gids=frozenset((7, 6))).why_refused(STRANGER, 77)
    assert why is not None
    assert why.endswith("allowed are uids 5 or gids 6, 7 (allow_uids, allow_gids)")


def test_an_allow_list_replaces_the_default() -> None:
    settings = Settings(allow_uids=frozenset((STRANGER,)))
    assert settings.why_refused(STRANGER, 77) is None
    assert settings.why_refused(ME, 0) is not None
    assert Settings(allow_uids=frozenset()).why_refused(0, 0) is not None


def test_a_group_can_be_allowed() -> None:
    settings = Settings(allow_gids=frozenset((77,)))
    assert settings.why_refused(STRANGER, 77) is None
    assert settings.why_refused(STRANGER, 78) is not None


def test_nobody_knows_who_an_unmapped_user_is(monkeypatch: pytest.MonkeyPatch) -> None:
    why = Settings(allow_gids=frozenset((77, UNMAPPED))).why_refused(UNMAPPED, 77)
    assert why == f"uid {UNMAPPED} is not mapped into this user namespace, so nobody knows who it is"
    assert Settings(allow_gids=frozenset((UNMAPPED,))).why_refused(STRANGER, UNMAPPED) is not None
    monkeypatch.setattr(os, "geteuid", lambda: UNMAPPED)  # nor who else has this one
    assert Settings().why_refused(UNMAPPED, 77) == why
    assert Settings(allow_uids=frozenset((UNMAPPED,))).why_refused(UNMAPPED, UNMAPPED) is None  # said in so many words
