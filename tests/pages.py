"""The pages that people read, and the examples on them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


def text(page: Path) -> str:
    """What is on a page."""
    return page.read_text(encoding="utf-8")


def examples(page: Path) -> list[dict[str, Any]]:
    """The whole ModelDeployments among a page's examples."""
    blocks = re.findall(r"```yaml\n(.*?)```", text(page), re.DOTALL)
    found = [document for block in blocks for document in yaml.safe_load_all(block)]
    return [document for document in found if document and document.get("kind") == "ModelDeployment"]


EXAMPLES = [example for page in PAGES for example in examples(page)]
