"""How does forwardpass serve beside the servers that people use today: in a closed loop, at the target, beyond it?

Two models, the same ONNX files for everybody: a tiny one, for which the server is the cost, and a transformer encoder
of six layers, for which the model is. Each server runs in processes of its own, from an environment of its own with
pinned versions, alone on the machine while it is measured; the load comes from a small C program. Every rival is first
tried with each of its placements (workers, threads, with and without a window for batches) and then measured with the
fastest. Servers take turns round by round, forwardpass first. A server has one run in which nothing may be refused
(closed loop, idle) and one in which it is told the target (everything else): whoever has such a setting gets it.

Tables go to stderr, one JSON line per question to stdout.

    python benchmarks/bench_serving_peers.py [--quick] [--only fastapi-def,mosec] [--model mlp] [--rounds 3]

The environments take 2.4 GB in the cache folder (--cache), and the first run some minutes to install them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime as ort

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1]))

from benchmarks.peers.environments import PINS, RUNTIME, EnvironmentFailed, make_environment  # noqa: E402
from benchmarks.peers.limits import Setting, best_setting, measure_limit  # noqa: E402
from benchmarks.peers.load import Array, Load, build_generator  # noqa: E402
from benchmarks.peers.questions import (  # noqa: E402
    Observation,
    Plan,
    ask_closed_loop,
    ask_goodput,
    ask_idle,
    ask_in_time,
    ask_overload,
    find_capacity,
)
from benchmarks.peers.report import documents, table  # noqa: E402
from benchmarks.peers.rivals import RIVALS, Place, Rival, Served  # noqa: E402
from benchmarks.peers.serving import RunningServer, ServerFailed, ask, free_port, serving  # noqa: E402
from benchmarks.peers.workloads import WORKLOADS, Workload, write_bundle, write_model  # noqa: E402
from forwardpass.core.version import VERSION  # noqa: E402
from forwardpass.profile import describe_machine  # noqa: E402

OURS = "forwardpass"
TUNING_CONNECTIONS = 32
LIMIT_S = 1.0
HIDDEN_SIZE = 384
"""Of the encoder: about 94 rows/s on two cores."""


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S "), text, file=sys.stderr, flush=True)


@dataclass(slots=True, kw_only=True)
class Bench:
    """Everything that the rounds of one model need, and what they have found so far."""

    workload: Workload
    plan: Plan
    cache: Path
    folder: Path
    model: Path
    bundle: Path
    right: Array
    generator: Path
    places: dict[str, Place] = field(default_factory=dict)
    tuning: dict[str, dict[str, float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    observations: list[Observation] = field(default_factory=list)
    chosen: list[str] = field(default_factory=list)
    """What forwardpass has decided from the bundle, one a round."""
    capacities: list[float] = field(default_factory=list)
    """Of forwardpass, one a round: what the goodput of the others is offered in."""
    limit: float = 0.0
    """Rows per second that the model allows in process at its best setting, in the first round."""

    def start(self, rival: Rival, place: Place, *, sheds: bool) -> AbstractContextManager[RunningServer]:
        """Start a server."""
        python = str(make_environment(rival.environment, self.cache)) if rival.environment else sys.executable
        port = free_port()
        folder = Path(tempfile.mkdtemp(prefix=f"{rival.name}-", dir=self.folder))
        served = Served(
            workload=self.workload,
            model=self.model,
            bundle=self.bundle,
            port=port,
            place=place,
            sheds=sheds,
            folder=folder,
        )
        command = rival.command(python, served)
        return serving(rival, command, port=port, workload=self.workload, right=self.right, log=folder / "log")

    def load(self, server: RunningServer, request: bytes) -> Load:
        """Return the load for a server."""
        return Load(program=self.generator, port=server.port, request=request)

    def note(self, server: str, question: str, case: str, value: float | None) -> None:
        """Take an observation."""
        self.observations.append(Observation(question=question, server=server, case=case, value=value))


def tune(bench: Bench, rival: Rival) -> None:
    """Find the fastest of a rival's placements, where there is a choice; what was found before here is used again."""
    places = rival.places(bench.workload)
    known = bench.cache / f"places-{bench.workload.name}-{rival.name}-{HIDDEN_SIZE}-{bench.plan.tune_s:g}s.json"
    pins = [*PINS.get(rival.environment or "", ()), RUNTIME, msgspec.to_builtins(describe_machine())["cpu"]]
    if known.exists() and (kept := json.loads(known.read_text()))["pins"] == pins:
        rates = kept["rates"]
    else:
        rates = _rates(bench, rival, places) if len(places) > 1 else {}
        known.write_text(json.dumps({"pins": pins, "rates": rates}))
    bench.tuning[rival.name] = {place: round(rate, 1) for place, rate in rates.items()}
    bench.places[rival.name] = max(places, key=lambda place: rates.get(str(place), 0.0))


