"""Arrays for the conformance suite to pass, and how they must arrive."""

from typing import Any, Final

import numpy as np
import pytest
from conformance_arrays import AnyArray

SIZES: Final = (10, 7_999, 8_001, 100_000, 3_000_000)
"""Elements: some travel inside of a message, some beside it, some in memory that has to be made for them."""


def numbers(count: int, dtype: Any = np.uint8) -> AnyArray:
    return (np.arange(count) % 251).astype(dtype)


def assert_same(arrived: Any, sent: AnyArray, what: object) -> None:
    """It is an ordinary array, equal in everything, and cannot be written."""
    assert type(arrived) is np.ndarray, what
    assert (arrived.dtype, arrived.shape) == (sent.dtype, sent.shape), what
    if sent.dtype.names is None:
        assert arrived.tobytes() == sent.tobytes(), what
    else:  # what lies between the fields of records may differ
        assert np.array_equal(arrived, sent), what
    assert not arrived.flags.writeable, what
    with pytest.raises(ValueError, match=r"read-only|WRITEABLE"):
        arrived.flags.writeable = True
