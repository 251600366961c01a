"""Finding, loading and calling the model."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import joblib  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from tidegate_sklearn.errors import LoadError, ModelError, RequestError
from tidegate_sklearn.tensors import Tensor, encode

log = logging.getLogger(__name__)

_METHODS = ("predict", "predict_proba")


@dataclass(frozen=True)
class Model:
    """A fitted estimator and what it wants and gives.

    Attributes:
        estimator: anything with scikit-learn's `predict`.
        platform: how it was stored: `sklearn_joblib` or `sklearn_skops`.
        n_features: columns it was fitted on; None where it does not say (a text vectorizer takes bare strings).
        feature_names: their names in order; None where it was fitted on an array without names.
        inputs, outputs: the protocol's description of each tensor: name, datatype and shape, -1 where it varies.
    """

    estimator: Any
    platform: str
    n_features: int | None
    feature_names: tuple[str, ...] | None
    inputs: tuple[dict[str, Any], ...]
    outputs: tuple[dict[str, Any], ...]

    @classmethod
    def of(cls, estimator: Any, platform: str) -> Model:
        """Reads from the fitted estimator what it wants and gives, and predicts once, which warms it.

        Raises:
            LoadError: it has no `predict`.
        """
        methods = [method for method in _METHODS if callable(getattr(estimator, method, None))]
        if "predict" not in methods:
            raise LoadError(f"the stored object is a {type(estimator).__name__}, which has no predict method")
        names = getattr(estimator, "feature_names_in_", None)
        feature_names = None if names is None else tuple(map(str, names))
        n_features = getattr(estimator, "n_features_in_", None)
        return cls(
            estimator=estimator,
            platform=platform,
            n_features=n_features,
            feature_names=feature_names,
            inputs=_describe_inputs(n_features, feature_names),
            outputs=tuple({"name": method, **_describe_output(estimator, method, n_features)} for method in methods),
        )

    @property
    def methods(self) -> tuple[str, ...]:
        """The outputs it can give: `predict`, and `predict_proba` where it has it."""
        return tuple(output["name"] for output in self.outputs)

    def features(self, tensors: Sequence[Tensor]) -> NDArray[Any]:
        """The matrix to predict on: one tensor [n, features], or one tensor [n] or [n, 1] per named feature.

        Named columns may come in any order. Their common type is numpy's, or object as soon as one holds strings.

        Raises:
            RequestError: names or shapes are not those the model was fitted on, or there is no row.
        """
        matrix = self._columns(tensors) if self._by_name(tensors) else self._whole(tensors)
        if not len(matrix):
            raise RequestError("the inputs hold no rows; expected at least one")
        return matrix

    def call(self, method: str, matrix: NDArray[Any]) -> Any:
        """Calls `predict` or `predict_proba`.

        Raises:
            RequestError: the model refused the input (scikit-learn says so by a ValueError).
            ModelError: it failed in any other way; the traceback goes to the log, not to the client.
        """
        run: Callable[[NDArray[Any]], Any] = getattr(self.estimator, method)
        try:
            return run(matrix)
        except ValueError as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise RequestError(f"the model refused the input: {reason}") from error
        except Exception as error:
            log.exception("%s failed on a matrix of shape %s", method, matrix.shape)
            raise ModelError(f"the model's {method} failed with {type(error).__name__}; the log says why") from error

    def _by_name(self, tensors: Sequence[Tensor]) -> bool:
        if len(tensors) != 1 or self.feature_names is None:
            return len(tensors) != 1
        (tensor,) = tensors
        is_whole = tensor.values.ndim == 2 and tensor.values.shape[1] == self.n_features
        return tensor.name in self.feature_names and not is_whole

    def _whole(self, tensors: Sequence[Tensor]) -> NDArray[Any]:
        (tensor,) = tensors
        values, shape = tensor.values, list(tensor.values.shape)
        if self.n_features is None:  # text: vectorizers iterate over strings, not over rows of one string
            return values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
        if values.ndim != 2 or values.shape[1] != self.n_features:
            raise RequestError(
                f"input {tensor.name!r} has shape {shape}; the model takes [rows, {self.n_features}]"
                + ("" if self.feature_names is None else ", or its features as columns by name")
            )
        return values

    def _columns(self, tensors: Sequence[Tensor]) -> NDArray[Any]:
        if self.feature_names is None:
            raise RequestError(
                f"{len(tensors)} inputs were given, but the model was fitted without feature names; "
                f"expected one input of shape [rows, {self.n_features or 'columns'}]"
            )
        given = {tensor.name: tensor.values for tensor in tensors}
        absent = [name for name in self.feature_names if name not in given]
        unknown = [name for name in given if name not in self.feature_names]
        if absent or unknown:
            wrong = [f"missing: {', '.join(absent)}"] * bool(absent) + [f"unknown: {', '.join(unknown)}"] * bool(
                unknown
            )
            raise RequestError(f"the inputs are not the model's features; {'; '.join(wrong)}")
        wide = [f"{name!r} {list(values.shape)}" for name, values in given.items() if values.size != len(values)]
        if wide:
            raise RequestError(f"a column must have shape [rows] or [rows, 1]; found {', '.join(wide)}")
        columns = [given[name].reshape(-1) for name in self.feature_names]
        if len({len(column) for column in columns}) != 1:
            sizes = ", ".join(f"{name!r} {len(values)}" for name, values in given.items())
            raise RequestError(f"the columns differ in their number of rows: {sizes}")
        matrix = np.empty((len(columns[0]), len(columns)), dtype=np.result_type(*(column.dtype for column in columns)))
        for index, column in enumerate(columns):
            matrix[:, index] = column
        return matrix


def _describe_inputs(n_features: int | None, feature_names: tuple[str, ...] | None) -> tuple[dict[str, Any], ...]:
    """Named features as columns; FP64, since a fitted model does not keep their types, unless it takes bare strings."""
    if feature_names is not None:
        return tuple({"name": name, "datatype": "FP64", "shape": [-1]} for name in feature_names)
    if n_features is not None:
        return ({"name": "input", "datatype": "FP64", "shape": [-1, n_features]},)
    return ({"name": "input", "datatype": "BYTES", "shape": [-1]},)


def _describe_output(estimator: Any, method: str, n_features: int | None) -> dict[str, Any]:
    """Datatype and shape as seen on a row of zeros, or from the class labels where the model wants strings."""
    row = np.array([""], dtype=object) if n_features is None else np.zeros((1, n_features))
    try:
        seen = encode(method, getattr(estimator, method)(row))
        return {"datatype": seen["datatype"], "shape": [-1, *seen["shape"][1:]]}
    except Exception as error:
        log.info("%s cannot be tried on zeros (%s); described by the model's classes", method, error)
    labels = getattr(estimator, "classes_", None)
    if method == "predict_proba":
        return {"datatype": "FP64", "shape": [-1, -1 if labels is None else len(labels)]}
    return {"datatype": "FP64" if labels is None else encode(method, labels)["datatype"], "shape": [-1]}


def load(directory: Path, trusted: Sequence[str] = ()) -> Model:
    """Loads `model.joblib` or `model.skops`.

    A joblib file runs code as it loads: it must come from a place that only trusted people can write to. A skops
    file runs none, and names the types that it wants.

    Args:
        directory: where the storage initializer put the model's files.
        trusted: types, by full name, that a skops file may build beyond those skops trusts by itself.

    Raises:
        LoadError: there is no such file (the message lists what there is), or more than one; it needs a module that is
            missing, is damaged, or wants types that are not trusted; or it holds no model.
    """
    start = time.perf_counter()
    path = _find(directory)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            estimator = _load_skops(path, trusted) if path.suffix == ".skops" else joblib.load(path)
        except LoadError:
            raise
        except ModuleNotFoundError as error:
            raise LoadError(
                f"{path} needs the Python module {error.name!r}, which this server does not have"
            ) from error
        except Exception as error:
            raise LoadError(
                f"{path} cannot be loaded ({type(error).__name__}: {error}); it is damaged, or was saved by an "
                f"incompatible version{_versions(caught)}"
            ) from error
    if versions := _versions(caught):
        log.warning(
            "version mismatch%s; predictions may differ or fail: save the model anew, or pin the version", versions
        )
    if "sklearn.compose" in sys.modules:  # or the model has no part that selects columns
        _select_by_position(estimator, set())
    model = Model.of(estimator, f"sklearn_{path.suffix[1:]}")
    log.info("loaded %s from %s in %.2f s", type(estimator).__name__, path, time.perf_counter() - start)
    return model


def _find(directory: Path) -> Path:
    known = [directory / "model.joblib", directory / "model.skops"]
    present = [path for path in known if path.is_file()]
    if len(present) == 1:
        return present[0]
    if present:
        raise LoadError(f"{directory} holds both model.joblib and model.skops; keep the one to serve")
    if not directory.is_dir():
        raise LoadError(f"{directory} is no directory; expected model.joblib or model.skops in it")
    found = [str(path.relative_to(directory)) for path in islice(directory.rglob("*"), 20) if path.is_file()]
    raise LoadError(
        f"{directory} holds neither model.joblib nor model.skops; found: {', '.join(sorted(found)) or 'no files'}"
    )


def _load_skops(path: Path, trusted: Sequence[str]) -> Any:
    import skops.io  # type: ignore[import-untyped]  # here, since it costs half a second and 30 MB

    refused = [name for name in skops.io.get_untrusted_types(file=path) if name not in trusted]
    if refused:
        raise LoadError(
            f"{path} wants types that are not trusted: {', '.join(refused)}; list those you know to be harmless "
            "in TIDEGATE_SKOPS_TRUSTED, separated by commas"
        )
    return skops.io.load(path, trusted=list(trusted))


def _select_by_position(part: Any, seen: set[int]) -> None:
    """Lets each fitted ColumnTransformer within take its columns by position where it was told them by name.

    It finds names only in a data frame; the server has plain arrays, in the order that the model was fitted on.

    Args:
        part: an estimator, or a list, tuple or dict that may hold some; changed in place.
        seen: the ids of what was looked at before.
    """
    if id(part) in seen:
        return
    seen.add(id(part))
    children: Iterable[Any] = ()
    if isinstance(part, list | tuple):
        children = part
    elif isinstance(part, dict):
        children = part.values()
    elif hasattr(part, "get_params"):
        children = vars(part).values()
    for child in children:
        _select_by_position(child, seen)
    if isinstance(part, sys.modules["sklearn.compose"].ColumnTransformer) and hasattr(part, "feature_names_in_"):
        names = list(part.feature_names_in_)
        part.transformers_ = [
            (name, fitted, _positions(columns, names)) for name, fitted, columns in part.transformers_
        ]


def _positions(columns: Any, names: list[str]) -> Any:
    """What ColumnTransformer takes for columns (a name, several, or a slice of names) as positions in `names`."""
    if isinstance(columns, str):
        return names.index(columns)
    if isinstance(columns, slice) and isinstance(columns.start or columns.stop, str):
        start = None if columns.start is None else names.index(columns.start)
        return slice(start, None if columns.stop is None else names.index(columns.stop) + 1)  # names include the last
    if isinstance(columns, list | tuple | np.ndarray) and len(columns) and isinstance(columns[0], str):
        return [names.index(column) for column in columns]
    return columns


def _versions(caught: Sequence[warnings.WarningMessage]) -> str:
    """What scikit-learn's warnings say of versions; empty where nothing differs."""
    saved = {str(version) for entry in caught if (version := getattr(entry.message, "original_sklearn_version", None))}
    if not saved:
        return ""
    import sklearn  # type: ignore[import-untyped]  # loaded by now, or no warning had come from it

    return f": saved by scikit-learn {', '.join(sorted(saved))}, served by {sklearn.__version__}"


def trusted_types(value: str) -> tuple[str, ...]:
    """The full type names in a comma-separated list, as TIDEGATE_SKOPS_TRUSTED has it."""
    return tuple(name.strip() for name in value.split(",") if name.strip())
