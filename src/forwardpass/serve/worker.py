"""The process that holds one variant and runs its batches: `python -m forwardpass.serve.worker`.

It is started fresh, inherits its end of the channel and the arena, and ends when the front closes the channel; where
it cannot, because it hangs, it is killed when the front has ended. Signals from a terminal are the front's business.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from forwardpass.bundle import Bundle, BundledVariant, open_bundle
from forwardpass.core.protocols import Runtime
from forwardpass.errors import BundleDamaged, ForwardpassError, InvalidModel, TensorMismatch
from forwardpass.predict import open_variant
from forwardpass.runtimes import RuntimeOptions
from forwardpass.serve.channel import (
    MAX_MESSAGE_BYTES,
    OUT_OF_MEMORY,
    Arena,
    Done,
    Failed,
    Message,
    Ready,
    Run,
    WorkerConfig,
    decode,
    encode,
)
from forwardpass.serve.endings import RSS_UNIT_BYTES
from forwardpass.serve.prctl import end_with_parent, forbid_dumps
from forwardpass.serve.weights import shared_copy

__all__ = ["Loaded", "load", "main"]

NUM_WARM_UPS = 3
BUSY_WAIT_S = 300e-6


def main(arguments: list[str]) -> None:
    """Load, report, and run batches until the front hangs up."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    forbid_dumps()
    end_with_parent()
    config = msgspec.json.decode(arguments[0], type=WorkerConfig)
    channel = socket.socket(fileno=config.channel)
    try:
        loaded = load(config)
    except ForwardpassError as error:
        channel.send(encode(Failed(error.slug, str(error))))
        return
    except MemoryError:
        channel.send(encode(Failed(OUT_OF_MEMORY, "there is not enough memory to load it.")))
        return
    with contextlib.suppress(ConnectionError):  # the front has hung up
        name, version = loaded.runtime.name, loaded.runtime.version
        channel.send(encode(Ready(name, version, loaded.wide is not None, loaded.why_not_wide)))
        _serve(channel, Arena(config.arena), loaded)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """The variant with the threads of a worker, and perhaps once more with those of all cores."""

    runtime: Runtime
    wide: Runtime | None = None
    why_not_wide: str = ""


def load(config: WorkerConfig) -> Loaded:
    """Open the variant and check it, and once more with the threads of all cores if that is asked for.

    Raises:
        BundleDamaged: the bundle is not the one that the front has opened.
        GoldenMismatch: it answers differently on this machine.
    """
    bundle = open_bundle(config.bundle)
    if bundle.digest != config.digest:
        raise BundleDamaged(path=config.bundle, reason="it was replaced while it was served; load the model again")
    variant = bundle.variant(config.variant)
    shared = shared_copy(bundle.locate(variant.path), Path(config.weights)) if config.weights else None
    runtime = _open(bundle, variant, shared, num_threads=config.num_threads)
    _warm_up(runtime, bundle, variant)
    if not config.wide_threads:
        return Loaded(runtime=runtime)
    if config.weights and shared is None:  # a large model may have been let in because its weights would be there once
        return Loaded(runtime=runtime, why_not_wide="there is no room for a file of weights that all sessions share")
    try:
        wide = _open(bundle, variant, shared, num_threads=config.wide_threads)
        if config.is_wide_exact and not _answer_alike(runtime, wide, bundle, variant):
            return Loaded(runtime=runtime, why_not_wide="its answers there differ in their last bits")
        _warm_up(wide, bundle, variant)
    except (ForwardpassError, MemoryError) as error:  # a worker can do without
        return Loaded(runtime=runtime, why_not_wide=str(error).rstrip(".") or "there is not enough memory")
    return Loaded(runtime=runtime, wide=wide)


def _answer_alike(one: Runtime, other: Runtime, bundle: Bundle, variant: BundledVariant) -> bool:
    """Tell whether two runtimes give the same bytes for the golden calls, on this processor."""
    return all(
        answer.tobytes() == others[name].tobytes() if answer.dtype != object else np.array_equal(answer, others[name])
        for call in bundle.golden_calls(variant)
        for others in [other.run(call.inputs)]
        for name, answer in one.run(call.inputs).items()
    )


def _open(bundle: Bundle, variant: BundledVariant, shared: Path | None, *, num_threads: int) -> Runtime:
    """Load the variant from what all workers share, or from the bundle where that is not there or cannot be read."""
    options = RuntimeOptions(num_threads=num_threads)
    if shared is not None:
        with contextlib.suppress(InvalidModel):  # somebody clears the folder for temporary files
            return open_variant(bundle, variant.name, options=options, file=shared)
    return open_variant(bundle, variant.name, options=options)


def _warm_up(runtime: Runtime, bundle: Bundle, variant: BundledVariant) -> None:
    """Run the golden calls again, so that the first request does not pay for memory and caches."""
    for call in bundle.golden_calls(variant) * NUM_WARM_UPS:
        runtime.run(call.inputs)


def _serve(channel: socket.socket, arena: Arena, loaded: Loaded) -> None:
    while True:
        packet = _receive(channel)
        if not packet:
            return
        message = decode(packet)
        assert isinstance(message, Run), "the front sends nothing else"
        runtime = loaded.wide if message.is_wide else loaded.runtime
        assert runtime is not None, "the front knows what is there"
        channel.send(encode(_run(message, arena, runtime)))


def _receive(channel: socket.socket) -> bytes:
    """Wait for a message: a moment busily, then asleep.

    Being woken costs more than a small model runs. For a lone client of a tiny model a moment of looking raised the
    rate by a third; others get the core whenever they ask for it, and an idle worker sleeps.
    """
    due_s = time.perf_counter() + BUSY_WAIT_S
    while time.perf_counter() < due_s:
        try:
            return channel.recv(MAX_MESSAGE_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            os.sched_yield()
    return channel.recv(MAX_MESSAGE_BYTES)


def _run(message: Run, arena: Arena, runtime: Runtime) -> Message:
    try:
        arena.follow(message.arena_bytes)
        started = time.perf_counter()
        outputs = runtime.run({placed.name: arena.view(placed) for placed in message.inputs})
        compute_s = time.perf_counter() - started
        placed = arena.place([(name, [array]) for name, array in outputs.items()])
    except (MemoryError, OSError) as error:  # the arena grows by mapping more of a file in memory
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT_BYTES
        return Failed(OUT_OF_MEMORY, f"{type(error).__name__}, and it has held up to {peak_bytes / 1e6:.0f} MB")
    except TensorMismatch as error:  # the sentence holds no value of the client's
        return Failed("input-rejected", str(error).rstrip("."))
    except Exception as error:  # the runtimes' own classes share no base but this one; the process goes on
        return Failed("input-rejected", type(error).__name__)
    return Done(arena.num_bytes, placed, compute_s, time.monotonic())


if __name__ == "__main__":
    main(sys.argv[1:])
