"""What do other optimisers choose, how fast is it at the same accuracy, and how long do they search?

Four models: the digits CNN and all-MiniLM-L6-v2 of the examples, a residual CNN and one of depthwise convolutions that
learn the digits here. Everybody gets the same float ONNX file, calibration and validation samples and a floor of one
percent below the source; torch gets the module itself. The test split is for the table alone. Each rival runs in an
environment of its own with pinned versions. What was chosen is then timed at one row a call by one same program, in
processes that are all open at once and take turns; ratios are of rounds in pairs.

Tables go to stderr, one JSON line per model to stdout and, with --out, to a file.

    python benchmarks/bench_optimise_peers.py [--quick] [--only "NNCF, ONNX"] [--models resnet,minilm] [--out FILE]

The environments take about 4 GB in the cache folder (--cache), and the first run some minutes to install them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[1] / "examples")]

from benchmarks.optimise_peers.clocks import APPS, Clock, ClockFailed, Contender, Race, race  # noqa: E402
from benchmarks.optimise_peers.models import MODELS, Prepared, prepare  # noqa: E402
from benchmarks.optimise_peers.rivals import PINS, RIVALS, Rival  # noqa: E402
from benchmarks.peers.environments import RUNTIME, EnvironmentFailed, make_environment  # noqa: E402
from forwardpass import OptimizeSettings, ProfileSettings, QualityFloor, optimize_model  # noqa: E402
from forwardpass.core.metrics import METRICS, Prediction, score  # noqa: E402
from forwardpass.core.tensors import Array  # noqa: E402
from forwardpass.core.version import VERSION  # noqa: E402
from forwardpass.profile import describe_machine  # noqa: E402
from forwardpass.runtimes import runtime_versions  # noqa: E402

OURS = "forwardpass"
FLOAT = "onnxruntime FP32"
"""The source itself: its score sets the floor."""
MAX_DROP = 0.01
MAX_SEARCH_S = 420.0
NUM_CORES = len(os.sched_getaffinity(0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured."""

    num_rounds: int = 15
    round_s: float = 0.15
    limit_s: float = 120.0
    """For a search that takes a limit (Olive's)."""
    profile: ProfileSettings = field(default_factory=ProfileSettings.quick)
    """Of forwardpass's own search: what `forwardpass optimize --quick` does."""


@dataclass(slots=True, kw_only=True, eq=False)
class Entry:
    """What is known of one contender's choice for one model."""

    name: str
    choice: str = ""
    search_s: float | None = None
    """Until everything is done, measurements included where there are any."""
    found_s: float | None = None
    """Until the file that is chosen in the end is there, scored within the floor by those who know it; of ours, also
    seen to be faster than float. None for a search that tells only its end."""
    is_accuracy_aware: bool = False
    contender: Contender | None = None
    test_score: float | None = None
    failure: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True, eq=False)
class Comparison:
    """One model with all choices, and the races between them, by number of threads."""

    prepared: Prepared
    entries: list[Entry]
    floor: float = 0.0
    races: dict[int, Race] = field(default_factory=dict)

    def keeps_floor(self, entry: Entry) -> bool:
        """Tell whether the test score is within the floor."""
        return entry.test_score is not None and entry.test_score >= self.floor


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S "), text, file=sys.stderr, flush=True)


def search_ours(prepared: Prepared, plan: Plan, folder: Path) -> Entry:
    """Let forwardpass choose; nothing of an earlier search is in the folder."""

    def show(text: str, *, done: float) -> None:
        del text, done

    started_s = time.perf_counter()
    result = optimize_model(
        prepared.onnx,
        data=str(prepared.data),
        out=folder / "ours",
        metric=prepared.model.metric,
        settings=OptimizeSettings(
            floor=QualityFloor(max_drop=MAX_DROP, is_relative=True), profile=plan.profile, is_brief=True
        ),
        progress=show,
    )
    chosen = result.find(result.chosen).variant
    how = {"kind": "forwardpass", "file": chosen.location, "form": chosen.format.value}
    return Entry(
        name=OURS,
        choice=chosen.name,
        search_s=time.perf_counter() - started_s,
        found_s=result.found_s,
        is_accuracy_aware=True,
        contender=Contender(name=OURS, python=sys.executable, how=how),
        notes={"reason": result.reason, "steps": [f"{step.what}: {step.outcome}" for step in result.path]},
    )


