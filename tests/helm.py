"""Helm on the chart of this repository."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from live import ROOT

CHART = ROOT / "charts" / "tidegate"
RELEASE, NAMESPACE = "tidegate", "tidegate-system"
KUBERNETES = "1.35.0"
"""What a chart is rendered for where no cluster is asked: Helm's own guess depends on how it was built."""
KSERVE_RUNTIMES = "serving.kserve.io/v1alpha1/ClusterServingRuntime"
POD_MONITORS = "monitoring.coreos.com/v1/PodMonitor"
RULES = "monitoring.coreos.com/v1/PrometheusRule"


class HelmError(Exception):
    """helm ended with an error; the message is what it said."""


def found() -> str | None:
    """Helm's path: that of the testbed, else whatever is on PATH. None if there is none."""
    from hack.testbed import settings

    ours = settings.read().bin / "helm"
    return str(ours) if ours.exists() else shutil.which("helm")


@dataclass(frozen=True)
class Helm:
    """`helm("status", "tidegate")`: what it printed. A failure is a `HelmError`."""

    path: str
    env: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    def __call__(self, *args: str | Path, input: str | None = None) -> str:
        command = [self.path, *map(str, args)]
        done = subprocess.run(
            command, env=self.env, input=input, capture_output=True, text=True, timeout=240, check=False
        )
        if done.returncode:
            raise HelmError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def render(
        self, *settings: str, chart: Path = CHART, namespace: str = NAMESPACE, apis: tuple[str, ...] = ()
    ) -> str:
        """The chart's manifests as text. `settings` are NAME=VALUE, the value in JSON if it is not a word."""
        words = [word for api in apis for word in ("--api-versions", api)]
        words += [word for setting in settings for word in ("--set-json" if setting[-1] in ']}"' else "--set", setting)]
        return self("template", RELEASE, chart, "--namespace", namespace, "--kube-version", KUBERNETES, *words)

    def refusal(self, *settings: str) -> str:
        """Why the chart is not rendered with those settings."""
        with pytest.raises(HelmError) as refused:
            self.render(*settings)
        return str(refused.value)


def local() -> Helm:
    """Helm without a cluster; the test is skipped where there is none."""
    path = found()
    if path is None:
        pytest.skip("no helm: `make up` builds it")
    return Helm(path)


def objects(text: str) -> Iterator[dict[str, Any]]:
    """The objects in a stream of YAML documents."""
    return (document for document in yaml.safe_load_all(text) if document)
