"""Requests and answers without sockets, on real estimators."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.compose import ColumnTransformer, make_column_selector
from sklearn.datasets import load_iris
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import LinearSVC

from sklearn_estimators import Failing, Fixed
from sklearn_support import matrix
from tidegate_sklearn.errors import ModelError, RequestError
from tidegate_sklearn.model import Model, load
from tidegate_sklearn.protocol import infer

# the model gets its columns in its own order but without their names: the server silences this for its process
pytestmark = pytest.mark.filterwarnings("ignore:X does not have valid feature names")

ROWS = load_iris().data[[0, 75, 149]]


def answer(model: Model, request: Any, version: str | None = None) -> Any:
    return orjson.loads(infer(model, "m", version, orjson.dumps(request)))


def column(name: str, datatype: str, data: list[Any], shape: list[int] | None = None) -> dict[str, Any]:
    return {"name": name, "shape": shape or [len(data)], "datatype": datatype, "data": data}


@pytest.fixture(scope="module")
def iris_model(iris_pipeline: Any) -> Model:
    return Model.of(iris_pipeline, "sklearn_joblib")


@pytest.fixture(scope="module")
def mixed(store: Callable[[Any], Path]) -> Model:
    """Who paid, by age (a number) and plan (a string): fitted on a data frame, its columns selected by name."""
    table = pd.DataFrame({"age": [20, 30, 40, 50], "plan": ["free", "free", "pro", "pro"]})
    encoder = ColumnTransformer([("plan", OneHotEncoder(), ["plan"]), ("age", StandardScaler(), ["age"])])
    return load(store(make_pipeline(encoder, LogisticRegression()).fit(table, ["no", "no", "yes", "yes"])))


def test_labels_are_bytes(iris_model: Model) -> None:
    assert answer(iris_model, matrix(ROWS)) == {
        "model_name": "m",
        "outputs": [
            {"name": "predict", "shape": [3], "datatype": "BYTES", "data": ["setosa", "versicolor", "virginica"]}
        ],
    }


def test_id_and_version_come_back(iris_model: Model) -> None:
    got = answer(iris_model, {"id": "42", **matrix(ROWS)}, "v2")
    assert (got["id"], got["model_version"]) == ("42", "v2")


@pytest.mark.parametrize("datatype", ["FP64", "FP32", "FP16"])
def test_any_numeric_datatype(iris_model: Model, datatype: str) -> None:
    assert answer(iris_model, matrix(ROWS, datatype)) == answer(iris_model, matrix(ROWS))
    assert answer(iris_model, matrix(ROWS.round().astype(int), "UINT8")) == answer(iris_model, matrix(ROWS.round()))


def test_probabilities_by_output_or_by_parameter(iris_model: Model, iris_pipeline: Any) -> None:
    expected = iris_pipeline.predict_proba(ROWS)
    for request, names in [
        ({"outputs": [{"name": "predict_proba"}]}, ["predict_proba"]),
        ({"outputs": [{"name": "predict_proba"}, {"name": "predict"}]}, ["predict_proba", "predict"]),
        ({"parameters": {"predict_proba": True}}, ["predict", "predict_proba"]),
        ({"parameters": {"predict_proba": False}}, ["predict"]),
        ({"parameters": {"predict_proba": True}, "outputs": [{"name": "predict"}]}, ["predict"]),
    ]:
        outputs = answer(iris_model, {**matrix(ROWS), **request})["outputs"]
        assert [output["name"] for output in outputs] == names
        for output in outputs:
            if output["name"] == "predict_proba":
                assert (output["shape"], output["datatype"]) == ([3, 3], "FP64")
                assert np.array_equal(np.reshape(output["data"], (3, 3)), expected)


def test_columns_by_name_in_any_order(mixed: Model) -> None:
    plan = column("plan", "BYTES", ["free", "pro"])
    for age in (column("age", "INT64", [20, 50]), column("age", "FP32", [20, 50], [2, 1])):
        for inputs in ([age, plan], [plan, age]):
            assert answer(mixed, {"inputs": inputs})["outputs"][0]["data"] == ["no", "yes"]


def test_columns_give_what_the_data_frame_gives(store: Callable[[Any], Path]) -> None:
    table = pd.DataFrame(
        {
            "age": [20, 30, None, 50, 25, 60],
            "plan": ["free", "free", "pro", np.nan, "pro", "free"],  # as a CSV file is read
            "note": ["good day", "bad day", "good", "bad", "day", "fine"],
            "visits": [1, 2, 3, 1, 2, 3],
            "member": [True, False, True, False, True, True],
        }
    )
    numbers = ColumnTransformer([("inner", StandardScaler(), ["visits"])], remainder="passthrough")
    encoder = ColumnTransformer(
        [
            ("by selector", OneHotEncoder(handle_unknown="ignore"), make_column_selector(pattern="plan|visits")),
            ("by one name", TfidfVectorizer(), "note"),
            ("by slice", make_pipeline(numbers, SimpleImputer()), slice("visits", "member")),
            ("by names", SimpleImputer(), ["age"]),
            ("by position", "passthrough", [4]),
        ]
    )
    labels = ["no", "yes", "no", "yes", "yes", "no"]
    pipeline = GridSearchCV(make_pipeline(encoder, LogisticRegression()), {}, cv=2).fit(table, labels)
    datatypes = {"age": "FP64", "plan": "BYTES", "note": "BYTES", "visits": "INT64", "member": "BOOL"}
    inputs = [
        column(name, datatypes[name], [None if pd.isna(value) else value for value in table[name].tolist()])
        for name in reversed(table.columns)
    ]
    (got,) = answer(load(store(pipeline)), {"inputs": inputs, "outputs": [{"name": "predict_proba"}]})["outputs"]
    assert np.reshape(got["data"], got["shape"]) == pytest.approx(pipeline.predict_proba(table))


def test_numeric_columns_equal_the_matrix(iris_pipeline: Any) -> None:
    data = load_iris()
    model = HistGradientBoostingClassifier(max_iter=3).fit(data.data, data.target)
    model.feature_names_in_ = np.array(["a", "b", "c", "d"], dtype=object)
    served = Model.of(model, "sklearn_joblib")
    columns = [column(name, "FP64", ROWS[:, index].tolist()) for index, name in enumerate("abcd")]
    assert answer(served, {"inputs": columns[::-1]}) == answer(served, matrix(ROWS))
    assert answer(served, matrix([[None] * 4]))["outputs"][0]["datatype"] == "INT64"  # missing values reach the model


def test_one_named_feature() -> None:
    model = LinearRegression().fit([[0.0], [1.0]], [0.0, 2.0])
    model.feature_names_in_ = np.array(["x"], dtype=object)
    served = Model.of(model, "sklearn_joblib")
    assert answer(served, {"inputs": [column("x", "FP64", [3])]})["outputs"][0]["data"] == pytest.approx([6])
    assert answer(served, matrix([[3]], "INT8"))["outputs"][0]["data"] == pytest.approx([6])


def test_text() -> None:
    texts = ["good day", "bad day"]
    served = Model.of(
        make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, [True, False]), "sklearn_joblib"
    )
    for shape in ([2], [2, 1]):
        got = answer(served, {"inputs": [column("input", "BYTES", texts, shape)]})
        assert got["outputs"] == [{"name": "predict", "shape": [2], "datatype": "BOOL", "data": [True, False]}]
    assert served.inputs == ({"name": "input", "datatype": "BYTES", "shape": [-1]},)
    assert served.outputs[0] == {"name": "predict", "datatype": "BOOL", "shape": [-1]}


def test_metadata(iris_model: Model, mixed: Model) -> None:
    assert iris_model.inputs == ({"name": "input", "datatype": "FP64", "shape": [-1, 4]},)
    assert iris_model.outputs == (
        {"name": "predict", "datatype": "BYTES", "shape": [-1]},
        {"name": "predict_proba", "datatype": "FP64", "shape": [-1, 3]},
    )
    assert [tensor["name"] for tensor in mixed.inputs] == ["age", "plan"]
    assert mixed.outputs[1] == {"name": "predict_proba", "datatype": "FP64", "shape": [-1, 2]}
    many = Model.of(LinearRegression().fit([[0.0], [1.0]], [[0.0, 1], [1, 2]]), "sklearn_joblib")
    assert many.outputs == ({"name": "predict", "datatype": "FP64", "shape": [-1, 2]},)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ([], "must be a JSON object"),
        ({}, "inputs must be an array of at least one tensor"),
        ({"inputs": []}, "inputs must be an array of at least one tensor"),
        ({"inputs": {}}, "inputs must be an array of at least one tensor"),
        ({**matrix(ROWS), "id": 7}, "id must be a string"),
        ({**matrix(ROWS), "parameters": []}, "parameters must be an object"),
        ({**matrix(ROWS), "parameters": {"predict_proba": 1}}, "must be true or false"),
        ({**matrix(ROWS), "outputs": []}, "outputs must be an array"),
        ({**matrix(ROWS), "outputs": ["predict"]}, "each of outputs must be an object"),
        ({**matrix(ROWS), "outputs": [{"name": "logits"}]}, "no output 'logits'; it has predict, predict_proba"),
        (matrix(ROWS[:, :3]), r"input 'input' has shape \[3, 3\]; the model takes \[rows, 4\]"),
        (matrix(ROWS[0]), r"has shape \[4\]; the model takes \[rows, 4\]"),
        (matrix(np.empty((0, 4))), "no rows"),
        (matrix([["a"] * 4], "BYTES"), "the model refused the input: could not convert string to float"),
        (matrix([[None] * 4]), "the model refused the input: Input X contains NaN"),
        ({"inputs": matrix(ROWS)["inputs"] * 2}, "given more than once: input"),
        ({"inputs": [column("a", "FP64", [1]), column("b", "FP64", [1])]}, "fitted without feature names"),
    ],
)
def test_a_wrong_request_is_the_clients_fault(iris_model: Model, request_: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        answer(iris_model, request_)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([column("age", "FP64", [1])], "missing: plan"),
        ([column("age", "FP64", [1]), column("Plan", "BYTES", ["pro"])], "missing: plan; unknown: Plan"),
        ([column("age", "FP64", [1, 2]), column("plan", "BYTES", ["pro"])], "number of rows: 'age' 2, 'plan' 1"),
        ([column("age", "FP64", [1, 2], [1, 2]), column("plan", "BYTES", ["pro"])], r"found 'age' \[1, 2\]"),
        (
            [column("age", "FP64", [1]), column("plan", "BYTES", ["gold"])],
            "refused the input: Found unknown categories",
        ),
        ([column("table", "FP64", [1, 2, 3], [1, 3])], r"takes \[rows, 2\], or its features as columns by name"),
        ([column("age", "FP64", []), column("plan", "BYTES", [])], "no rows"),
    ],
)
def test_wrong_columns(mixed: Model, inputs: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        answer(mixed, {"inputs": inputs})


@pytest.mark.parametrize("body", [b"", b"{", b'{"inputs":[NaN]}', b"[1e999]", b'"\xff"', b"[" * 5000])
def test_what_is_not_json(iris_model: Model, body: bytes) -> None:
    with pytest.raises(RequestError, match="not valid JSON"):
        infer(iris_model, "m", None, body)


def test_a_model_without_probabilities() -> None:
    model = Model.of(LinearSVC().fit([[0.0], [1.0]], [0, 1]), "sklearn_joblib")
    with pytest.raises(RequestError, match="no output 'predict_proba'; it has predict"):
        answer(model, {**matrix([[1.0]]), "outputs": [{"name": "predict_proba"}]})


def test_a_failing_model_keeps_its_secrets() -> None:
    with pytest.raises(ModelError, match=r"^the model's predict failed with RuntimeError; the log says why$"):
        answer(Model.of(Failing(), "sklearn_joblib"), matrix([[1.0]]))


def test_not_a_number_never_makes_invalid_json() -> None:
    model = Model.of(Fixed(np.array([np.nan, np.inf])), "sklearn_joblib")
    assert answer(model, matrix([[1.0]]))["outputs"][0]["data"] == [None, None]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
FIELDS = st.sampled_from(["name", "shape", "datatype", "data", "parameters"])


@given(field=FIELDS, junk=JSON, top=st.sampled_from(["id", "inputs", "outputs", "parameters", "other"]), more=JSON)
def test_junk_is_refused_or_served_but_never_breaks(
    iris_model: Model, field: str, junk: Any, top: str, more: Any
) -> None:
    request = matrix(ROWS)
    request["inputs"][0][field] = junk
    for body in (junk, request, {**matrix(ROWS), top: more}):
        with contextlib.suppress(RequestError):
            orjson.loads(infer(iris_model, "m", None, orjson.dumps(body)))