def search_rival(rival: Rival, prepared: Prepared, plan: Plan, cache: Path, folder: Path) -> list[Entry]:
    """Let a rival choose; one that offers two files (dynamic and static) has two entries."""
    try:
        python = str(make_environment(rival.environment, cache, PINS))
    except EnvironmentFailed as failure:
        return [Entry(name=rival.name, failure=f"not installed: {failure}")]
    if not rival.program:
        how = _as_it_is(rival, prepared)
        return [Entry(name=rival.name, choice="as it is", contender=Contender(name=rival.name, python=python, how=how))]
    own = folder / rival.name.lower().replace(", ", "-").replace(" ", "-")
    own.mkdir()
    answer = _run_program(rival, python, prepared, own, plan.limit_s)
    if "failure" in answer:
        return [Entry(name=rival.name, is_accuracy_aware=rival.is_accuracy_aware, failure=answer["failure"])]
    entries = [_chosen(rival, python, choice, answer) for choice in answer["choices"]]
    return entries or [Entry(name=rival.name, failure="; ".join(answer["notes"].get("failures", {}).values()))]


def _as_it_is(rival: Rival, prepared: Prepared) -> dict[str, Any]:
    if rival.kind == "torch":
        what: dict[str, Any] = {"factory": prepared.model.factory, "weights": prepared.weights}
    else:
        what = {"file": str(prepared.onnx)}
    return {"kind": rival.kind, **what, **rival.settings}


def _chosen(rival: Rival, python: str, choice: Mapping[str, Any], answer: Mapping[str, Any]) -> Entry:
    name = rival.name if len(answer["choices"]) == 1 else f"{rival.name}, {choice['name']}"
    return Entry(
        name=name,
        choice=choice["name"],
        search_s=choice.get("search_s", answer["search_s"]),
        found_s=None if rival.measures else choice.get("search_s", answer["search_s"]),
        is_accuracy_aware=rival.is_accuracy_aware,
        contender=Contender(name=name, python=python, how={"kind": choice["kind"], "file": choice["file"]}),
        notes=answer["notes"],
    )


def _run_program(rival: Rival, python: str, prepared: Prepared, folder: Path, limit_s: float) -> dict[str, Any]:
    names = list(prepared.splits.test.groups[0].inputs)
    task = {
        "onnx": str(prepared.onnx),
        "data": str(prepared.data),
        "metric": prepared.model.metric,
        "max_drop": MAX_DROP,
        "limit_s": limit_s,
        "is_transformer": prepared.model.is_transformer,
        "input_names": names,
        "folder": str(folder),
        "num_threads": NUM_CORES,
    }
    (folder / "task.json").write_text(json.dumps(task))
    program, *arguments = rival.program
    command = [python, str(APPS / program), str(folder / "task.json"), *arguments]
    try:
        with (folder / "log").open("wb") as log:
            done = subprocess.run(
                command, stdout=log, stderr=log, cwd=folder, timeout=MAX_SEARCH_S, check=False, env=_environment()
            )
    except subprocess.TimeoutExpired:
        return {"failure": f"no answer within {MAX_SEARCH_S:g} s"}
    answer = folder / "answer.json"
    if done.returncode or not answer.exists():
        lines = (folder / "log").read_text(errors="replace").strip().splitlines() or ["it said nothing"]
        return {"failure": lines[-1][:300]}
    found: dict[str, Any] = json.loads(answer.read_text())
    return found


