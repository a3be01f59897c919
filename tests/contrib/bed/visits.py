"""What a request to a test site does, and when ``post_process`` runs for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from typing import Any

from resty_upstream import Info, RequestContext
from tests.contrib.bed import journal

MEETING = 4
"""How many requests it takes for one that meets to go on."""

_followed: dict[int, tuple[str, int]] = {}
_tasks: set[asyncio.Task[None]] = set()
_meeting = threading.Barrier(MEETING)
_ameeting = asyncio.Barrier(MEETING)


class Visit:
    """A request to a test site: its context, and what its address asks for (``?name=…&gate=…&hold=…``).

    :param context: finds the context when it is used.
    """

    def __init__(self, context: Callable[[], RequestContext], query: Mapping[str, str]) -> None:
        self._context = context
        self._query = query

    def follow(self) -> RequestContext:
        """Have the journal name this request when its context is post-processed."""
        context = self._context()
        _followed[id(context)] = (self._query["name"], int(self._query.get("hold", "0")))
        return context

    def call(self) -> str:
        """A call of the upstream, where one host fails and another answers; the hosts that it tried."""
        client, info = self.follow().connect()
        client.close()
        return _tried(info)

    async def acall(self) -> str:
        """As :meth:`call`, for a coroutine."""
        (_, writer), info = await self.follow().aconnect()
        writer.close()
        return _tried(info)

    def call_in_thread(self) -> None:
        """As :meth:`call`, in a thread that this request starts and waits for."""
        thread = threading.Thread(target=self.call)
        thread.start()
        thread.join()

    def meet(self) -> str:
        """Two calls; the first is over in all requests that meet when the second begins. The hosts they tried."""
        first = self.call()
        _meeting.wait(journal.GATE_TIMEOUT_S)
        return f"{first}, {self.call()}"

    async def ameet(self) -> str:
        """As :meth:`meet`, for a coroutine."""
        first = await self.acall()
        async with asyncio.timeout(journal.GATE_TIMEOUT_S):
            await _ameeting.wait()
        return f"{first}, {await self.acall()}"

    def pass_gate(self) -> None:
        """Wait until the test opens the gate."""
        journal.pass_gate(int(self._query["gate"]))

    async def apass_gate(self) -> None:
        """As :meth:`pass_gate`, for a coroutine."""
        await journal.apass_gate(int(self._query["gate"]))

    def tell(self, event: str) -> None:
        """Write to the journal what happens to this request."""
        journal.write(event, self._query["name"])

    # ── what takes longer than the client waits ───────────────────────────────────────────────

    def call_and_wait(self) -> None:
        """A call, and then a gate."""
        self.call()
        self.pass_gate()
        self.tell("answers")

    async def acall_and_wait(self) -> None:
        """As :meth:`call_and_wait`, for a coroutine."""
        await self.acall()
        await self.apass_gate()
        self.tell("answers")

    def wait_and_call(self) -> None:
        """A gate, and then a call."""
        self.pass_gate()
        self.call()
        self.tell("goes on")

    async def await_and_call(self) -> None:
        """As :meth:`wait_and_call`, for a coroutine."""
        await self.apass_gate()
        await self.acall()
        self.tell("goes on")

    def leave_thread(self) -> None:
        """:meth:`wait_and_call` in a thread that outlives this request."""
        self.follow()
        threading.Thread(target=self.wait_and_call).start()

    def leave_task(self) -> None:
        """:meth:`wait_and_call` in a task that outlives this request."""
        self.follow()
        task = asyncio.create_task(self.await_and_call())
        _tasks.add(task)
        task.add_done_callback(_tasks.discard)


def _tried(info: Info) -> str:
    return " ".join(attempt.host.id for attempt in info.attempts)


def tell_of_post_process() -> None:
    """Write to the journal when ``post_process`` begins and ends, and hold it up where the request asks for it."""
    original_init, original = RequestContext.__init__, RequestContext.post_process

    def init(self: RequestContext, *args: Any, **options: Any) -> None:
        _followed.pop(id(self), None)  # of an earlier context in the same place
        original_init(self, *args, **options)

    def post_process(self: RequestContext) -> None:
        name, hold = _followed.get(id(self), ("unknown", 0))
        if hold:
            _followed[id(self)] = (name, 0)  # the gate is there once
            journal.pass_gate(hold)
        journal.write("post_process", name)
        original(self)
        journal.write("told", name)

    RequestContext.__init__ = init  # type: ignore[method-assign]  # to watch it
    RequestContext.post_process = post_process  # type: ignore[method-assign]  # to watch it
