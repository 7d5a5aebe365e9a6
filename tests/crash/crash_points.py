"""The numbered crash points: where a server or a client dies, in every step of a connection's life.

A point is a passage of one function of shmrpc, and whether it had run. A point that is never reached fails its test, so the
table stays true.
"""

from collections.abc import Iterator
from typing import Final, Literal, NamedTuple

from crash_death import NATIVE, Way

Role = Literal["server", "client"]


class Point(NamedTuple):
    """Where a process dies."""

    number: int
    role: Role
    """Who dies."""
    step: str
    scenario: str
    """What the client does meanwhile: see `crash_work`."""
    where: str
    when: str
    passage: int

    def __str__(self) -> str:
        """A test's id."""
        name = self.where.partition(":")[2]
        return f"{self.number}-{self.step}-{self.when} {name}" + (f"*{self.passage}" if self.passage > 1 else "")


_Row = tuple[str, str, str, str]
"""Step, scenario, function, moments. A moment is before, after or within, with the passage behind it if not the first."""

_HANDSHAKE: Final = (
    ("shm.segment:create", "before after"),
    ("shm.doorbell:Doorbell.__init__", "after"),
    ("shm.handshake:Half.__init__", "after"),
    ("shm.frames:send", "before after"),
    ("shm.frames:send_some", "within"),
    ("shm.handshake:Half.join", "before after"),
    ("shm.doorbell:open_ringer", "after"),
    ("shm.segment:attach", "after"),
    ("shm.handshake:Half.sent", "after"),
    ("shm.session:Session.start", "before after"),
)

