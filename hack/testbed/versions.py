"""The pinned versions, read from versions.toml, and the small arithmetic on them."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("versions.toml")


@dataclass(frozen=True)
class Versions:
    go_minimum: str
    modules: Mapping[str, str]
    pypi: Mapping[str, str]
    debian_suite: str
    published: Mapping[str, str]
    registry_probes: tuple[str, ...]


def parse(text: str) -> Versions:
    raw = tomllib.loads(text)
    for module, version in raw["modules"].items():
        if not re.fullmatch(r"v\d+\.\d+\.\d+", version):
            raise ValueError(f"versions.toml: {module} must be an exact release such as v1.2.3, not {version!r}")
    return Versions(
        go_minimum=raw["go"]["minimum"],
        modules=raw["modules"],
        pypi=raw["pypi"],
        debian_suite=raw["debian"]["suite"],
        published=raw["published"],
        registry_probes=tuple(raw["registries"]["probes"]),
    )


@cache
def pinned() -> Versions:
    return parse(FILE.read_text())


def number(version: str) -> tuple[int, ...]:
    """The numeric part of a version as a tuple that compares: 'go1.26.8', 'v1.35.4' and '1.26' all work."""
    found = re.search(r"\d+(?:\.\d+)*", version)
    if not found:
        raise ValueError(f"no version number in {version!r}")
    return tuple(int(part) for part in found.group().split("."))


def staging(kubernetes: str) -> str:
    """Kubernetes' libraries are released as v0.MINOR.PATCH beside Kubernetes v1.MINOR.PATCH."""
    _, minor, patch = number(kubernetes)
    return f"v0.{minor}.{patch}"


def key(*parts: Any) -> str:
    """A short hash that names an artifact by what it is made from."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:12]
