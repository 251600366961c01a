"""Models on disk, and a server in front of one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import joblib
import pytest
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

sys.path[:0] = [str(Path(__file__).parents[1] / "src"), str(Path(__file__).parent)]  # no installation needed

from sklearn_support import Process  # noqa: E402


@pytest.fixture(scope="session")
def iris_pipeline() -> Any:
    """A classifier of iris flowers by name, fitted on an array of four columns."""
    data = load_iris()
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(data.data, data.target_names[data.target])


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], Path]:
    """Saves an estimator as KServe's storage initializer would leave it; returns the directory."""

    def save(estimator: Any) -> Path:
        directory = tmp_path_factory.mktemp("model")
        joblib.dump(estimator, directory / "model.joblib")
        return directory

    return save


@pytest.fixture(scope="session")
def iris(store: Callable[[Any], Path], iris_pipeline: Any) -> Iterator[Process]:
    """A server of the iris pipeline as version v7, with a body limit of 64 KiB."""
    process = Process.start(
        f"--model_dir={store(iris_pipeline)}",
        "--model_name=from-the-runtime",
        "--model_name=iris",
        TIDEGATE_VERSION="v7",
        TIDEGATE_MAX_BODY_BYTES="65536",
        TIDEGATE_DRAIN_SECONDS="0",
    )
    yield process.wait_ready()
    process.terminate()
    assert process.finish() == 0
    assert "Traceback" not in "".join(process.log)


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    """Starts servers that the test stops itself; those that a failing test leaves behind are killed."""
    started: list[Process] = []

    def run(*arguments: str, **environment: str) -> Process:
        started.append(Process.start(*arguments, **environment))
        return started[-1]

    yield run
    for process in started:
        if process.popen.poll() is None:
            process.popen.kill()
            process.finish()
