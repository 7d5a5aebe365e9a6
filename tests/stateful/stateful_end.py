"""How an example of the stateful test ends: everything comes home, nothing was lost, done twice or left.

Owns the invariants of the end. What leads there is `stateful_scene`'s.
"""

import asyncio
import gc
import os
import time
from typing import Final, Literal

from stateful_api import journalled
from stateful_calls import judge_effect
from stateful_scene import Scene
from stateful_servers import PATIENCE, Place, Server

import shmrpc
from shmrpc.testing.holdings import left_since

Ending = Literal["settle", "cancel", "close", "kill"]
"""What is done first of all at the end of an example."""

ALLOWED_LOG: Final = ("there was no room for its answer", "was refused at", "and is one-way, so that nobody is told")
"""What servers may complain of."""


class Example(Scene):
    """One example, with its end."""

    def finish(self, ending: Ending) -> None:
        """Ends everything, and checks that nothing was lost, done twice, or left."""
        self.check_views()
        if ending == "cancel":
            self.cancel_all()
        elif ending == "close":
            for conn in self.conns:
                if conn.open:
                    self.close(conn)
        elif ending == "kill":
            for place in self.places:
                if place.current is not None:
                    self.kill(place)
        self._bring_home()
        self.views.clear()
        self._check_released()
        for conn in self.conns:
            if conn.open:
                self.close(conn)
        self.check()
        self.let_go()
        self._check_servers()
        for child in self.children:
            child.end()
        self.run(self._rest())
        self.runner.close()
        self.check()
        self._check_journal()
        for place in self.places:
            place.check_log(ALLOWED_LOG)
        self.stack.close()
        left = str(left_since(self.before))
        assert not left, f"left behind: {left}"

    async def _rest(self) -> None:
        """Nothing works any more for what has ended."""
        until = time.monotonic() + PATIENCE
        while rest := asyncio.all_tasks() - {asyncio.current_task()}:
            assert time.monotonic() < until, f"tasks run on: {rest}"
            await asyncio.sleep(0.001)

    def _bring_home(self) -> None:
        """Gives every call what it waits for, until all have ended."""
        for place in self.places:
            for server in place.servers:
                server.resume()
            if place.current is None and self.at(place):
                place.start()
        for call in self.calls:
            call.permit(1000)
            if call.source is not None and not call.source.finished:
                call.source.finish(failing=False)

        def ended() -> bool:
            self.let_go()
            self.judge_all()
            self.views.clear()
            return not self.calls

        self.until(ended, lambda: f"the end of {', '.join(map(str, self.calls))}")

    def _check_released(self) -> None:
        """Nobody holds a lease of an argument, and what was sent one way has arrived."""
        gc.collect()
        for conn in self.conns:
            if conn.open:
                for _ in conn.places:
                    self.call(conn.number, "effect", size=0, items=0, timeout=None, born=False, keep=False)
                self.until(lambda: all(call.ended for call in self.calls), lambda: "a last call")
                self.judge_all()
                self._wait_home(conn.stub)

    def _wait_home(self, stub: object) -> None:
        def is_home() -> bool:
            self.let_go()
            return not shmrpc.leases(stub)

        self.until(is_home, lambda: f"leases to end: {shmrpc.leases(stub)}")

    def _check_servers(self) -> None:
        """They hold nothing of clients that have gone, and end in good order."""
        for place in self.places:
            if place.current is not None:
                self.run(self._check_idle(place))
                self._wait_bare(place.current)
                place.drain()
            for server in place.servers:
                server.end()
            place.draining.clear()
            assert not os.path.exists(place.path), f"a server left {place.path}"

    def _wait_bare(self, server: Server) -> None:
        self.until(lambda: not server.left(), lambda: f"a server to close {dict(server.left())}")

    async def _check_idle(self, place: Place) -> None:
        async with shmrpc.connect(shmrpc.Introspection, place.path, **self.settings) as server:
            until = time.monotonic() + PATIENCE
            while True:
                figures = await server.statistics()
                self.let_go()
                busy = [each for each in figures.methods if each.in_flight > each.name.endswith(".statistics")]
                lent = [each for each in figures.methods if each.lent_bytes]
                if not busy and not lent and figures.connections == 1:
                    return
                assert time.monotonic() < until, (
                    f"the server at {place.path} keeps {busy}, {lent}, {figures.connections}"
                )
                await asyncio.sleep(0.001)

    def _check_journal(self) -> None:
        times = journalled(self.folder)
        for call in self.ended:
            judge_effect(call, times[call.token])
            assert call.source is None or call.source.closed or not call.source.begun, f"the stream of {call} is open"
        assert not any(times[token] for token in self.forked_tokens), "a forked child made a call"
        changed = journalled(self.folder, "x")
        assert not changed, f"arrays {list(changed)} changed while a server kept them"
