"""Other settings to replay a ledger with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from tidegate.api.rollout import RolloutSpec
from tidegate.core.rollout.guardrails import settings
from tidegate.core.rollout.plan import judged


class BadPolicy(Exception):
    """A file with no settings to judge by; the message says why."""


def read(path: Path) -> RolloutSpec:
    """The settings of a ModelDeployment, of a `spec.rollout` or of what is below that.

    Raises:
        BadPolicy: they cannot be read, or nothing can be judged by them.
    """
    try:
        documents = [each for each in yaml.safe_load_all(path.read_text(encoding="utf-8")) if each is not None]
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadPolicy(f"{path}: {error}") from error
    found = [_rollout(each) for each in documents]
    chosen = [each for each in found if each is not None]
    if len(chosen) != 1:
        raise BadPolicy(f"{path}: give one ModelDeployment, spec.rollout or rollout; there are {len(chosen)}")
    (raw,) = chosen
    try:
        rollout = RolloutSpec.model_validate(raw)
        settings(rollout)
    except ValidationError as error:
        told = "; ".join(
            f"rollout.{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors(include_url=False)
        )
        raise BadPolicy(f"{path}: {told}") from error
    except ValueError as error:
        raise BadPolicy(f"{path}: {error}") from error
    if unknown := sorted(_unknown(raw, rollout.model_dump(mode="json", by_alias=True), "rollout")):
        raise BadPolicy(f"{path}: there is no field {', '.join(unknown)}")
    if not judged(rollout):
        raise BadPolicy(f"{path}: strategy {rollout.strategy} with these guardrails judges nothing")
    return rollout


def _rollout(document: Any) -> Any:
    """What a document has as rollout; None if it is about something else."""
    if not isinstance(document, dict) or document.get("kind", "ModelDeployment") != "ModelDeployment":
        return None
    spec = document.get("spec", document)
    if isinstance(spec, dict) and ("rollout" in spec or "model" in spec or "kind" in document):
        return spec.get("rollout", {})
    return spec


def _unknown(given: Any, read: Any, path: str) -> Iterator[str]:
    """Fields that were given and mean nothing."""
    if isinstance(given, dict) and isinstance(read, dict):
        for key, value in given.items():
            if key in read:
                yield from _unknown(value, read[key], f"{path}.{key}")
            else:
                yield f"{path}.{key}"
    elif isinstance(given, list) and isinstance(read, list):
        for index, (one, other) in enumerate(zip(given, read, strict=True)):
            yield from _unknown(one, other, f"{path}[{index}]")
