"""What a replay found, in words and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from tidegate import __version__
from tidegate.replay.ledger import At, Findings, Outcome, clock, named


def as_json(outcome: Outcome) -> str:
    """A JSON line."""
    first, last = outcome.chain.lines[0], outcome.chain.lines[-1]
    whole = {
        **{part: first[part] for part in ("namespace", "deployment", "candidate", "stable")},
        "begun": _iso(first["t"]),
        "samples": sum("sample" in line for line in outcome.chain.lines),
        "weights": _changes(outcome.weights, "weight"),
        "decided": {"at": _iso(last["t"]), **last["decision"]},
        "replayed": {
            "same": not outcome.differs if outcome.replayed or outcome.differs else None,
            "lines": outcome.replayed,
            "of": len(outcome.chain.lines),
            "differs": outcome.differs,
            **_found(outcome.found),
        },
    }
    return json.dumps(whole | ({"policy": _found(outcome.other)} if outcome.other else {}))


def _iso(t: float) -> str:
    return datetime.fromtimestamp(t, UTC).isoformat().replace("+00:00", "Z")


def _changes(changes: list[At], name: str) -> list[dict[str, Any]]:
    return [{"at": _iso(t), name: what} for t, what in changes]


def _found(found: Findings) -> dict[str, Any]:
    verdicts = _changes(found.verdicts, "verdict")
    return {"verdict": found.verdict, "verdicts": verdicts, "guardrails": found.guardrails, "notes": found.notes}


def as_text(outcome: Outcome) -> Iterator[str]:
    """Some lines for a person."""
    lines = outcome.chain.lines
    decision = lines[-1]["decision"]
    yield f"{named(outcome.chain)}, begun {clock(lines[0]['t'])}"
    given = ", ".join(f"{weight}% at {clock(t)[11:]}" for t, weight in outcome.weights)
    yield f"  weights   {given or 'none was given'}"
    said = decision["reason"] if outcome.chain.ended else f"still on: {decision['reason']}"
    yield f"  decided   {said} at {clock(lines[-1]['t'])}" + (
        f"; {decision['message']}" if "message" in decision else ""
    )
    if not outcome.replayed and not outcome.differs:
        yield "  replayed  nothing: the settings and the lines before are not in this ledger"
        return
    if outcome.differs:
        yield f"  replayed  DIFFERS: {outcome.differs}"
        yield from (
            f"            it was judged by release {r}, this is {__version__}" for r in outcome.releases - {__version__}
        )
    else:
        part = "" if outcome.replayed == len(lines) else f"the last {outcome.replayed} of "
        yield f"  replayed  the same, {part}{len(lines)} lines: {_verdicts(outcome.found)}"
    yield from _guardrails(outcome.found.guardrails)
    if outcome.other:
        yield f"  policy    {_verdicts(outcome.other)}{_but(outcome)}"
        yield from _guardrails(outcome.other.guardrails)
        yield from (f"            note: {note}" for note in outcome.other.notes)


def _verdicts(found: Findings) -> str:
    told = [f"{verdict} at {clock(t)[11:]}" for t, verdict in found.verdicts if verdict != "Undecided"]
    return ", then ".join(told) or "Undecided to the end"


def _but(outcome: Outcome) -> str:
    """What is to be said of other settings' verdict, so that nobody takes it for more than it is."""
    last = outcome.chain.lines[-1]
    other = outcome.other.verdict if outcome.other else None
    if other == "Degraded" and last["decision"]["reason"] != "Degraded":
        return "; it would have been rolled back then"
    if other != "Degraded" and last["decision"]["reason"] == "Degraded":
        return "; it would not have been rolled back by then, and nothing is known of what came later"
    return ""


def _guardrails(found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, g in found.items():
        numbers = ", ".join(f"{part} 10^{g[part]:g}" for part in ("degraded", "healthy") if part in g)
        value = f"value {g['value']:g}" if "value" in g else ""
        yield f"            {name}: {g['verdict']}" + (f" ({numbers or value})" if numbers or value else "")