_SERVER: Final[tuple[_Row, ...]] = (
    ("handshake", "calls", "shm.listener:Listener._accept", "before after"),
    ("handshake", "calls", "shm.listener:Listener._greet", "before after"),
    ("handshake", "calls", "shm.handshake:receive_hello", "before after"),
    ("handshake", "calls", "shm.listener:Listener._begin", "before after"),
    *(("handshake", "calls", *row) for row in _HANDSHAKE),
    ("take", "calls", "shm.session:Session.on_records", "before after before*9 after*9"),
    ("take", "calls", "shm.incoming:IncomingCalls.on_request", "before after before*7 after*7"),
    ("take", "calls", "shm.borrowing:Borrowed.open_block", "before after"),
    ("take", "calls", "shm.borrowing:Borrowed.open_buffers", "before after before*4"),
    ("effect", "calls", "shm.eager:Starter.start", "before after*5"),
    ("effect", "calls", "shm.incoming:IncomingCalls._encode", "before after"),
    ("reply", "calls", "shm.incoming:IncomingCalls._reply", "before after"),
    ("reply", "calls", "shm.incoming:IncomingCalls._end", "before after before*7 after*7"),
    ("reply", "calls", "shm.incoming:IncomingCalls._fail", "before after"),
    ("reply", "calls", "shm.channel:Channel.settle", "before after"),
    ("reply", "calls", "shm.doorbell:_Ringer.ring", "before after before*5"),
    ("lease", "calls", "shm.lending:Lender.try_place", "before after"),
    ("lease", "calls", "shm.arena:Arena.take", "after"),
    ("lease", "calls", "shm.lending:Lender.allocate", "before after"),
    ("lease", "calls", "shm.lending:Lender._try_place_one", "after"),
    ("release", "calls", "shm.channel:Channel.release", "before after"),
    ("release", "calls", "shm.channel:Channel.collect", "before after before*6"),
    ("release", "calls", "shm.arena:Arena.take_home", "before after"),
    ("extent", "calls", "shm.borrowing:Borrowed.on_attach", "before after"),
    ("extent", "calls", "shm.segment:attach_extent", "after"),
    ("extent", "calls", "shm.extents:Extents.grow", "before after"),
    ("extent", "calls", "shm.segment:create_extent", "after"),
    ("extent", "calls", "shm.segment:Extent.commit", "before after"),
    ("extent", "calls", "shm.control:Control.send", "before after"),
    ("extent", "idle", "shm.extents:Extents._detach", "before after"),
    ("extent", "idle", "shm.control:Control.send_soon", "before after"),
    ("extent", "idle", "shm.borrowing:Borrowed.on_detach", "before after"),
    ("stream", "calls", "shm.flows:IncomingFlows.begin", "before after"),
    ("stream", "calls", "shm.flows:IncomingFlows.on_arguments", "before after before*3"),
    ("stream", "calls", "shm.flows:IncomingFlows.on_end_of_arguments", "before after"),
    ("stream", "calls", "shm.flows:IncomingFlows.on_credit", "before after"),
    ("stream", "calls", "shm.flows:RecordSink.send", "before after before*4"),
    ("stream", "calls", "shm.flows:RecordSink.send_apart", "before after after*3"),
    ("stream", "calls", "shm.flows:Flows.send_credit", "before after"),
    ("stream", "calls", "shm.flows:IncomingFlows.end", "before after"),
    ("backward", "calls", "shm.outgoing:OutgoingCalls.start", "before after"),
    ("backward", "calls", "shm.outgoing:OutgoingCalls.try_lend", "before after"),
    ("backward", "calls", "shm.outgoing:OutgoingCalls.on_reply", "before after"),
    ("backward", "calls", "shm.flows:OutgoingFlows.on_results", "before after"),
    ("room", "burst", "shm.channel:Channel.settle", "after"),
    ("room", "burst", "shm.channel:Channel.flush", "before after before*2"),
    ("room", "burst", "shm.channel:Channel._empty_outbox", "before after"),
    ("memory", "scarce", "shm.lending:Lender._relief", "before"),
    ("memory", "scarce", "shm.lending:Lender._wait_home", "before after"),
    ("memory", "scarce", "shm.lending:Lender.look_again", "before after"),
    ("memory", "scarce", "shm.incoming:IncomingCalls._place_later", "before after"),
    ("drain", "drain", "server:Server.drain", "before"),
    ("drain", "drain", "shm.listener:Listener.drain", "before after"),
    ("drain", "drain", "shm.listener:Listener.stop_accepting", "before after"),
    ("drain", "drain", "shm.address:unlink_own", "after"),
    ("drain", "drain", "shm.session:Session.go_away", "before after"),
    ("drain", "drain", "shm.listener:Listener._wait_idle", "before after"),
    ("drain", "drain", "shm.listener:Listener.close", "before after"),
    ("end", "drain", "shm.memory:Memory.close", "before after"),
    ("end", "drain", "shm.control:Control.close", "before after"),
    ("end", "drain", "shm.channel:Channel.close", "before after"),
    ("end", "leave", "shm.session:Session.lose", "before after"),
    ("end", "leave", "shm.incoming:IncomingCalls.orphan", "before after"),
    ("reconnect", "cut", "shm.control:Control.hang_up", "before after"),
    ("reconnect", "cut", "shm.session:Session.lose", "before after"),
    ("reconnect", "cut", "shm.listener:Listener._accept", "before*2 after*2"),
    ("reconnect", "cut", "shm.handshake:receive_hello", "after*2"),
    ("reconnect", "cut", "shm.handshake:Half.join", "before*2 after*2"),
    ("reconnect", "cut", "shm.frames:send", "before*2 after*2"),
    ("reconnect", "cut", "shm.session:Session.start", "before*2 after*2"),
)