def _rates(bench: Bench, rival: Rival, places: Sequence[Place]) -> dict[str, float]:
    """Return the rate of every placement in which the rival starts.

    Raises:
        ServerFailed: it starts in none.
    """
    rates: dict[str, float] = {}
    for place in places:
        try:
            rates[str(place)] = _rate(bench, rival, place)
        except ServerFailed as failure:
            say(f"{rival.name}, {place} failed: {failure}")
            if place is places[-1] and not rates:
                raise
    return rates


def _rate(bench: Bench, rival: Rival, place: Place) -> float:
    plan = bench.plan
    with bench.start(rival, place, sheds=False) as server:
        load = bench.load(server, rival.protocols[0].request(bench.workload, None))
        outcome = load.closed(TUNING_CONNECTIONS, plan.tune_s, warm_up_s=plan.warm_up_s)
        rate = float(outcome.is_ok.sum()) / plan.tune_s
    say(f"{bench.workload.name}, {rival.name}, {place}: {rate:,.0f}/s")
    return rate


def measure(bench: Bench, rival: Rival, seed: int) -> None:
    """Ask one server everything, once."""
    note = partial(bench.note, rival.name)
    place = bench.places[rival.name]
    with bench.start(rival, place, sheds=False) as server:
        if rival.name == OURS:
            bench.chosen.append(chosen_sizing(server, bench.workload))
        ask_idle(server, bench.plan, note)
        best_rate, best = 0.0, rival.protocols[0]
        for protocol in rival.protocols:
            rate = ask_closed_loop(
                bench.load(server, protocol.request(bench.workload, None)), bench.plan, protocol.name, note
            )
            if rate > best_rate:
                best_rate, best = rate, protocol
        note("idle", "memory after load, MB", server.memory_bytes() / 1e6)
        if not rival.can_shed:
            ask_open_loop(bench, rival, server, best.request(bench.workload, None), best_rate, seed)
    if rival.can_shed:
        with bench.start(rival, place, sheds=True) as server:
            ask_open_loop(bench, rival, server, best.request(bench.workload, None), best_rate, seed)


def chosen_sizing(server: RunningServer, workload: Workload) -> str:
    """Return the workers, threads and batch that forwardpass has chosen by itself."""
    request = f"GET /v2/models/{workload.name}/config HTTP/1.1\r\nhost: localhost\r\n\r\n"
    config = json.loads(ask(server.port, request.encode())[2])
    threads = config["parameters"]["threads"]["string_value"]
    return f"{config['instance_group'][0]['count']} x {threads} threads, up to {config['max_batch_size']} rows"


def ask_open_loop(bench: Bench, rival: Rival, server: RunningServer, request: bytes, rate: float, seed: int) -> None:
    """Ask what a server does at the target and beyond it."""
    note = partial(bench.note, rival.name)
    load, workload, plan = bench.load(server, request), bench.workload, bench.plan
    capacity = find_capacity(load, workload, plan, guess=rate, seed=seed)
    note("capacity within the target, requests/s", f"{workload.slo_s * 1e3:g} ms", capacity)
    say(f"{workload.name}, {rival.name}: best closed loop {rate:,.0f}/s, capacity {capacity:,.0f}/s")
    if rival.name == OURS:
        bench.capacities.append(capacity)
    ask_in_time(load, workload, plan, limit=bench.limit, seed=seed, note=note)
    reference = float(np.median(bench.capacities)) if bench.capacities else 0.0
    if reference > 0:
        ask_goodput(load, workload, plan, capacity=reference, seed=seed, note=note)
    if capacity > 0:
        ask_overload(load, workload, plan, capacity=capacity, seed=seed, note=note)


def attempt(bench: Bench, rival: Rival, work: Callable[[], None]) -> None:
    """Do a part of the work for a rival; one that cannot is left out from then on, and the report says why."""
    try:
        work()
    except (ServerFailed, EnvironmentFailed, subprocess.SubprocessError) as failure:
        bench.failures[rival.name] = str(failure)
        say(f"{rival.name} failed: {failure}")


