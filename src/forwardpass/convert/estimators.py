"""scikit-learn, XGBoost and LightGBM estimators, turned into ONNX by a process that can be lost.

An estimator is a pickle, or skops' archive of one. Loading a pickle runs whatever it says: so a child reads it, and
only if the user trusts it, writes ONNX with skl2onnx, and writes down what the estimator itself answers. The parent
runs the ONNX file and compares. Everything behind then sees an ONNX file.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from forwardpass.convert.parity import check_parity
from forwardpass.convert.recorded import Recorded
from forwardpass.convert.values import ParityCheck, PlainModel
from forwardpass.core.samples import Samples
from forwardpass.core.tensors import Array
from forwardpass.core.variants import Format
from forwardpass.errors import InvalidModel, InvalidSamples, MissingExtra, UntrustedPickle
from forwardpass.runtimes import RuntimeOptions, open_runtime

if TYPE_CHECKING:
    from forwardpass.core.protocols import Runtime

__all__ = ["INPUT_NAME", "is_estimator", "plain_estimator"]

INPUT_NAME = "x"
"""An estimator takes one matrix and does not name it: it is called as the samples call it, or so."""
SUFFIXES = (".pkl", ".pickle", ".joblib", ".skops")
OPSET, OPSET_ML = 18, 3
NUM_RANDOM_ROWS = 256
TOLERANCE = 1e-4
TIME_LIMIT_S = 600.0


def is_estimator(model: str) -> bool:
    """Tell by its name whether a file is a saved estimator."""
    return Path(model).suffix.lower() in SUFFIXES and Path(model).is_file()


@contextmanager
def plain_estimator(model: str, samples: Samples | None, *, trust_pickle: bool) -> Iterator[PlainModel]:
    """Give the model, an estimator turned into ONNX for as long as the block runs.

    The ONNX file has one input (float32, a row a sample), called as in the samples or `x`, and answers like the
    estimator on the samples, or without any on rows of normal numbers. A skops archive of known types needs no trust.

    Raises:
        UntrustedPickle: it is a pickle, and nobody vouches for it.
        InvalidModel: it is no estimator, or skl2onnx does not know it.
        MissingExtra: a library is not installed.
        ParityFailed: the ONNX file answers differently.
    """
    if not is_estimator(model):
        yield PlainModel(path=model)
        return
    source = Path(model)
    if source.suffix.lower() != ".skops" and not trust_pickle:
        raise UntrustedPickle(path=model)
    with tempfile.TemporaryDirectory(prefix="forwardpass-estimator-") as folder:
        converted = Path(folder) / f"{source.stem}.onnx"
        answers = Path(folder) / "answers.npz"
        rows = Path(folder) / "rows.npz"
        name, matrix = _matrix(samples, model) if samples is not None else (INPUT_NAME, None)
        np.savez(rows, allow_pickle=False, **({INPUT_NAME: matrix} if matrix is not None else {}))
        _convert_in_child(source, rows, converted, answers, name=name, trust=trust_pickle)
        yield PlainModel(path=str(converted), exporter="skl2onnx", parity=_check(model, converted, answers))


def _matrix(samples: Samples, model: str) -> tuple[str, Array]:
    """Return the name of the samples' only array, and the array."""
    inputs = samples.groups[0].inputs
    if len(inputs) != 1 or any(array.ndim != 2 for array in inputs.values()):
        raise InvalidSamples(
            origin=model,
            reason=f"they have {', '.join(f'{name} {list(array.shape)}' for name, array in inputs.items())}",
            hint="An estimator takes one matrix, a row a sample: one array besides the labels, called as you like.",
        )
    ((name, array),) = inputs.items()
    return name, array.astype(np.float32)


def _convert_in_child(source: Path, rows: Path, converted: Path, answers: Path, *, name: str, trust: bool) -> None:
    files = [str(path) for path in (source, rows, converted, answers)]
    command = [sys.executable, "-m", "forwardpass.convert.estimators", *files, name, "trust" if trust else "ask"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT_S, check=False)
    if finished.returncode == 0:
        return
    lines = finished.stderr.strip().splitlines()
    reason = lines[-1] if lines else f"reading it ended with {finished.returncode}"
    if reason.startswith("missing:"):
        raise MissingExtra(package=reason.partition(":")[2], extra="sklearn", purpose="converting an estimator")
    raise InvalidModel(path=str(source), reason=reason)


def _check(model: str, converted: Path, answers: Path) -> tuple[ParityCheck, ...]:
    with np.load(answers, allow_pickle=False) as archive:
        recorded = {name: archive[name] for name in archive.files}
    rows = recorded.pop(INPUT_NAME)
    runtime: Runtime = open_runtime(Format.ONNX, str(converted), options=RuntimeOptions())
    sizes = [size for size in (1, 2, len(rows)) if size <= len(rows)]
    (taken,) = runtime.signature.inputs
    calls = [{taken.name: rows[:size]} for size in sizes]
    expected = [{name: array[:size] for name, array in recorded.items()} for size in sizes]
    source = Recorded(expected, runtime.signature, name="scikit-learn")
    comparisons = check_parity(source, runtime, calls, name=model, tolerance=TOLERANCE)
    return tuple(comparison.check for comparison in comparisons)