_CLIENT: Final[tuple[_Row, ...]] = (
    ("handshake", "calls", "shm.address:connect", "before after"),
    ("handshake", "calls", "shm.handshake:as_client", "before after"),
    *(("handshake", "calls", *row) for row in _HANDSHAKE),
    ("handshake", "calls", "shm.link:Link._establish", "after"),
    ("handshake", "deaf", "shm.address:connect", "after"),
    ("handshake", "deaf", "shm.handshake:Half.__init__", "after"),
    ("handshake", "deaf", "shm.frames:send_some", "within after"),
    ("call", "calls", "shm.outgoing:OutgoingCalls.start", "before after before*6 after*6"),
    ("call", "calls", "shm.outgoing:OutgoingCalls.try_begin", "before after"),
    ("call", "calls", "shm.outgoing:OutgoingCalls._start_placed", "before after"),
    ("call", "calls", "shm.outgoing:OutgoingCalls.try_lend", "before after"),
    ("call", "calls", "shm.outgoing:OutgoingCalls.begin", "before after"),
    ("call", "calls", "shm.channel:Channel.settle", "before after"),
    ("call", "calls", "shm.doorbell:_Ringer.ring", "before after before*5"),
    ("answer", "calls", "shm.session:Session.on_records", "before after before*7 after*7"),
    ("answer", "calls", "shm.outgoing:OutgoingCalls.on_reply", "before after"),
    ("answer", "calls", "shm.outgoing:OutgoingCalls.on_failure", "before after"),
    ("lease", "calls", "shm.lending:Lender.try_place", "before after"),
    ("lease", "calls", "shm.lending:Lender.allocate", "before after"),
    ("lease", "calls", "shm.lending:Lender.place", "before after"),
    ("release", "calls", "shm.borrowing:Borrowed.open_buffers", "before after after*3"),
    ("release", "calls", "shm.borrowing:Borrowed.open_block", "before after"),
    ("release", "calls", "shm.channel:Channel.release", "before after"),
    ("release", "calls", "shm.channel:Channel.collect", "before after before*4"),
    ("release", "calls", "shm.arena:Arena.take_home", "before after"),
    ("extent", "calls", "shm.borrowing:Borrowed.on_attach", "before after"),
    ("extent", "calls", "shm.extents:Extents.grow", "before after"),
    ("extent", "calls", "shm.segment:create_extent", "after"),
    ("extent", "calls", "shm.segment:Extent.commit", "before after"),
    ("extent", "calls", "shm.control:Control.send", "before after"),
    ("extent", "idle", "shm.frames:send_some", "within*2"),
    ("extent", "idle", "shm.extents:Extents._detach", "before after"),
    ("extent", "idle", "shm.control:Control.send_soon", "before after"),
    ("extent", "idle", "shm.borrowing:Borrowed.on_detach", "before after"),
    ("stream", "calls", "shm.flows:OutgoingFlows.begin", "before after"),
    ("stream", "calls", "shm.flows:OutgoingFlows.on_results", "before after before*4"),
    ("stream", "calls", "shm.flows:OutgoingFlows.on_credit", "before after"),
    ("stream", "calls", "shm.flows:RecordSink.send", "before after before*4"),
    ("stream", "calls", "shm.flows:RecordSink.send_apart", "before after after*3"),
    ("stream", "calls", "shm.flows:Flows.send_credit", "before after"),
    ("stream", "calls", "shm.flows:OutgoingFlow.on_end", "before after"),
    ("backward", "calls", "shm.incoming:IncomingCalls.on_request", "before after"),
    ("backward", "calls", "shm.incoming:IncomingCalls._encode", "before after"),
    ("backward", "calls", "shm.incoming:IncomingCalls._end", "before after"),
    ("backward", "calls", "shm.lending:Lender._try_place_one", "after"),
    ("room", "burst", "shm.channel:Channel.flush", "before after before*2"),
    ("room", "burst", "shm.channel:Channel._empty_outbox", "before after before*2"),
    ("memory", "scarce", "shm.lending:Lender._relief", "before"),
    ("memory", "scarce", "shm.lending:Lender._wait_home", "before after"),
    ("memory", "scarce", "shm.lending:Lender.look_again", "before after"),
    ("drain", "drain", "shm.session:Session._on_goaway", "before after"),
    ("drain", "drain", "shm.link:Link._on_drain", "before after"),
    ("drain", "drain", "shm.outgoing:OutgoingCalls.refuse_after", "before after"),
    ("drain", "drain", "shm.session:Session._end_if_drained", "before after"),
    ("reconnect", "cut", "shm.session:Session.lose", "before after"),
    ("reconnect", "cut", "shm.outgoing:OutgoingCalls.lose", "before after"),
    ("reconnect", "cut", "shm.link:Link._on_end", "before after"),
    ("reconnect", "cut", "shm.link:Link._reconnect", "before after"),
    ("reconnect", "cut", "shm.address:connect", "before*2 after*2"),
    ("reconnect", "cut", "shm.frames:send", "before*2 after*2"),
    ("reconnect", "cut", "shm.frames:send_some", "within*2"),
    ("reconnect", "cut", "shm.handshake:Half.join", "before*2 after*2"),
    ("reconnect", "cut", "shm.session:Session.start", "before*2 after*2"),
    ("end", "leave", "shm.link:Link.close", "before after"),
    ("end", "leave", "shm.session:Session.close", "before after"),
    ("end", "leave", "shm.memory:Memory.close", "before after"),
    ("end", "leave", "shm.control:Control.close", "before after"),
    ("end", "leave", "shm.channel:Channel.close", "before after"),
)


