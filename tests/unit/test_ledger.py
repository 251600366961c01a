"""Lines of the ledger, what is read of them, and what a replay says."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from tidegate.api.rollout import RolloutSpec
from tidegate.cli import main
from tidegate.core.rollout import ledger
from tidegate.core.rollout.counts import Reading, Requests, Rewards, Sample
from tidegate.core.rollout.ledger import Line, chains
from tidegate.replay.ledger import BadLedger, parse, replay
from world import World, container


def rolled(seconds: int = 900, **rollout: Any) -> World:
    """A world in which v2 was rolled out, for better or worse."""
    world = World()
    world.submit(container("v1", rollout=rollout))
    operator = world.run(30)
    world.submit(container("v2", rollout=rollout))
    world.errors["v2"] = 0.02
    world.run(seconds, operator)
    return world


@pytest.fixture(scope="module")
def degraded() -> World:
    return rolled()


@pytest.fixture(scope="module")
def unnoticed() -> World:
    return rolled(guardrails=[{"name": "errors", "errors": {"maxIncrease": "5%"}}])


def lines_of(world: World) -> list[Line]:
    """What is not of the kind start."""
    return [line for line in world.ledger if line["kind"] != "start"]


def told(lines: list[Line]) -> bytes:
    return "".join(ledger.text(line) + "\n" for line in lines).encode()


# --- lines ---


@pytest.mark.parametrize(
    "sample",
    [
        Sample(5.0, Reading(4.5, {"a": Requests(7, 1, {5.0: 3, math.inf: 7}), "b": Requests()}, "mark")),
        Sample(5.0, Reading(4.5, trouble="no answer")),
        Sample(5.0, Reading(4.5, trouble="a change comes into force", passing=True)),
        Sample(
            5.25,
            Reading(4.5, {"a": Requests(7)}),
            Reading(4.75, {"a": Rewards(3, 1.1, 0.7)}, "m", "stale"),
            {"drift": 0.1, "other": math.inf},
            {"third": "the query has no value"},
        ),
    ],
)
def test_a_sample_comes_back_as_it_was(sample: Sample) -> None:
    assert ledger.sample_read(json.loads(json.dumps(ledger.sample_written(sample), allow_nan=False))) == sample


def test_lines_say_what_was_seen_and_what_was_decided(degraded: World) -> None:
    lines = lines_of(degraded)
    first, last = lines[0], lines[-1]
    assert {(line["namespace"], line["deployment"]) for line in lines} == {("default", "churn")}
    assert first["prev"] == ""
    assert [line["prev"] for line in lines[1:]] == [line["id"] for line in lines[:-1]]
    assert all(ledger.intact(line) for line in lines)
    assert not ledger.intact({**last, "t": last["t"] + 1})
    counts, served = last["sample"]["requests"]["versions"], degraded.counted[last["candidate"]]
    assert counts[last["candidate"]][:2] == [served.requests, served.errors], "none came after"
    rejected = degraded.status.rejected
    assert rejected is not None
    assert last["decision"] == {"ended": True, "reason": "Degraded", "weight": 0, "message": rejected.message}
    assert last["guardrails"]["errors"]["degraded"] == rejected.guardrails[0].degraded
    moves = [line["decision"] for line in lines if line["decision"]["reason"] == "Advancing"]
    assert [move["weight"] for move in moves] == [split["v2"] for split in degraded.history if split.get("v2")]
    assert all("moving to weight" in move["message"] for move in moves)


def test_settings_are_told_in_full_ahead_of_a_line(degraded: World) -> None:
    starts = [line for line in degraded.ledger if line["kind"] == "start"]
    assert [start["before"] for start in starts] == [line["id"] for line in lines_of(degraded)]
    settings = starts[0]["settings"]
    assert settings["rollout"]["risk"]["falseRollback"] == 0.01, "defaults too: another release may have others"
    assert settings["scaling"]["window"] == "60s"
    assert {start["digest"] for start in starts} == {lines_of(degraded)[0]["settings"]}


@pytest.mark.parametrize(
    ("act", "reason", "weight"),
    [
        (lambda w: w.request("abort #1"), "Aborted", 0),
        (lambda w: w.submit(container("v3")), "Superseded", 0),
        (lambda w: w.submit(container("v1")), "Ended", 0),
        (lambda w: w.failing.add("v2"), "CandidateFailed", 0),
        (lambda w: w.failing.add("v1"), "Promoted", 100),
        (lambda w: w.request("promote #1"), "Promoted", 100),
    ],
)
def test_whatever_ends_a_rollout_is_its_last_line(act: Any, reason: str, weight: int) -> None:
    world = World()
    world.submit(container("v1"))
    operator = world.run(30)
    world.submit(container("v2"))
    world.run(60, operator)
    assert 0 < world.weights()["v2"] < 100
    act(world)
    world.run(180, operator)
    first = chains(world.ledger)[0]
    assert first.ended
    decision = first.lines[-1]["decision"]
    assert (decision["reason"], decision["weight"]) == (reason, weight)
    assert replay(first).differs == ""


def test_being_late_is_told_once() -> None:
    world = World()
    world.submit(container("v1", rollout={"deadline": "5m"}))
    operator = world.run(30)
    world.submit(container("v2", rollout={"deadline": "5m"}))
    world.run(60, operator)
    world.rate = 0.0
    world.run(900, operator)
    (chain,) = chains(world.ledger)
    (late,) = [line for line in chain.lines if "not proven by" in line["decision"].get("message", "")]
    assert late["decision"]["reason"] == "DeadlineExceeded"
    assert not chain.ended


def test_a_baseline_that_comes_and_goes_under_way_is_replayed(tmp_path: Path) -> None:
    world = World()
    world.submit(container("v1"))
    operator = world.run(30)
    for rollout in ({}, {"baseline": True}, {}):
        world.submit(container("v2", rollout=rollout))
        world.run(60, operator)
    world.run(600, operator)
    (chain,) = chains(world.ledger)
    assert chain.whole
    assert chain.ended
    assert {line["at"].get("baseline", "")[:2] for line in chain.lines if "at" in line} == {"", "v1"}
    outcome = replay(chain, RolloutSpec.model_validate(WIDE))
    assert (outcome.differs, outcome.replayed) == ("", len(chain.lines))
    assert outcome.other
    assert "compared with a baseline, as it was then" in outcome.other.notes


def test_what_is_not_judged_has_no_lines() -> None:
    for rollout in ({"strategy": "BlueGreen"}, {"guardrails": [], "steps": [{"weight": 50, "pause": {"for": "10s"}}]}):
        assert rolled(**rollout).ledger == []


# --- reading ---


def test_a_line_on_which_none_builds_is_left_out(degraded: World) -> None:
    lines = list(degraded.ledger)
    at = next(index for index, line in enumerate(lines) if line["kind"] != "start" and line["weight"])
    orphan = {**lines[at], "t": lines[at]["t"] - 1}
    orphan["id"] = ledger.digest({key: value for key, value in orphan.items() if key != "id"})
    (chain,) = chains([*lines[:at], orphan, orphan, *lines[at:], lines[at]])
    assert list(chain.lines) == lines_of(degraded)


def test_a_first_line_alone_is_left_out_unless_nothing_follows(degraded: World) -> None:
    first = lines_of(degraded)[0]
    orphan = {**first, "t": first["t"] - 1}
    orphan["id"] = ledger.digest({key: value for key, value in orphan.items() if key != "id"})
    (chain,) = chains([orphan, *degraded.ledger])
    assert list(chain.lines) == lines_of(degraded)
    (alone,) = chains([orphan])
    assert list(alone.lines) == [orphan]


def test_a_ledger_whose_first_lines_are_gone_is_replayed_from_where_it_can_be(degraded: World) -> None:
    lines = lines_of(degraded)
    start = next(line for line in degraded.ledger if line["kind"] == "start" and line["before"] == lines[9]["id"])
    (chain,) = chains([*lines[5:9], start, *lines[9:]])
    outcome = replay(chain)
    assert not chain.whole
    assert (outcome.differs, outcome.replayed) == ("", len(lines) - 9)
    assert outcome.found.verdict == "Degraded"
    (without,) = chains(lines[5:])
    assert (replay(without).replayed, replay(without).differs) == (0, "")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace('"reason":"Judging"', '"reason":"Healthy"', 1), "it is not as it was written"),
        (lambda text: text.replace('"falseRollback":0.01', '"falseRollback":0.5', 1), "it is not as it was written"),
        (lambda text: text.replace('"v":1', '"v":2', 1), "its form is 2, this release reads 1"),
        (lambda text: "[]\n" + text, "line 1: no line of a ledger"),
        (lambda _: "nonsense\n", "no line of a ledger"),
    ],
)
def test_what_was_changed_is_told(degraded: World, change: Any, said: str) -> None:
    text = told(degraded.ledger).decode()
    changed = change(text)
    assert changed != text
    with pytest.raises(BadLedger, match=said):
        parse(changed.encode().splitlines(), "ledger")


def test_what_was_cut_off_is_left_out_and_told(degraded: World) -> None:
    whole = told(degraded.ledger)
    found = parse(whole[: len(whole) // 2].splitlines(), "ledger")
    (chain,) = found.rollouts
    assert replay(chain).differs == ""
    assert found.left_out == [
        f"ledger, line {len(whole[: len(whole) // 2].splitlines())}: not JSON; it may have been cut off"
    ]


# --- again ---


@dataclass
class Rich(World):
    """A world whose samples have everything: latency, rewards, and the values of queries."""

    slow_share: dict[str, float] = field(default_factory=dict)
    drift: float = 0.1

    def _sample(self, deployment: Any) -> Sample | None:
        sample = super()._sample(deployment)
        if sample is None:
            return None

        def timed(version: str, counts: Requests) -> Requests:
            late = round(counts.requests * self.slow_share.get(version.split("-")[0], 0.04))
            fast = (counts.requests - late) // 3
            histogram = {50.0: fast, 250.0: counts.requests - late, math.inf: counts.requests}
            return Requests(counts.requests, counts.errors, histogram)

        def rewarded(counts: Requests) -> Rewards:
            return Rewards(counts.requests, 0.7 * counts.requests, 0.5 * counts.requests)

        whole = sample.requests.versions
        timed_ones = {version: timed(version, counts) for version, counts in whole.items()}
        rewards = {version: rewarded(counts) for version, counts in whole.items()}
        return replace(
            sample,
            requests=replace(sample.requests, versions=timed_ones),
            rewards=Reading(sample.t, rewards, "feedback"),
            values={"drift": self.drift} if self.drift else {},
            troubles={} if self.drift else {"drift": "the query has no value"},
        )


GUARDRAILS = [
    {"name": "errors", "errors": {"maxIncrease": "5%"}},
    {"name": "tail", "latency": {"maxIncrease": "5%"}},
    {"name": "slow", "latency": {"slowerThan": "60ms", "maxIncrease": "5%"}},
    {"name": "value", "reward": {"minDelta": -0.2}},
    {"name": "drift", "query": {"promql": "drift", "max": 0.2, "for": "20s"}},
]


@pytest.mark.parametrize(
    ("happens", "reason"),
    [
        (lambda w: None, "Promoted"),
        (lambda w: w.slow_share.update(v2=0.5), "Degraded"),
        (lambda w: setattr(w, "drift", 0.5), "Degraded"),
        (lambda w: setattr(w, "drift", math.inf), "Judging"),
        (lambda w: setattr(w, "drift", 0.0), "Judging"),
    ],
)
def test_every_kind_of_guardrail_comes_out_the_same_again(happens: Any, reason: str) -> None:
    world, rollout = Rich(), {"guardrails": GUARDRAILS}
    world.submit(container("v1", rollout=rollout))
    operator = world.run(30)
    world.submit(container("v2", rollout=rollout))
    happens(world)
    world.run(400, operator)
    (chain,) = parse(told(world.ledger).splitlines(), "ledger").rollouts
    outcome = replay(chain)
    assert (outcome.differs, outcome.replayed) == ("", len(chain.lines))
    assert chain.lines[-1]["decision"]["reason"] == reason
    assert outcome.found.guardrails.keys() == {g["name"] for g in GUARDRAILS}


def forged(world: World, change: Any) -> bytes:
    """A ledger whose lines were changed and are whole all the same."""
    lines, renamed = [], {"": ""}
    for line in lines_of(world):
        new = json.loads(json.dumps(line))
        change(new)
        new["prev"] = renamed[line["prev"]]
        del new["id"]
        new["id"] = renamed[line["id"]] = ledger.digest(new)
        lines.append(new)
    first = next(line for line in world.ledger if line["kind"] == "start")
    return told([{**first, "before": lines[0]["id"]}, *lines])


def less_errors(line: dict[str, Any]) -> None:
    for count in line.get("sample", {}).get("requests", {}).get("versions", {}).values():
        count[1] //= 10


def weight_of(line: dict[str, Any]) -> None:
    if line["decision"]["reason"] == "Advancing":
        line["decision"]["weight"] += 1


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        (lambda line: None, ""),
        (less_errors, "errors: degraded"),
        (weight_of, "decision Advancing at weight 11% is Advancing at weight 10% now"),
        (lambda line: line.update(verdict="Healthy"), "verdict Healthy is Undecided now"),
        (lambda line: line.update(doubt="no idea"), "doubt 'no idea' is '' now"),
        (lambda line: line.get("replicas", {}).update(candidate=0), "is Warming"),
        (lambda line: line.update(guardrails={}), "guardrails  are errors now"),
    ],
)
def test_the_first_line_that_comes_out_otherwise_is_told(degraded: World, change: Any, differs: str) -> None:
    (chain,) = parse(forged(degraded, change).splitlines(), "ledger").rollouts
    outcome = replay(chain)
    assert differs in outcome.differs
    assert bool(outcome.differs) is bool(differs)
    assert outcome.differs or outcome.replayed == len(chain.lines)


def run(*args: str | Path, code: int = 0, **more: Any) -> Result:
    result = CliRunner().invoke(main, ["replay", *map(str, args)], **more)
    assert result.exit_code == code, result.output
    return result


def kept(world: World, path: Path) -> Path:
    path.write_bytes(told(world.ledger))
    return path


def test_the_command_says_the_same_verdict_again(degraded: World, tmp_path: Path) -> None:
    path = kept(degraded, tmp_path / "churn.jsonl")
    said = run(path).stdout
    rejected = degraded.status.rejected
    assert rejected is not None
    assert "decided   Degraded at 2026-01-01 00:0" in said
    assert rejected.message in said
    assert f"replayed  the same, {len(lines_of(degraded))} lines: Degraded at 00:0" in said
    (found,) = [json.loads(line) for line in run("-", "-o", "json", input=path.read_bytes()).stdout.splitlines()]
    assert found["replayed"]["same"] is True
    assert found["replayed"]["verdicts"][-1] == {"at": found["decided"]["at"], "verdict": "Degraded"}
    assert found["decided"]["reason"] == "Degraded"
    assert [move["weight"] for move in found["weights"]][-1] == 0
    assert "policy" not in found


def test_a_line_that_differs_ends_with_an_error(degraded: World, tmp_path: Path) -> None:
    path = tmp_path / "forged.jsonl"
    path.write_bytes(forged(degraded, less_errors))
    assert "DIFFERS: 2026-01-01 00:0" in run(path, code=1).stdout
    assert json.loads(run(path, "-o", "json", code=1).stdout)["replayed"]["same"] is False
    assert "No such file" in run(tmp_path / "none.jsonl", code=1).stderr


STRICT = {"guardrails": [{"name": "errors", "errors": {"maxIncrease": "0.1%"}}]}
WIDE = {"guardrails": [{"name": "wide", "errors": {"maxIncrease": "5%"}}]}


@pytest.mark.parametrize(
    "form",
    [
        lambda rollout: {"kind": "ModelDeployment", "metadata": {}, "spec": {"model": {}, "rollout": rollout}},
        lambda rollout: {"spec": {"model": {}, "rollout": rollout}},
        lambda rollout: {"model": {"version": "v1"}, "rollout": rollout},
        lambda rollout: {"rollout": rollout},
        lambda rollout: rollout,
    ],
)
def test_other_settings_say_what_they_would_have_concluded(
    degraded: World, unnoticed: World, tmp_path: Path, form: Any
) -> None:
    policy = tmp_path / "other.yaml"
    policy.write_text(yaml.safe_dump(form(WIDE)), encoding="utf-8")
    path = kept(degraded, tmp_path / "a.jsonl")
    found = json.loads(run(path, "--policy", policy, "-o", "json").stdout)
    assert (found["replayed"]["verdict"], found["policy"]["verdict"]) == ("Degraded", "Undecided")
    assert found["policy"]["guardrails"].keys() == {"wide"}
    assert "it would not have been rolled back by then" in run(path, "--policy", policy).stdout

    policy.write_text(yaml.safe_dump(form(STRICT)), encoding="utf-8")
    path = kept(unnoticed, tmp_path / "b.jsonl")
    assert unnoticed.status.stable.startswith("v2")  # type: ignore[union-attr]
    found = json.loads(run(path, "--policy", policy, "-o", "json").stdout)
    assert (found["replayed"]["verdict"], found["policy"]["verdict"]) == ("Healthy", "Degraded")
    assert found["policy"]["verdicts"][-1]["at"] < found["decided"]["at"]
    assert "; it would have been rolled back then" in run(path, "--policy", policy).stdout


def test_the_same_settings_as_another_policy_conclude_the_same(degraded: World, unnoticed: World) -> None:
    for world in (degraded, unnoticed):
        (chain,) = chains(world.ledger)
        spec = (
            parse(told(world.ledger).splitlines(), "x").rollouts[0].starts[chain.lines[0]["id"]]["settings"]["rollout"]
        )

        outcome = replay(chain, RolloutSpec.model_validate(spec))
        assert outcome.other == outcome.found


def test_what_was_not_asked_then_is_not_made_up(degraded: World, tmp_path: Path) -> None:
    policy = tmp_path / "other.yaml"
    guardrails = [{"name": "q", "query": {"promql": "up", "max": 1}}, {"name": "r", "reward": {}}]
    policy.write_text(yaml.safe_dump({"guardrails": guardrails}), encoding="utf-8")
    found = json.loads(run(kept(degraded, tmp_path / "a.jsonl"), "--policy", policy, "-o", "json").stdout)
    assert found["policy"]["verdict"] == "Undecided"
    assert "q: its query was not asked then" in found["policy"]["notes"]
    assert any("rewards are asked for" in note for note in found["policy"]["notes"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "rollout: {guardrails: [{name: e, errors: {maxincrease: 5%}}]}",
            "no field rollout.guardrails[0].errors.maxincrease",
        ),
        ("strategy: Sideways", "rollout.strategy: Input should be"),
        ("{a: [", "while parsing"),
        ("kind: Pod", "there are 0"),
        ("---\nrollout: {}\n---\nrollout: {}\n", "there are 2"),
        ("strategy: Immediate", "judges nothing"),
        ("guardrails: [{name: e, errors: {maxIncrease: 0%}}]", "delta must be more than 0"),
    ],
)
def test_settings_that_cannot_be_judged_by_are_told(degraded: World, tmp_path: Path, text: str, said: str) -> None:
    policy = tmp_path / "other.yaml"
    policy.write_text(text, encoding="utf-8")
    assert said in run(kept(degraded, tmp_path / "a.jsonl"), "--policy", policy, code=1).stderr


def test_options_of_traces_are_wrong_with_a_ledger_and_the_other_way_round(degraded: World, tmp_path: Path) -> None:
    path = kept(degraded, tmp_path / "a.jsonl")
    assert "--delta is for traces" in run(path, "--delta", "0.1", code=2).stderr
    assert "--output is for ledgers" in run("--traces", path, "-o", "json", code=2).stderr
