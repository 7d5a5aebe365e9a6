"""What becomes of a message that is to be sent out of band: placed, or short of something."""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from shmrpc.errors import ResourceExhausted
from shmrpc.shm.arena import Block, Region, size_text
from shmrpc.shm.borrowing import Returned
from shmrpc.shm.ring import View


class Placed(NamedTuple):
    """A payload that is ready to be sent, and what it lends."""

    payload: bytes
    flags: int
    leases: Sequence[int]
    keep: Sequence[View]
    """Views of the peer's memory that goes back by reference: they live until the record is published."""


placed_as: Final[Callable[..., Placed]] = tuple.__new__  # half the price of the class's own constructor


class Shortage(NamedTuple):
    """Why a payload cannot be sent yet. Neither: too many leases are out."""

    nbytes: int = 0
    """No block of this size is free."""
    region: Region | None = None
    """An array lies in an extent that the peer does not have yet."""
    held: Sequence["Place | Returned"] = ()
    """Where the pieces before it were placed; to be given up."""


class Place(NamedTuple):
    """Where one piece lies in this side's arena."""

    block: Block
    offset: int
    fresh: bool
    """Whether the block was taken for it, and it must be copied there."""


def check_size(
    nbytes: int,
    in_blocks: int,
    buffers: int,
    payload_in_block: bool,
    max_message: int,
    most_bytes: int,
    most_leases: int,
) -> None:
    """Refuses a message that can never be sent.

    Args:
        nbytes: Its size.
        in_blocks: What its blocks take, bytes.
        buffers: How many it has.
        payload_in_block: Whether its payload, with the table of its buffers, takes a block as they do.
        max_message: The largest message, bytes.
        most_bytes: All memory of the connection that there can be.
        most_leases: How many leases can be out.

    Raises:
        ResourceExhausted: one of the limits is below.
    """
    if nbytes > max_message:
        raise ResourceExhausted(f"message is {size_text(nbytes)}, the limit is {size_text(max_message)} (max_message)")
    if in_blocks > most_bytes:
        raise ResourceExhausted(
            f"message is {size_text(nbytes)}, the memory of this connection may have {size_text(most_bytes)} "
            "(max_extent_bytes, the smaller one of both sides)"
        )
    if buffers + payload_in_block > most_leases:
        also = ", and its payload takes the place of one more" if payload_in_block else ""
        raise ResourceExhausted(f"message has {buffers} buffers{also}, the limit is {most_leases} (release_entries)")
