"""Where the histograms of durations divide."""

from itertools import pairwise

from shmrpc.interceptors.buckets import SECONDS


def test_buckets_go_from_ten_microseconds_to_ten_seconds_and_at_most_two_and_a_half_times_at_once() -> None:
    assert (SECONDS[0], SECONDS[-1]) == (1e-5, 10.0)
    assert all(1.9 < after / before < 2.6 for before, after in pairwise(SECONDS))
