"""What the caller can choose, all by environment variable, and where things are kept."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .steps import Problem

REPO = Path(__file__).resolve().parents[2]
PORT_VARIABLES = {"http": "TIDEGATE_HTTP_PORT", "prometheus": "TIDEGATE_PROMETHEUS_PORT", "s3": "TIDEGATE_S3_PORT"}
PORT_DEFAULTS = {"http": 8080, "prometheus": 9090, "s3": 9000}


@dataclass(frozen=True, eq=False)  # compared as itself, so that steps can be remembered by it
class Settings:
    cluster: str
    cache: Path
    asked_ports: Mapping[str, int]  # only those that the caller named
    images: str  # auto, pull or build

    @property
    def cluster_dir(self) -> Path:
        return self.cache / "clusters" / self.cluster

    @property
    def kubeconfig(self) -> Path:
        return self.cluster_dir / "kubeconfig"

    @property
    def bin(self) -> Path:
        return self.cache / "bin"

    @property
    def node(self) -> str:
        return f"{self.cluster}-control-plane"


def read(environ: Mapping[str, str] = os.environ) -> Settings:
    cluster = environ.get("TIDEGATE_CLUSTER") or "tidegate"
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,28}[a-z0-9])?", cluster):
        raise Problem(
            f"TIDEGATE_CLUSTER={cluster!r} is not a usable cluster name",
            "take at most 30 small letters, digits and dashes",
        )
    images = environ.get("TIDEGATE_IMAGES") or "auto"
    if images not in ("auto", "pull", "build"):
        raise Problem(f"TIDEGATE_IMAGES={images!r} is not known", "set it to auto, pull or build")
    cache = Path(environ.get("TIDEGATE_CACHE") or Path.home() / ".cache" / "tidegate").expanduser().absolute()
    ports = {}
    for name, variable in PORT_VARIABLES.items():
        if text := environ.get(variable):
            if not text.isdecimal() or not 0 < int(text) < 65536:
                raise Problem(f"{variable}={text!r} is not a port", "give a number from 1 to 65535")
            ports[name] = int(text)
    return Settings(cluster, cache, ports, images)
