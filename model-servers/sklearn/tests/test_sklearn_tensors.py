"""The codec: what is written is read back the same, and what is wrong is said."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import sparse

from tidegate_sklearn.errors import ModelError, RequestError
from tidegate_sklearn.tensors import DTYPES, decode, encode

SHAPES = hnp.array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=5)
NUMERIC = [dtype for name, dtype in DTYPES.items() if name != "BYTES"]
NUMBERS = st.sampled_from(NUMERIC).flatmap(
    lambda dtype: hnp.arrays(dtype, SHAPES, elements={"allow_infinity": False} if dtype.kind == "f" else None)
)
STRINGS = hnp.arrays(np.object_, SHAPES, elements=st.text(st.characters(exclude_categories=["Cs"])), fill=st.just(""))


def over_the_wire(values: Any) -> Any:
    text = orjson.dumps(encode("x", values), option=orjson.OPT_SERIALIZE_NUMPY)
    return json.loads(text, parse_constant=pytest.fail)


def same(left: NDArray[Any], right: NDArray[Any]) -> bool:
    return left.dtype == right.dtype and np.array_equal(left, right, equal_nan=left.dtype.kind == "f")


@given(NUMBERS | STRINGS, st.booleans())
def test_round_trip(values: NDArray[Any], nested: bool) -> None:
    tensor = over_the_wire(values)
    if nested:
        tensor["data"] = (
            [[None if item != item else item for item in row] for row in values.tolist()]
            if values.ndim == 2
            else tensor["data"]
        )
    assert same(decode(tensor, "inputs[0]").values, values)


@given(STRINGS)
def test_strings_of_fixed_width_are_bytes_too(values: NDArray[Any]) -> None:
    fixed = values.astype(np.str_)
    tensor = over_the_wire(fixed)
    assert tensor["datatype"] == "BYTES"
    assert tensor["data"] == fixed.reshape(-1).tolist()


def test_infinity_goes_out_as_null() -> None:
    assert over_the_wire(np.array([np.inf, -np.inf, np.nan, 1.5]))["data"] == [None, None, None, 1.5]


def test_null_comes_in_as_a_missing_value() -> None:
    for datatype, present in (("FP32", 1), ("BYTES", "a")):
        tensor = {"name": "x", "shape": [2], "datatype": datatype, "data": [None, present]}
        missing, other = decode(tensor, "inputs[0]").values
        assert np.isnan(missing)
        assert other == present


@pytest.mark.parametrize(
    ("output", "datatype", "data"),
    [
        ([True, False], "BOOL", [True, False]),
        (np.array([1, 2], dtype=object), "INT64", [1, 2]),
        (np.array([1, 2.5], dtype=object), "FP64", [1, 2.5]),
        (np.array([np.True_], dtype=object), "BOOL", [True]),
        (np.array([1, 256], dtype=">i4"), "INT32", [1, 256]),
        (np.array([1.5], dtype=np.longdouble), "FP64", [1.5]),
        (np.array([[1, 2], [3, 4]], order="F"), "INT64", [1, 2, 3, 4]),
        (sparse.csr_array([[0, 1.5]]), "FP64", [0, 1.5]),
        ([np.array([1.0]), np.array([2.0])], "FP64", [1, 2]),
    ],
)
def test_what_models_return(output: Any, datatype: str, data: list[Any]) -> None:
    tensor = over_the_wire(output)
    assert (tensor["datatype"], tensor["data"]) == (datatype, data)


@pytest.mark.parametrize(
    "output",
    [
        np.array(["2026-01-01"], dtype="datetime64[D]"),
        np.array([1j]),
        np.array([1, "a"], dtype=object),
        np.array([None, "a"], dtype=object),
        np.float64(1),
    ],
)
def test_what_the_protocol_cannot_carry(output: Any) -> None:
    with pytest.raises(ModelError, match="cannot carry"):
        encode("predict", output)


GOOD = {"name": "x", "shape": [2, 2], "datatype": "INT64", "data": [1, 2, 3, 4]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": None}, "name must be a string"),
        ({"name": ""}, "name must be a string"),
        ({"datatype": "INT65"}, "'INT65' is not known; expected one of BOOL, "),
        ({"datatype": 3}, "datatype 3 is not known"),
        ({"datatype": ["FP64"]}, "is not known"),
        ({"shape": 4}, "shape must be"),
        ({"shape": []}, "shape must be"),
        ({"shape": [2, -2]}, "shape must be"),
        ({"shape": [2, 2.0]}, "shape must be"),
        ({"shape": [2, True]}, "shape must be"),
        ({"shape": [1, 2, 2]}, "shape must be"),
        ({"shape": [2**63, 2**63]}, "wants 85070591730234615865843651857942052864 elements, data has 4"),
        ({"shape": [2, 3]}, r"shape \[2, 3\] wants 6 elements, data has 4"),
        ({"data": "1234"}, "data must be an array"),
        ({"data": [[1, 2], [3, 4, 5]]}, "nested data must be 2 arrays of 2 elements"),
        ({"data": [[1, 2], 3]}, "nested data must be 2 arrays"),
        ({"data": [[1, 2]]}, "nested data must be 2 arrays"),
        ({"data": [1, 2, 3, [4]]}, "INT64 data must be integers; found an array"),
        ({"data": [1, 2, 3, 4.5]}, "found a number with a fraction"),
        ({"data": [1, 2, 3, True]}, "found a boolean"),
        ({"data": [1, 2, 3, "4"]}, "found a string"),
        ({"data": [1, 2, 3, None]}, "found null"),
        ({"data": [1, 2, 3, {}]}, "found an object"),
        ({"data": [1, 2, 3, 2**63]}, "does not fit into INT64"),
        ({"data": [1, 2, 3, 256], "datatype": "UINT8"}, "does not fit into UINT8"),
        ({"data": [1, 2, 3, -1], "datatype": "UINT64"}, "does not fit into UINT64"),
        ({"data": [1, 2, 3, 1e39], "datatype": "FP32"}, "does not fit into FP32"),
        ({"data": [1, 2, 3, 70000], "datatype": "FP16"}, "does not fit into FP16"),
        ({"data": [1, 2, 3, 4], "datatype": "BOOL"}, "BOOL data must be true or false; found an integer"),
        ({"data": [1, 2, 3, 4], "datatype": "BYTES"}, "BYTES data must be strings .*; found an integer"),
        ({"data": [1, 2, 3, False], "datatype": "FP64"}, "FP64 data must be numbers .*; found a boolean"),
    ],
)
def test_a_wrong_input_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        decode({**GOOD, **change}, "inputs[3]")
    assert str(caught.value).startswith("inputs[3]")


def test_a_missing_field_is_named() -> None:
    with pytest.raises(RequestError, match=r"inputs\[0\] lacks shape, data"):
        decode({"name": "x", "datatype": "FP64"}, "inputs[0]")
    with pytest.raises(RequestError, match="must be an object"):
        decode([1], "inputs[0]")
