"""What is found on disk, and what is said when it is not what a server needs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sklearn
import skops.io
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from sklearn_estimators import Fixed, Needy
from tidegate_sklearn.errors import LoadError
from tidegate_sklearn.model import load, trusted_types

Store = Callable[[Any], Path]


def test_joblib(store: Store, iris_pipeline: Any) -> None:
    model = load(store(iris_pipeline))
    assert (model.platform, model.n_features, model.methods) == ("sklearn_joblib", 4, ("predict", "predict_proba"))


def test_skops_needs_trust_for_what_it_does_not_know(tmp_path: Path, iris_pipeline: Any) -> None:
    skops.io.dump(iris_pipeline, tmp_path / "model.skops")
    assert load(tmp_path).platform == "sklearn_skops"
    skops.io.dump(Fixed([1]), tmp_path / "model.skops")
    with pytest.raises(LoadError, match=r"not trusted: sklearn_estimators\.Fixed; .* TIDEGATE_SKOPS_TRUSTED"):
        load(tmp_path)
    assert load(tmp_path, trusted_types(" sklearn_estimators.Fixed, other.Type,")).n_features == 1


def test_nothing_there_says_what_is(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="found: no files"):
        load(tmp_path)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "model.joblib").touch()
    (tmp_path / "model.pkl").touch()
    with pytest.raises(
        LoadError, match=r"neither model\.joblib nor model\.skops; found: deep/model\.joblib, model\.pkl"
    ):
        load(tmp_path)
    with pytest.raises(LoadError, match="is no directory"):
        load(tmp_path / "absent")


def test_two_models_are_one_too_many(store: Store, iris_pipeline: Any) -> None:
    directory = store(iris_pipeline)
    (directory / "model.skops").touch()
    with pytest.raises(LoadError, match="holds both"):
        load(directory)


def test_damaged(store: Store, iris_pipeline: Any, tmp_path: Path) -> None:
    path = store(iris_pipeline) / "model.joblib"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(LoadError, match=r"cannot be loaded .* damaged"):
        load(path.parent)
    (tmp_path / "model.skops").write_bytes(b"not a zip")
    with pytest.raises(LoadError, match=r"cannot be loaded .* damaged"):
        load(tmp_path)


def test_a_missing_module_is_named(store: Store) -> None:
    with pytest.raises(LoadError, match="needs the Python module 'no_such_module'"):
        load(store(Needy()))


def test_no_model(store: Store) -> None:
    with pytest.raises(LoadError, match="the stored object is a StandardScaler, which has no predict method"):
        load(store(StandardScaler().fit([[1.0]])))
    with pytest.raises(LoadError, match="is a list, which"):
        load(store([1, 2]))
    with pytest.raises(LoadError, match="no predict"):
        load(store(FunctionTransformer()))


def test_another_version_of_scikit_learn_is_logged(
    store: Store, iris_pipeline: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(sklearn.base, "__version__", "1.2.3")
        directory = store(iris_pipeline)
    with caplog.at_level(logging.WARNING):
        load(directory)
    (record,) = caplog.records
    assert f"saved by scikit-learn 1.2.3, served by {sklearn.__version__}" in record.getMessage()
