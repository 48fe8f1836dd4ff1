"""Estimators of scikit-learn, XGBoost and LightGBM: their own predictions are what the ONNX file is held against."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner
from sklearn.ensemble import GradientBoostingRegressor, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import forwardpass
from forwardpass.cli.app import root
from forwardpass.errors import InvalidModel, InvalidSamples, UntrustedPickle

GENERATOR = np.random.default_rng(0)
X = GENERATOR.standard_normal((200, 5)).astype(np.float32)
CLASSES = (X[:, 0] + X[:, 1] > 0).astype(np.int64) + (X[:, 2] > 1)


def boosters() -> tuple[Any, ...]:
    import lightgbm
    import xgboost

    return (
        xgboost.XGBClassifier(n_estimators=5, n_jobs=1),
        xgboost.XGBRegressor(n_estimators=5, n_jobs=1),
        lightgbm.LGBMClassifier(n_estimators=5, verbose=-1, n_jobs=1),
        lightgbm.LGBMRegressor(n_estimators=5, verbose=-1, n_jobs=1),
    )


ESTIMATORS = (
    RandomForestClassifier(10, random_state=0),
    GradientBoostingRegressor(n_estimators=10, random_state=0),
    make_pipeline(StandardScaler(), LogisticRegression()),
    *boosters(),
)


def fit(estimator: Any) -> Any:
    return estimator.fit(X, CLASSES if hasattr(estimator, "predict_proba") else X[:, 0] * 2 + X[:, 3])


@pytest.fixture
def samples(tmp_path: Path) -> str:
    np.savez(tmp_path / "samples.npz", x=X)
    return str(tmp_path / "samples.npz")


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda estimator: type(estimator).__name__)
def test_the_onnx_file_predicts_what_the_estimator_predicts(estimator: Any, samples: str, tmp_path: Path) -> None:
    fitted = fit(estimator)
    joblib.dump(fitted, tmp_path / "model.joblib")
    out = tmp_path / "model.onnx"
    conversion = forwardpass.convert_model(tmp_path / "model.joblib", out=out, data=samples, trust_pickle=True)
    assert conversion.signature.inputs[0].shape == ("batch", 5)
    rows = GENERATOR.standard_normal((50, 5)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    answers = session.run(None, {"x": rows})
    if hasattr(fitted, "predict_proba"):
        assert np.array_equal(answers[0], fitted.predict(rows))
        np.testing.assert_allclose(answers[1], fitted.predict_proba(rows), atol=1e-5)
    else:
        np.testing.assert_allclose(answers[0].ravel(), fitted.predict(rows), rtol=1e-4, atol=1e-4)


def dump_pickle(estimator: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(estimator))


@pytest.mark.parametrize(("suffix", "dump"), [(".pkl", dump_pickle), (".joblib", joblib.dump)])
def test_a_pickle_is_refused_unless_trusted(suffix: str, dump: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    dump(fit(LogisticRegression()), path)
    with pytest.raises(UntrustedPickle):
        forwardpass.convert_model(path, out=tmp_path / "out.onnx")
    conversion = forwardpass.convert_model(path, out=tmp_path / "out.onnx", trust_pickle=True)
    assert conversion.exporter == "skl2onnx"
    assert conversion.worst_difference < 1e-5


def test_a_pickle_that_runs_code_runs_none_here(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "touched",))

    dump_pickle(Evil(), tmp_path / "evil.pkl")
    with pytest.raises(UntrustedPickle):
        forwardpass.convert_model(tmp_path / "evil.pkl", out=tmp_path / "out.onnx")
    assert not (tmp_path / "touched").exists()


def test_skops_needs_no_trust(samples: str, tmp_path: Path) -> None:
    skops = pytest.importorskip("skops.io")
    skops.dump(fit(make_pipeline(StandardScaler(), LogisticRegression())), tmp_path / "model.skops")
    conversion = forwardpass.convert_model(tmp_path / "model.skops", out=tmp_path / "m.onnx", data=samples)
    assert [spec.name for spec in conversion.signature.outputs] == ["label", "probabilities"]


def test_classes_that_are_words_leave_their_probabilities(tmp_path: Path) -> None:
    words = np.array(["red", "green", "blue"])[CLASSES]
    joblib.dump(LogisticRegression().fit(X, words), tmp_path / "model.joblib")
    conversion = forwardpass.convert_model(tmp_path / "model.joblib", out=tmp_path / "m.onnx", trust_pickle=True)
    assert [spec.name for spec in conversion.signature.outputs] == ["probabilities"]


def test_an_estimator_becomes_openvino_or_is_profiled(tmp_path: Path) -> None:
    joblib.dump(fit(make_pipeline(StandardScaler(), LogisticRegression())), tmp_path / "model.joblib")
    settings = forwardpass.ProfileSettings(
        batch_sizes=(1,), thread_counts=(1,), num_rounds=3, round_s=0.01, num_cold_starts=1
    )
    report = forwardpass.profile_model(tmp_path / "model.joblib", settings=settings, trust_pickle=True)
    assert report.profiles[0].runtime == "onnxruntime"


def test_what_is_wrong_is_told_in_one_sentence(samples: str, tmp_path: Path) -> None:
    joblib.dump({"no": "estimator"}, tmp_path / "dict.joblib")
    with pytest.raises(InvalidModel, match="it holds dict, not a fitted estimator"):
        forwardpass.convert_model(tmp_path / "dict.joblib", out=tmp_path / "m.onnx", trust_pickle=True)
    joblib.dump(LogisticRegression().fit(X[:, :3], CLASSES), tmp_path / "three.joblib")
    with pytest.raises(InvalidModel, match="it takes 3 features a row, and the samples have 5"):
        forwardpass.convert_model(tmp_path / "three.joblib", out=tmp_path / "m.onnx", data=samples, trust_pickle=True)
    np.savez(tmp_path / "other.npz", pixels=X, more=X)
    with pytest.raises(InvalidSamples, match="An estimator takes one matrix, a row a sample: one array besides the"):
        forwardpass.convert_model(
            tmp_path / "three.joblib", out=tmp_path / "m.onnx", data=str(tmp_path / "other.npz"), trust_pickle=True
        )
    result = CliRunner().invoke(root, ["convert", str(tmp_path / "dict.joblib"), "--out", str(tmp_path / "m.onnx")])
    assert isinstance(result.exception, UntrustedPickle)
    assert "--trust-pickle" in str(result.exception)


@pytest.mark.parametrize("name", ["X", "the features"])
@pytest.mark.parametrize("estimator", ESTIMATORS[:2], ids=lambda estimator: type(estimator).__name__)
def test_the_input_is_called_as_the_samples_call_it(name: str, estimator: Any, tmp_path: Path) -> None:
    joblib.dump(fit(estimator), tmp_path / "model.joblib")
    matrix: Any = {name: X}
    np.savez(tmp_path / "samples.npz", **matrix)
    given: Any = {"data": str(tmp_path / "samples.npz"), "trust_pickle": True}
    conversion = forwardpass.convert_model(tmp_path / "model.joblib", out=tmp_path / "m.onnx", **given)
    assert [spec.name for spec in conversion.signature.inputs] == [name]
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, matrix)[0].ravel(), estimator.predict(X), rtol=1e-4, atol=1e-4)


def test_an_array_called_like_an_answer_is_refused(tmp_path: Path) -> None:
    joblib.dump(fit(LogisticRegression()), tmp_path / "model.joblib")
    np.savez(tmp_path / "samples.npz", label=X)
    given: Any = {"data": str(tmp_path / "samples.npz"), "trust_pickle": True}
    with pytest.raises(InvalidModel, match="its ONNX form has something else called 'label'; call the array of the"):
        forwardpass.convert_model(tmp_path / "model.joblib", out=tmp_path / "m.onnx", **given)


def test_a_search_names_what_wrote_onnx_and_compares_with_the_estimator(tmp_path: Path) -> None:
    """Not the ONNX file that was made of it with itself."""
    joblib.dump(fit(make_pipeline(StandardScaler(), LogisticRegression())), tmp_path / "model.joblib")
    np.savez(tmp_path / "data.npz", x=X, labels=CLASSES)
    profile = forwardpass.ProfileSettings(
        batch_sizes=(1,), thread_counts=(1,), num_rounds=3, round_s=0.01, num_cold_starts=1
    )
    settings = forwardpass.OptimizeSettings(floor=forwardpass.QualityFloor.parse("5%"), profile=profile)
    given: Any = {"data": str(tmp_path / "data.npz"), "settings": settings, "trust_pickle": True}
    found = forwardpass.optimize_model(tmp_path / "model.joblib", out=tmp_path / "variants", **given)
    shipped = forwardpass.ship_model(tmp_path / "model.joblib", out=tmp_path / "made", **given)
    for optimization in (found, shipped.optimization):
        assert ("exporter", "skl2onnx") in optimization.candidates[0].variant.recipe.steps[0].parameters
        assert optimization.provenance is not None
        assert {"skl2onnx", "scikit-learn"} <= dict(optimization.provenance.packages).keys()
    assert shipped.conversion.exporter == "skl2onnx"
    assert 0 < shipped.conversion.worst_difference < 1e-4
    lines = {(line.step, line.what): line for line in shipped.checklist}
    assert lines["profile", "peak memory"].note == "source as ONNX"
    assert lines["convert", "difference from the source over 3 shapes"].note.startswith("skl2onnx, opset 18; ")
    for page in (tmp_path / "variants" / "report.html", tmp_path / "made" / "report.html"):
        text = page.read_text()
        assert "Converted by the skl2onnx exporter to ONNX, in opset 18, compared with the source" in text
        assert "as-is" not in text
