"""The pages of docs/ say what is: generated parts, links, examples and reasons."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hack.docs import PATH, reference

from pages import EXAMPLES, PAGES, ROOT, text
from tidegate.api.modeldeployment import ModelDeploymentSpec
from tidegate.cli import main
from tidegate.core.requests import VERBS

CORE = ROOT / "operator" / "tidegate" / "core"
NO_REASONS = {
    # kinds, fields' values and the like: words in capitals in core/ that no condition or Event has as its reason
    *("KServe", "ClusterLocal", "BlueGreen", "ModelDeployment", "ModelVersion", "InferenceService", "TCP", "Warning"),
    *("PodScheduled", "CrashLoopBackOff", "ErrImagePull", "ImagePullBackOff", "InvalidImageName"),
    *("CreateContainerConfigError", "GuardReport"),
}


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    found = set()
    for heading in re.findall(r"^#+ +(.+)$", re.sub(r"```.*?```", "", text(page), flags=re.DOTALL), re.MULTILINE):
        plain = "".join(letter for letter in heading.lower() if letter.isalnum() or letter in " -_")
        found.add(plain.strip().replace(" ", "-"))
    return found


def test_the_reference_is_what_the_types_and_commands_say() -> None:
    assert text(PATH) == reference(), "run: make docs"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", re.sub(r"```.*?```", "", text(page), flags=re.DOTALL)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), link
        if anchor:
            assert anchor in anchors(there), link


def test_every_decision_is_linked_from_somewhere() -> None:
    linked = {name for page in PAGES for name in re.findall(r"decisions/([a-z-]+\.md)", text(page))}
    missing = {page.name for page in (ROOT / "docs" / "decisions").iterdir()} - linked
    assert missing == set()


def test_examples_can_be_read() -> None:
    assert EXAMPLES
    for example in EXAMPLES:
        assert ModelDeploymentSpec.model_validate(example["spec"]).wire().keys() == example["spec"].keys()


def test_every_reason_is_explained() -> None:
    """Every word in CamelCase that the decisions use, but for those that are known to be no reasons."""
    words = {
        word
        for path in CORE.rglob("*.py")
        for word in re.findall(r'"((?:[A-Z][a-z]+){2,}|KServeMissing|[A-Z][a-z]+ing)"', text(path))
    }
    reasons = {word for word in words if word not in NO_REASONS}
    assert {"AwaitingApproval", "Serving", "KnativeMissing", "WeightChanged"} <= reasons
    explained = set(re.findall(r"`([A-Za-z]+)`", text(ROOT / "docs" / "concepts.md")))
    assert reasons - explained == set(), "explain them in docs/concepts.md"


def test_every_reason_that_is_explained_exists() -> None:
    tables = text(ROOT / "docs" / "concepts.md").split("## Conditions")[1].split("### Events")[0]
    explained = set(re.findall(r"^\| (?:True|False|Unknown)[^`|]*`([A-Za-z]+)` \|", tables, re.MULTILINE))
    assert len(explained) > 25
    code = "".join(text(path) for path in CORE.rglob("*.py"))
    assert {reason for reason in explained if f'"{reason}"' not in code} == set()


def test_every_verb_and_command_is_explained() -> None:
    pages = text(ROOT / "docs" / "concepts.md")
    assert [verb for verb in VERBS if f"`{verb}" not in pages] == []
    told = text(PATH)
    assert [name for name in main.commands if f"### tidegate {name}\n" not in told] == []
