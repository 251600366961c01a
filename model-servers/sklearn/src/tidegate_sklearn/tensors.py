"""Tensors of the Open Inference Protocol in their JSON form, to and from numpy arrays.

Missing values: JSON has neither NaN nor infinity. `null` is read as NaN in floating-point and in BYTES tensors (data
frames mark a missing string by NaN too, and it is what imputers look for); NaN and infinities in a model's output are
written as `null`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from types import NoneType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tidegate_sklearn.errors import ModelError, RequestError

DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(np.object_),
}
"""The protocol's datatypes and how their elements are held; BYTES elements are str, or NaN where missing."""

_DATATYPES = {dtype: name for name, dtype in DTYPES.items() if name != "BYTES"}

# Exact types, so that true is no integer (in Python bool is a subclass of int) and 1.5 is never cut to 1.
_ACCEPTED: Mapping[str, tuple[frozenset[type], str]] = {
    "b": (frozenset({bool}), "true or false"),
    "u": (frozenset({int}), "integers"),
    "i": (frozenset({int}), "integers"),
    "f": (frozenset({float, int, NoneType}), "numbers (null for a missing one)"),
    "O": (frozenset({str, NoneType}), "strings (null for a missing one)"),
}
_JSON_NAMES: Mapping[type, str] = {
    bool: "a boolean",
    int: "an integer",
    float: "a number with a fraction or beyond 64 bits",
    str: "a string",
    list: "an array",
    dict: "an object",
    NoneType: "null",
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input: its name and its values, of the shape that the request gave ([n] or [n, columns])."""

    name: str
    values: NDArray[Any]


def decode(tensor: object, where: str) -> Tensor:
    """Reads one element of a request's `inputs`.

    Args:
        tensor: the parsed JSON.
        where: what to call it in an error message, such as `inputs[0]`.

    Raises:
        RequestError: a field is missing or of the wrong type, the datatype is unknown, the shape is not [n] or
            [n, columns], or the data do not match shape and datatype.
    """
    if not isinstance(tensor, dict):
        raise RequestError(f"{where} must be an object with name, shape, datatype and data")
    missing = [key for key in ("name", "shape", "datatype", "data") if key not in tensor]
    if missing:
        raise RequestError(f"{where} lacks {', '.join(missing)}")
    name, datatype, data = tensor["name"], tensor["datatype"], tensor["data"]
    if not isinstance(name, str) or not name:
        raise RequestError(f"{where}.name must be a string that is not empty")
    where = f"{where} ({name!r})"
    dtype = DTYPES.get(datatype) if isinstance(datatype, str) else None
    if dtype is None:
        raise RequestError(f"{where}: datatype {datatype!r} is not known; expected one of {', '.join(DTYPES)}")
    shape = _shape(tensor["shape"], where)
    if not isinstance(data, list):
        raise RequestError(f"{where}: data must be an array, flat in row-major order or nested as the shape says")
    return Tensor(name, _values(_flat(data, shape, where), dtype, datatype, where).reshape(shape))


def encode(name: str, output: Any) -> dict[str, Any]:
    """One element of a response's `outputs`, its data flat in row-major order.

    Numeric data stay a numpy array, which orjson writes without a detour through Python objects.

    Args:
        name: the output's name.
        output: what the model returned: an array-like or sparse matrix of at least one dimension.

    Raises:
        ModelError: the values have no datatype in the protocol (dates, complex numbers, mixed objects).
    """
    values: NDArray[Any] = np.asarray(output.toarray() if hasattr(output, "toarray") else output)
    shape = list(values.shape)
    flat = np.ascontiguousarray(values).reshape(-1)
    if flat.dtype == np.object_ and not all(isinstance(value, str) for value in flat):
        flat = np.array(flat.tolist())  # numbers or booleans held as objects; a mixture with strings turns into strings
        if flat.dtype.kind not in "biuf":
            raise ModelError(f"the model's {name} returned a mixture of types, which the protocol cannot carry")
    if flat.dtype.kind in "OUT":
        return {"name": name, "shape": shape, "datatype": "BYTES", "data": flat.tolist()}
    if flat.dtype == np.longdouble:
        flat = flat.astype(np.float64)
    flat = flat.astype(flat.dtype.newbyteorder("="), copy=False)
    datatype = _DATATYPES.get(flat.dtype)
    if datatype is None or not shape:
        raise ModelError(
            f"the model's {name} returned {flat.dtype} values of shape {shape}, which the protocol cannot carry"
        )
    return {"name": name, "shape": shape, "datatype": datatype, "data": flat}


def _shape(shape: object, where: str) -> tuple[int, ...]:
    if (
        not isinstance(shape, list)
        or len(shape) not in (1, 2)
        or not all(type(size) is int and size >= 0 for size in shape)
    ):
        raise RequestError(f"{where}: shape must be [rows] or [rows, columns] in whole numbers of at least 0")
    return tuple(shape)


def _flat(data: list[Any], shape: tuple[int, ...], where: str) -> list[Any]:
    """The elements in row-major order, whether `data` came flat or nested."""
    if len(shape) == 2 and data and isinstance(data[0], list):
        rows, columns = shape
        if len(data) != rows or not all(type(row) is list and len(row) == columns for row in data):
            raise RequestError(f"{where}: nested data must be {rows} arrays of {columns} elements, as its shape says")
        return list(chain.from_iterable(data))
    if len(data) != math.prod(shape):
        raise RequestError(f"{where}: shape {list(shape)} wants {math.prod(shape)} elements, data has {len(data)}")
    return data


def _values(elements: list[Any], dtype: np.dtype[Any], datatype: str, where: str) -> NDArray[Any]:
    accepted, wanted = _ACCEPTED[dtype.kind]
    surplus = set(map(type, elements)) - accepted
    if surplus:
        found = ", ".join(sorted(_JSON_NAMES[kind] for kind in surplus))
        raise RequestError(f"{where}: {datatype} data must be {wanted}; found {found}")
    if dtype.kind == "O":
        return np.array([math.nan if element is None else element for element in elements], dtype=dtype)
    if dtype.kind != "f":
        try:
            return np.array(elements, dtype=dtype)
        except OverflowError:
            raise RequestError(f"{where}: a number does not fit into {datatype}") from None
    wide = np.array(elements, dtype=np.float64)  # None becomes NaN
    with np.errstate(over="ignore"):
        narrow = wide.astype(dtype, copy=False)
    if np.isinf(narrow).any():  # JSON carries no infinity, so the narrower type made it
        raise RequestError(f"{where}: a number does not fit into {datatype}")
    return narrow
