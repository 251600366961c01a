"""What is generated in charts/tidegate: `python -m hack.chart` writes it, and a test finds what has drifted."""

from __future__ import annotations

from pathlib import Path

from tidegate.api import crds

from . import alerts, dashboard, readme

CHART = Path(__file__).parents[2] / "charts" / "tidegate"


def generated() -> dict[Path, str]:
    """Path of each generated file to what it should hold."""
    files = {CHART / "files" / "crds" / name: text for name, text in crds.files().items()}
    files[CHART / "files" / "dashboards" / "tidegate.json"] = dashboard.text()
    files |= {CHART / "files" / "alerts" / name: text for name, text in alerts.files().items()}
    page = CHART / "README.md"
    files[page] = readme.with_tables(page.read_text(encoding="utf-8"), CHART)
    return files
