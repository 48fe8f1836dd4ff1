"""The generator's process: takes orders over a socket, runs them, and answers with what happened.

`python -m forwardpass.loadtest.child SOCKET PARENT`: the file descriptor of the socket and the parent's process id.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import signal
import socket
import ssl
import sys
import time
from array import array
from collections.abc import Coroutine
from typing import Any

from forwardpass.loadtest.messages import (
    Closed,
    Failed,
    Message,
    Open,
    Prepare,
    Prepared,
    Ran,
    read_message,
    write_message,
)
from forwardpass.loadtest.sending import Log, Pool, run_closed, run_open

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1
_LEAD_S = 0.05
"""Between the order and the first request."""


def main() -> None:
    """Work until the parent hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it, too, and ends this process
    number, parent = map(int, sys.argv[1:])
    _die_with(parent)
    gc.disable()  # a collection in the middle of a run would look like a slow server
    prepared, tls = None, None
    channel = socket.socket(fileno=number).makefile("rwb")
    while (order := read_message(channel)) is not None:
        answer: Message
        try:
            if isinstance(order, Prepare):
                prepared, tls = order, _tls(order)
                answer = Prepared()
            elif isinstance(order, Open | Closed) and prepared is not None:
                answer = _run(_execute(prepared, tls, order))
            else:
                answer = Failed(reason=f"there is no way to do {type(order).__name__} now")
        except OSError as error:
            answer = Failed(reason=error.strerror or str(error))
        write_message(channel, answer)
        gc.collect()


async def _execute(prepared: Prepare, tls: ssl.SSLContext | None, order: Open | Closed) -> Ran:
    cpu_s, begun_s = time.process_time(), time.monotonic()
    is_open = isinstance(order, Open)
    start_s = begun_s + (_LEAD_S if is_open else 0.0)
    log = Log(array("d", order.times if isinstance(order, Open) else bytes(8 * order.max_requests)))
    num_requests = len(log.scheduled_s)
    max_connections = prepared.max_connections if isinstance(order, Open) else order.num_connections
    pool = Pool(prepared, log, tls, start_s=start_s, max_connections=max_connections)
    try:
        if isinstance(order, Closed):
            num_requests = await run_closed(pool, log, order, start_s=start_s)
        elif num_requests:
            await run_open(pool, log, start_s=start_s)
    finally:
        await pool.close()
    return Ran(
        scheduled_s=log.scheduled_s[:num_requests].tobytes(),
        released_s=log.released_s[:num_requests].tobytes(),
        sent_s=log.sent_s[:num_requests].tobytes(),
        done_s=log.done_s[:num_requests].tobytes(),
        fates=bytes(log.fates[:num_requests]),
        statuses=log.statuses[:num_requests].tobytes(),
        wall_s=time.monotonic() - begun_s,
        cpu_s=time.process_time() - cpu_s,
        num_connections=pool.num_connections,
        most_connections=pool.most_connections,
    )


def _run(work: Coroutine[Any, Any, Ran]) -> Ran:
    try:
        import uvloop
    except ImportError:  # there is none for some systems
        return asyncio.run(work)
    return uvloop.run(work)


def _die_with(parent: int) -> None:
    """A parent that was killed says nothing; a load that nobody waits for has to stop, too."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:  # Linux
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was killed before that
            sys.exit(1)


def _tls(prepared: Prepare) -> ssl.SSLContext | None:
    if prepared.server_name is None:
        return None
    context = ssl.create_default_context()
    if prepared.certificates is not None:
        context.load_verify_locations(prepared.certificates)
    return context


if __name__ == "__main__":
    main()
