"""Inference requests of the Open Inference Protocol: JSON in, JSON out, no sockets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from tidegate_sklearn.errors import RequestError
from tidegate_sklearn.model import Model
from tidegate_sklearn.tensors import Tensor, decode, encode


def infer(model: Model, name: str, version: str | None, body: bytes) -> bytes:
    """Answers one inference request.

    Args:
        model: the model to call.
        name: the name that the answer gives as `model_name`.
        version: the answer's `model_version`; None leaves it out.
        body: the request's JSON.

    Raises:
        RequestError: the request is not one that this model can answer.
        ModelError: the model failed.
    """
    request = _parse(body)
    methods = _methods(request, model.methods)
    matrix = model.features(_tensors(request))
    response: dict[str, Any] = {"model_name": name}
    if version is not None:
        response["model_version"] = version
    if "id" in request:
        response["id"] = request["id"]
    response["outputs"] = [encode(method, model.call(method, matrix)) for method in methods]
    return orjson.dumps(response, option=orjson.OPT_SERIALIZE_NUMPY)


def _parse(body: bytes) -> dict[str, Any]:
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        hint = "; NaN and Infinity are not JSON: send null for a missing value" * (
            b"NaN" in body or b"Infinity" in body
        )
        raise RequestError(f"the body is not valid JSON: {error}{hint}") from None
    if not isinstance(request, dict):
        raise RequestError("the body must be a JSON object with inputs")
    if not isinstance(request.get("id", ""), str):
        raise RequestError("id must be a string")
    return request


def _tensors(request: dict[str, Any]) -> list[Tensor]:
    inputs = request.get("inputs")
    if not isinstance(inputs, list) or not inputs:
        raise RequestError("inputs must be an array of at least one tensor")
    tensors = [decode(tensor, f"inputs[{index}]") for index, tensor in enumerate(inputs)]
    names = [tensor.name for tensor in tensors]
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise RequestError(f"each input must be given once; given more than once: {', '.join(twice)}")
    return tensors


def _methods(request: dict[str, Any], known: Sequence[str]) -> list[str]:
    """The outputs asked for: those in `outputs`, or predict and, by the parameter predict_proba, predict_proba."""
    parameters = request.get("parameters", {})
    if not isinstance(parameters, dict):
        raise RequestError("parameters must be an object")
    with_probabilities = parameters.get("predict_proba", False)
    if not isinstance(with_probabilities, bool):
        raise RequestError("the parameter predict_proba must be true or false")
    asked = ["predict", "predict_proba"] if with_probabilities else ["predict"]
    if "outputs" in request:
        outputs = request["outputs"]
        if not isinstance(outputs, list) or not outputs:
            raise RequestError("outputs must be an array of at least one object with a name; leave it out for predict")
        if not all(isinstance(output, dict) and isinstance(output.get("name"), str) for output in outputs):
            raise RequestError("each of outputs must be an object with a name")
        asked = list(dict.fromkeys(output["name"] for output in outputs))
    unknown = [method for method in asked if method not in known]
    if unknown:
        raise RequestError(f"the model has no output {', '.join(map(repr, unknown))}; it has {', '.join(known)}")
    return asked