# --- the child -----------------------------------------------------------------------------------------------------


def _convert(source: str, rows: str, target: str, answers: str, name: str, trust: str) -> None:
    estimator = _load(source, trust=trust == "trust")
    num_features = getattr(estimator, "n_features_in_", None)
    if num_features is None or not hasattr(estimator, "predict"):
        sys.exit(f"it holds {type(estimator).__name__}, not a fitted estimator with predict()")
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType

    _register_boosters()
    is_classifier = hasattr(estimator, "classes_")
    model = to_onnx(
        estimator,
        initial_types=[(INPUT_NAME, FloatTensorType([None, int(num_features)]))],
        options={"zipmap": False} if is_classifier else None,
        target_opset={"": OPSET, "ai.onnx.ml": OPSET_ML},
    )
    has_words = is_classifier and np.asarray(estimator.classes_).dtype.kind not in "iub"
    if has_words:  # strings are no tensors that can be served: the place of the greatest probability says the same
        del model.graph.output[0]
    _rename_input(model.graph, name)
    Path(target).write_bytes(model.SerializeToString())
    with np.load(rows, allow_pickle=False) as archive:
        given = archive[INPUT_NAME] if archive.files else None
    if given is None:
        given = np.random.default_rng(0).standard_normal((NUM_RANDOM_ROWS, int(num_features))).astype(np.float32)
    if given.shape[1] != num_features:
        sys.exit(f"it takes {num_features} features a row, and the samples have {given.shape[1]}")
    names = [value.name for value in model.graph.output]
    recorded = {INPUT_NAME: given} | dict(zip(names, _answers(estimator, given, names), strict=True))
    np.savez(answers, allow_pickle=False, **recorded)


def _rename_input(graph: Any, name: str) -> None:
    """Call the input as the samples do; skl2onnx would change names that have blanks or that it uses itself."""
    if name != INPUT_NAME and any(name in node.output for node in graph.node):
        sys.exit(f"its ONNX form has something else called '{name}'; call the array of the samples otherwise")
    graph.input[0].name = name
    for node in graph.node:
        for at, taken in enumerate(node.input):
            if taken == INPUT_NAME:
                node.input[at] = name


def _answers(estimator: Any, rows: Array, names: list[str]) -> list[Array]:
    """Return what the estimator says, in the shapes that ONNX gives it."""
    predicted = [np.asarray(estimator.predict(rows))]
    if not hasattr(estimator, "classes_"):
        return [predicted[0].reshape(len(rows), -1).astype(np.float32)][: len(names)]
    scores = estimator.predict_proba(rows) if hasattr(estimator, "predict_proba") else estimator.decision_function(rows)
    scores = np.asarray(scores, np.float32).reshape(len(rows), -1)
    return [scores] if len(names) == 1 else [predicted[0].astype(np.int64), scores]


def _load(source: str, *, trust: bool) -> Any:
    if source.lower().endswith(".skops"):
        from skops.io import get_untrusted_types, load

        unknown = get_untrusted_types(file=source)
        if unknown and not trust:
            sys.exit(f"it has types that are not known to be harmless: {', '.join(unknown[:3])}; see --trust-pickle")
        return load(source, trusted=unknown)
    import joblib

    return joblib.load(source)  # reads plain pickles, too


def _register_boosters() -> None:
    """Teach skl2onnx the boosters that the pickle has brought along."""
    from skl2onnx import update_registered_converter
    from skl2onnx.common import shape_calculator as shapes

    classified = shapes.calculate_linear_classifier_output_shapes
    regressed = shapes.calculate_linear_regressor_output_shapes
    options = {"nocl": [True, False], "zipmap": [True, False, "columns"]}
    if "xgboost" in sys.modules:
        import xgboost
        from onnxmltools.convert.xgboost.operator_converters.XGBoost import convert_xgboost

        kinds = (xgboost.XGBClassifier, "XGBoostXGBClassifier"), (xgboost.XGBRegressor, "XGBoostXGBRegressor")
        update_registered_converter(*kinds[0], classified, convert_xgboost, options=options)
        update_registered_converter(*kinds[1], regressed, convert_xgboost)
    if "lightgbm" in sys.modules:
        import lightgbm
        from onnxmltools.convert.lightgbm.operator_converters.LightGbm import convert_lightgbm

        kinds = (lightgbm.LGBMClassifier, "LightGbmLGBMClassifier"), (lightgbm.LGBMRegressor, "LightGbmLGBMRegressor")
        update_registered_converter(*kinds[0], classified, convert_lightgbm, options=options)
        update_registered_converter(*kinds[1], regressed, convert_lightgbm, options={"split": None})


if __name__ == "__main__":
    import warnings

    warnings.simplefilter("ignore")  # of versions that differ: the comparison tells whether it matters
    try:
        _convert(*sys.argv[1:])
    except ModuleNotFoundError as error:
        sys.exit(f"missing:{(error.name or 'scikit-learn').partition('.')[0]}")
    except Exception as error:  # the parent reads one line
        first = next((line for line in str(error).splitlines() if line.strip()), "no message")
        sys.exit(f"{type(error).__name__}: {first[:300]}")