_NATIVE: Final = (
    ("publish", "calls", "1 12 40", ("publish_begun", "publish_header_written", "publish_record_written")),
    ("publish", "calls", "1 12 40", ("publish_tail_stored",)),
    ("publish", "burst", "1", ("publish_pad_written", "refresh_head_loaded")),
    ("ring", "calls", "1 30", ("ringer_fenced", "ringer_epoch_loaded")),
    ("ring", "calls", "1 10", ("ringer_ring_due",)),
    ("sleep", "idle", "1 2", ("arm_begun", "arm_epoch_stored", "arm_fenced", "consumer_looked")),
    ("sleep", "idle", "1 2", ("disarm_begun", "disarm_epoch_stored")),
    ("take", "calls", "1 12", ("take_tail_loaded",)),
    ("take", "calls", "1 25", ("take_word_loaded", "take_header_loaded", "payload_copied", "record_handled")),
    ("take", "burst", "1", ("take_pad_passed",)),
    ("commit", "calls", "1 3 9", ("commit_begun", "commit_head_stored")),
    (
        "release",
        "calls",
        "1 5",
        ("release_begun", "release_head_loaded", "release_entry_written", "release_tail_stored"),
    ),
    ("release", "calls", "1 4", ("view_died",)),
    ("reap", "calls", "1 9", ("reap_tail_loaded",)),
    ("reap", "calls", "1 3", ("reap_entry_loaded", "reap_head_stored")),
    ("reap", "calls", "1 3", ("take_back_found", "take_back_struck", "take_back_ended")),
    ("lease", "calls", "1 5", ("lend_numbered", "lend_put_down", "lend_counted", "references_packed")),
    ("lease", "calls", "1", ("refer_written",)),
    ("borrow", "calls", "1 6", ("references_counted", "references_copied", "references_opened", "references_owed")),
    ("call", "calls", "1 4", ("call_pending", "call_published")),
    ("call", "calls", "1", ("call_lent",)),
    ("room", "burst", "1", ("room_wanted", "room_found")),
)
"""In the native core: step, scenario, passages, and the names of `_native/steps.h`; of either side."""


def _points(role: Role, rows: tuple[_Row, ...], first: int) -> Iterator[Point]:
    number = first
    for step, scenario, where, moments in rows:
        for moment in moments.split():
            when, _, passage = moment.partition("*")
            yield Point(number, role, step, scenario, where, when, int(passage or 1))
            number += 1


def _native_points(role: Role, first: int) -> Iterator[Point]:
    number = first
    for step, scenario, passages, names in _NATIVE:
        for name in names:
            for passage in passages.split():
                yield Point(number, role, step, scenario, NATIVE + name, "at", int(passage))
                number += 1


SERVER: Final = tuple(_points("server", _SERVER, 1))
SERVER_NATIVE: Final = tuple(_native_points("server", 301))
CLIENT: Final = tuple(_points("client", _CLIENT, 501))
CLIENT_NATIVE: Final = tuple(_native_points("client", 801))
WAYS: Final[tuple[Way, ...]] = ("exit", "kill")
SPREAD: Final = 5


def cases(points: tuple[Point, ...], *, long: bool) -> list[tuple[Point, Way]]:
    """Every point both ways; or of each few points one, in turn the one way and the other."""
    if long:
        return [(point, way) for point in points for way in WAYS]
    spread = [point for index, point in enumerate(points) if index % SPREAD == 0 or point.scenario == "deaf"]
    return [(point, WAYS[index % 2]) for index, point in enumerate(spread)]
