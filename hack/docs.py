"""Writes docs/reference.md from the types of the API and the commands: `python -m hack.docs`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from tidegate.api import GROUP, VERSION, crds
from tidegate.cli import main as cli

PATH = Path(__file__).parents[1] / "docs" / "reference.md"

HEAD = f"""<!-- Generated from operator/tidegate by `make docs`. Do not edit. -->
# Reference

Kinds of the API group `{GROUP}/{VERSION}`, then the command line. What it all means is in [concepts.md](concepts.md).

- A **duration** is written as `30s`, `10m`, `1h30m` or `250ms`.
- A **quantity** is one of Kubernetes: `500m`, `2`, `40Gi`.
- A field in **bold** is required. A field without a default is absent unless it is given.
- A number after *at most* is of letters for a string, of entries for a list or a map.
- `kubectl explain modeldeployment.spec` shows the same in a terminal.
"""


class Pages:
    """Sections of a kind, one for each object in it. What is the same in two places is described once."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def kind(self, crd: dict[str, Any]) -> Iterator[str]:
        """Markdown about a kind."""
        names, version = crd["spec"]["names"], crd["spec"]["versions"][0]
        schema = version["schema"]["openAPIV3Schema"]
        yield f"\n## {names['kind']}\n\n{schema['description']} Short name: `{names['shortNames'][0]}`.\n"
        yield from _rules(schema)
        for part in ("spec", "status"):
            yield from self._section(f"{names['kind']}.{part}", schema["properties"][part])

    def _section(self, path: str, node: dict[str, Any]) -> Iterator[str]:
        yield f"\n### {path}\n\n{node['description']}\n"
        yield from _rules(node)
        yield "\n| field | type | default | |\n|---|---|---|---|\n"
        below: list[tuple[str, dict[str, Any]]] = []
        for name, child in node["properties"].items():
            inner, shown = _innermost(child), f"{path}.{name}{_brackets(child)}"
            of = ""
            if "properties" in inner:
                same = json.dumps([inner["properties"], inner.get("x-kubernetes-validations")], sort_keys=True)
                if same not in self._known:
                    self._known[same] = shown
                    below.append((shown, inner))
                of = f"[object](#{_anchor(self._known[same])})"
            field = f"**`{name}`**" if name in node.get("required", ()) else f"`{name}`"
            described = child["description"].replace("|", "&#124;")
            yield f"| {field} | {_type(child, of)} | {_default(child)} | {described} |\n"
        for shown, inner in below:
            yield from self._section(shown, inner)


def _rules(node: dict[str, Any]) -> Iterator[str]:
    if rules := node.get("x-kubernetes-validations"):
        yield "\nWhat is refused says so in these words:\n\n"
        yield from (f"- {rule['message']}\n" for rule in rules)


def _innermost(node: dict[str, Any]) -> dict[str, Any]:
    """What a list or map, however deep, is of; its own description stays."""
    inner = node.get("items") or node.get("additionalProperties")
    return _innermost(inner) if inner else node


def _brackets(node: dict[str, Any]) -> str:
    if "items" in node:
        return "[]" + _brackets(node["items"])
    return "{}" + _brackets(node["additionalProperties"]) if "additionalProperties" in node else ""


def _anchor(heading: str) -> str:
    """What GitHub makes of a heading."""
    return "".join(letter for letter in heading.lower() if letter.isalnum() or letter in "-_")


def _type(node: dict[str, Any], of: str) -> str:
    if "items" in node:
        return f"list of {_type(node['items'], of).split(' (')[0]} (at most {node['maxItems']})"
    if "additionalProperties" in node:
        return f"map to {_type(node['additionalProperties'], of)} (at most {node['maxProperties']})"
    if of:
        return of
    if "enum" in node:
        return " or ".join(f"`{value}`" for value in node["enum"])
    if "x-kubernetes-int-or-string" in node:
        return "quantity"
    if node.get("format") == "date-time":
        return "time"
    if node["type"] == "string":
        if "ms|s|m|h" in node.get("pattern", ""):
            return "duration"
        return f"string (at most {node['maxLength']})" if "maxLength" in node else "string"
    bounds = [str(node[bound]) for bound in ("minimum", "maximum") if bound in node]
    return f"{node['type']} ({' to '.join(bounds)})" if bounds else str(node["type"])


def _default(node: dict[str, Any]) -> str:
    value = node.get("default")
    return "" if value in (None, "") or isinstance(value, dict) else f"`{json.dumps(value)}`".replace('"', "")


def commands() -> Iterator[str]:
    """Markdown about the command line."""
    yield "\n## Commands\n\nExit codes: 0 done; 1 refused or failed, with the reason; 2 wrong usage.\n"
    yield "\nWhich cluster, and where in it, for every command but `run` and `crds`:\n"
    shared = {option.name: option for option in cli.commands["get"].params if option.name in _WHERE}
    yield from _options(shared.values())
    for name, command in sorted(cli.commands.items()):
        arguments = [p for p in command.params if isinstance(p, click.Argument)]
        usage = " ".join([f"tidegate {name}", *(p.make_metavar(click.Context(command)) for p in arguments)])
        yield f"\n### tidegate {name}\n\n`{usage}`: {' '.join((command.help or '').split())}\n"
        own = [p for p in command.params if p not in arguments]
        yield from _options(p for p in own if "context" not in {o.name for o in own} or p.name not in _WHERE)


_WHERE = ("namespace", "kubeconfig", "context")


def _options(options: Iterable[click.Parameter]) -> Iterator[str]:
    rows = [_option(option) for option in options if isinstance(option, click.Option)]
    yield from ["\n| option | default | |\n|---|---|---|\n", *rows] if rows else []


def _option(option: click.Option) -> str:
    words = ", ".join(f"`{word}`" for word in (*option.opts, *option.secondary_opts))
    if isinstance(option.type, click.Choice):
        words += f": {', '.join(option.type.choices)}"
    default = f"`{option.default}`" if option.show_default and option.default is not None else ""
    return f"| {words} | {default} | {option.help or ''} |\n"


def reference() -> str:
    """The whole page."""
    pages = Pages()
    return "".join([HEAD, *(text for crd in crds.definitions() for text in pages.kind(crd)), *commands()])


if __name__ == "__main__":
    PATH.write_text(reference(), encoding="utf-8")