def _environment() -> dict[str, str]:
    """Return the environment of the rivals, who report nothing to their makers."""
    return {**os.environ, "OLIVE_DISABLE_TELEMETRY": "1", "NNCF_TELEMETRY": "0", "PYTHONWARNINGS": "ignore"}


def score_entries(comparison: Comparison, folder: Path) -> None:
    """Score every choice on the test split, with forwardpass's own metric, from answers in its own environment."""
    reference: Array | None = None
    for entry in sorted(comparison.entries, key=lambda entry: entry.name != FLOAT):
        if entry.contender is None:
            continue
        try:
            answers = _answers(entry.contender, comparison.prepared, folder)
        except ClockFailed as failure:
            entry.failure, entry.contender = f"cannot be run: {failure}", None
            continue
        reference = answers if reference is None else reference
        entry.test_score = _score(answers, reference, comparison.prepared)
    source = next(entry for entry in comparison.entries if entry.name == FLOAT)
    assert source.test_score is not None, "the float model runs everywhere"
    comparison.floor = source.test_score * (1 - MAX_DROP)


def _answers(contender: Contender, prepared: Prepared, folder: Path) -> Array:
    names = list(prepared.splits.test.groups[0].inputs)
    out = folder / "answers.npy"
    clock = Clock(contender, num_threads=1, samples=prepared.data / "validation", input_names=names)
    try:
        clock.ask(do="answer", data=str(prepared.data / "test"), input_names=names, out=str(out))
    finally:
        clock.close()
    return np.load(out)


def _score(answers: Array, reference: Array, prepared: Prepared) -> float:
    groups = prepared.splits.test.groups
    labels = (
        None
        if groups[0].labels is None
        else np.concatenate([group.labels for group in groups if group.labels is not None])
    )
    prediction = Prediction(outputs={"output": answers}, reference={"output": reference}, labels=labels)
    return score(METRICS[prepared.model.metric], [prediction]).value


def compare(prepared: Prepared, rivals: Sequence[Rival], plan: Plan, cache: Path, folder: Path) -> Comparison:
    """Let everybody choose, score the choices and time them."""
    entries = []
    for rival in rivals:
        entries += search_rival(rival, prepared, plan, cache, folder)
        say(f"{prepared.model.name}: {rival.name}: {_told(entries[-1])}")
    entries.insert(0, search_ours(prepared, plan, folder))
    say(f"{prepared.model.name}: {OURS}: {_told(entries[0])}")
    comparison = Comparison(prepared=prepared, entries=entries)
    score_entries(comparison, folder)
    for num_threads in sorted({1, NUM_CORES}):
        comparison.races[num_threads] = race(
            [entry.contender for entry in entries if entry.contender is not None],
            num_threads=num_threads,
            samples=prepared.data / "validation",
            input_names=list(prepared.splits.test.groups[0].inputs),
            num_rounds=plan.num_rounds,
            round_s=plan.round_s,
        )
    return comparison


def _told(entry: Entry) -> str:
    return entry.failure or f"{entry.choice}" + (f", {entry.search_s:.1f} s" if entry.search_s is not None else "")


