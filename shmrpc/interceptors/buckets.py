"""Where the histograms of the shipped interceptors divide durations."""

from typing import Final

SECONDS: Final = (
    *(1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4),
    *(1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
"""Upper bounds from 10 us to 10 s, three for each power of ten: a call over shared memory takes some microseconds, and the
usual boundaries begin at 5 ms."""
