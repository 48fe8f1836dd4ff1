"""Olive: its search over its quantisation passes, for the lowest latency among what keeps the accuracy.

https://microsoft.github.io/Olive/how-to/configure-workflows/
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from common import Task
from olive.workflows import run

MAX_TRIALS = 8


def config(task: Task) -> dict[str, Any]:
    """Return the workflow."""
    return {
        "input_model": {"type": "ONNXModel", "model_path": task.onnx},
        "systems": {
            "local_system": {
                "type": "LocalSystem",
                "accelerators": [{"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}],
            }
        },
        "data_configs": [_samples("calibration"), _samples("validation")],
        "evaluators": {"evaluator": {"metrics": _metrics(task)}},
        "evaluator": "evaluator",
        "passes": _passes(task),
        "search_strategy": {
            "execution_order": "joint",
            "sampler": "tpe",
            "sampler_config": {"max_samples": MAX_TRIALS, "seed": 0},
            "max_time": int(task.limit_s),  # a trial that was begun is ended
            "output_model_num": 1,
        },
        "host": "local_system",
        "target": "local_system",
        "cache_dir": str(task.folder / "cache"),
        "output_dir": str(task.folder / "out"),
        "log_severity_level": 2,
    }


def _samples(split: str) -> dict[str, Any]:
    """Return where samples come from. Components without a type would be taken for paths."""
    return {
        "name": split,
        "user_script": str(Path(__file__).with_name("olive_script.py")),
        "load_dataset_config": {"type": "peers_samples", "params": {"task_file": sys.argv[1], "part": split}},
        "pre_process_data_config": {"type": "skip_pre_process", "params": {}},
        "post_process_data_config": {"type": "skip_post_process", "params": {}},
        "dataloader_config": {"type": "default_dataloader", "params": {"batch_size": 1}},
    }


def _metrics(task: Task) -> list[dict[str, Any]]:
    """Return the score, which has a goal, and the latency, by which Olive ranks first."""
    score = {
        "name": "accuracy_score",
        "priority": 2,
        "metric_config": {"task": "multiclass", "num_classes": 10},
        "goal": {"type": "percent-max-degradation", "value": 100 * task.max_drop},
    }
    return [
        {"name": "score", "type": "accuracy", "data_config": "validation", "sub_types": [score]},
        {
            "name": "latency",
            "type": "latency",
            "data_config": "validation",
            "sub_types": [{"name": "avg", "priority": 1}],
        },
    ]


def _passes(task: Task) -> dict[str, Any]:
    fuse = {"fuse": {"type": "OrtTransformersOptimization", "model_type": "bert"}} if task.is_transformer else {}
    return {**fuse, "quantise": {"type": "OnnxQuantization", "data_config": "calibration"}}


def main() -> None:
    task = Task()
    workflow = config(task)
    (task.folder / "workflow.json").write_text(json.dumps(workflow, indent=1))
    result = run(workflow)
    best = result.get_best_candidate() if result is not None else None
    if best is None:
        task.finish(failures={"olive": "no candidate met the goals"})
        return
    made = {"name": "search", "kind": "onnxruntime", "file": str(best.model_path)}
    task.finish(made, from_pass=str(best.from_pass()), metrics=str(best.metrics_value))


if __name__ == "__main__":
    main()