def table(comparison: Comparison) -> str:
    """Write the comparison of one model as a table of Markdown."""
    metric = comparison.prepared.model.metric
    counts = sorted(comparison.races)
    titles = [f"ms, {count} thread{'s' if count > 1 else ''} | ours is … times as fast" for count in counts]
    lines = [
        f"| | choice | found | search | {metric} | {' | '.join(titles)} |",
        "|---|---|---|---|---|" + "---|---|" * len(counts),
    ]
    for entry in comparison.entries:
        if entry.contender is None:
            lines.append(f"| {entry.name} | {entry.failure} | | | | " + " | | " * len(counts) + "|")
            continue
        cells = [_timing(comparison.races[count], entry.name) for count in counts]
        found_s = entry.found_s if comparison.keeps_floor(entry) else None
        found, search = ("" if it is None else f"{it:.1f} s" for it in (found_s, entry.search_s))
        test = f"{entry.test_score:.4f}{'' if comparison.keeps_floor(entry) else ' (misses)'}"
        lines.append(f"| {entry.name} | {entry.choice} | {found} | {search} | {test} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _timing(race: Race, name: str) -> str:
    if name not in race.call_s:
        return f"{race.failures.get(name, '')} | "
    ratio, (low, high) = race.ratio(OURS, name), race.spread(OURS, name)
    own = "" if name == OURS else f"{ratio.value:.2f} ({low:.2f} to {high:.2f})"
    return f"{1e3 * race.median_s(name):.3f} | {own}"


def document(comparison: Comparison, plan: Plan) -> dict[str, Any]:
    """Return the comparison of one model with everything that it rests on."""
    return {
        "benchmark": "optimise_peers",
        "model": comparison.prepared.model.name,
        "what": comparison.prepared.model.what,
        "metric": comparison.prepared.model.metric,
        "max_drop": MAX_DROP,
        "floor_on_test": comparison.floor,
        "rounds": plan.num_rounds,
        "machine": describe_machine(),
        "cores": NUM_CORES,
        "load_average": os.getloadavg(),
        "versions": dict(runtime_versions()) | {"forwardpass": VERSION, "rivals": {**PINS, "all": (RUNTIME,)}},
        "documented": {name: rival.documented for name, rival in RIVALS.items()},
        "entries": [_described(entry, comparison) for entry in comparison.entries],
    }


def _described(entry: Entry, comparison: Comparison) -> dict[str, Any]:
    timings = {
        str(count): {
            "call_s": race.median_s(entry.name),
            "ours_is_times_as_fast": race.ratio(OURS, entry.name),
            "tenth_to_nine_tenths": race.spread(OURS, entry.name),
        }
        for count, race in comparison.races.items()
        if entry.name in race.call_s and OURS in race.call_s
    }
    return {
        "name": entry.name,
        "choice": entry.choice,
        "search_s": entry.search_s,
        "found_s": entry.found_s,
        "is_accuracy_aware": entry.is_accuracy_aware,
        "test_score": entry.test_score,
        "keeps_floor": comparison.keeps_floor(entry),
        "threads": timings,
        "failure": entry.failure,
        "notes": entry.notes,
    }


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few short rounds: provisional numbers")
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument(
        "--only", action="append", choices=list(RIVALS), metavar="NAME", help="a rival, again for each; FP32 always"
    )
    parser.add_argument("--models", default=",".join(MODELS), metavar="NAMES", help=f"some of {','.join(MODELS)}")
    parser.add_argument("--out", type=Path, default=None, help="where the JSON lines go, too")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "forwardpass-optimise-peers",
        help="where the environments are made and the models are kept",
    )
    options = parser.parse_args()
    options.models = options.models.split(",")
    unknown = sorted(set(options.models) - set(MODELS))
    if unknown:
        parser.error(f"there is no model {', '.join(unknown)}; there are {', '.join(MODELS)}")
    return options


def main() -> None:
    """Compare and print."""
    options = parse_arguments()
    plan = Plan(num_rounds=7, round_s=0.05, limit_s=60.0) if options.quick else Plan()
    if options.rounds:
        plan = replace(plan, num_rounds=options.rounds)
    names = {FLOAT, *(options.only or RIVALS)}
    rivals = [rival for name, rival in RIVALS.items() if name in names]
    for name in options.models:
        prepared = prepare(MODELS[name], options.cache)
        with tempfile.TemporaryDirectory(prefix="optimise-peers-") as folder:
            comparison = compare(prepared, rivals, plan, options.cache, Path(folder))
        print(f"\n=== {name}: {MODELS[name].what} ===\n{table(comparison)}\n", file=sys.stderr, flush=True)
        line = msgspec.json.encode(document(comparison, plan)).decode()
        print(line, flush=True)
        if options.out:
            with options.out.open("a") as file:
                file.write(line + "\n")


if __name__ == "__main__":
    main()