def compare(workload: Workload, rivals: Sequence[Rival], plan: Plan, cache: Path, folder: Path) -> Bench:
    """Run all rounds for one model."""
    model = write_model(workload, folder / f"{workload.name}.onnx", hidden_size=HIDDEN_SIZE)
    row = folder / f"{workload.name}.npy"
    np.save(row, workload.row())
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    bench = Bench(
        workload=workload,
        plan=plan,
        cache=cache,
        folder=folder,
        model=model,
        bundle=write_bundle(workload, model, folder / workload.name),
        right=session.run(None, {workload.input_name: workload.row()[None]})[0][0],
        generator=build_generator(cache),
    )
    setting, searched = best_setting(model, row, workload.profile_batches, len(os.sched_getaffinity(0)))
    bench.tuning["in process"] = searched
    for rival in rivals:
        attempt(bench, rival, partial(tune, bench, rival))
    with suppress(KeyboardInterrupt):  # then what there is by now is reported
        for number in range(plan.num_rounds):
            note_limits(bench, row, setting)
            run_round(bench, rivals, number)
    return bench


def run_round(bench: Bench, rivals: Sequence[Rival], number: int) -> None:
    """Measure every server once: forwardpass first, as the others are offered its capacity, then in turn."""
    others = [rival for rival in rivals if rival.name != OURS]
    turn = number % max(len(others), 1)
    for rival in (RIVALS[OURS], *others[turn:], *others[:turn]):
        if rival.name not in bench.failures:
            attempt(bench, rival, partial(measure, bench, rival, number))


def note_limits(bench: Bench, row: Path, best: Setting) -> None:
    """Note what the model itself allows in this round: at its best setting, and one row at a time."""
    alone = Setting(batch=1, threads=best.threads, callers=1)
    for name, setting in (("best", best), ("one row at a time", alone)):
        rate = measure_limit(bench.model, row, setting, LIMIT_S)
        words = f"{name}: batch {setting.batch}, {setting.callers} x {setting.threads} threads"
        bench.note("in process", "in process, rows/s", words, rate)
        bench.limit = bench.limit or rate


def context(bench: Bench, rivals: Sequence[Rival]) -> Mapping[str, object]:
    """Return what every document says of how it was measured."""
    machine = msgspec.to_builtins(describe_machine())
    return {
        "model": bench.workload.name,
        "slo_ms": 1e3 * bench.workload.slo_s,
        "max_batch": bench.workload.max_batch,
        "plan": asdict(bench.plan),
        "machine": machine,
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg(),
        "versions": {"forwardpass": VERSION, "onnxruntime": ort.__version__}
        | {name: list(pins) for name, pins in PINS.items() if any(rival.environment == name for rival in rivals)},
        "servers": {
            rival.name: {
                "settings": rival.settings,
                "documented": rival.documented,
                "protocols": [protocol.name for protocol in rival.protocols],
                "place": _place(bench, rival),
            }
            for rival in rivals
        },
        "tuning": bench.tuning,
        "failures": bench.failures,
    }


def _place(bench: Bench, rival: Rival) -> str | list[str] | None:
    if not rival.is_placed:
        return bench.chosen
    return str(bench.places[rival.name]) if rival.name in bench.places else None


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round: provisional numbers")
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--only", default=None, metavar="NAMES", help=f"some of {','.join(RIVALS)}; forwardpass always")
    parser.add_argument("--model", choices=sorted(WORKLOADS), default=None)
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "forwardpass-peers",
        help="where the environments are made",
    )
    options = parser.parse_args()
    unknown = sorted(set((options.only or OURS).split(",")) - set(RIVALS))
    if unknown:
        parser.error(f"there is no server {', '.join(unknown)}; there are {', '.join(RIVALS)}")
    return options


def main() -> None:
    """Compare and print."""
    options = parse_arguments()
    plan = Plan.quick() if options.quick else Plan()
    plan = replace(plan, num_rounds=options.rounds or plan.num_rounds)
    names = {OURS, *(options.only.split(",") if options.only else RIVALS)}
    rivals = [rival for name, rival in RIVALS.items() if name in names]
    for name in [options.model] if options.model else WORKLOADS:
        with tempfile.TemporaryDirectory(prefix="peers-") as folder:
            bench = compare(WORKLOADS[name], rivals, plan, options.cache, Path(folder))
        print(f"\n=== {name} ===\n{table(bench.observations)}\n", file=sys.stderr)
        for rival, reason in bench.failures.items():
            print(f"{rival} failed: {reason}", file=sys.stderr)
        for document in documents(bench.observations, context(bench, rivals)):
            print(json.dumps(document), flush=True)


if __name__ == "__main__":
    main()
