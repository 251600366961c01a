"""Whatever happens in a rollout: its ledger gives the same verdicts, weights and end again."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.core.rollout.ledger import chains
from tidegate.replay.ledger import replay
from world import Crash, World, container

ROLLOUTS: list[dict[str, Any]] = [
    {},
    {"pace": "Steady"},
    {"guardrails": [{"name": "errors", "errors": {"maxIncrease": "5%"}}]},
    {"guardrails": [{"name": "a", "errors": {}}, {"name": "b", "errors": {"maxRatio": 3}}], "deadline": "5m"},
    {"deadline": "2m", "onDeadline": "Rollback"},
    {"steps": [{"weight": 20, "pause": {"for": "30s"}}, {"weight": 50}]},
    {"baseline": True},
    {"paused": True},
    {"strategy": "Immediate"},
]

happenings = st.one_of(
    st.tuples(st.just("errors"), st.sampled_from([0.0, 0.001, 0.02, 0.3])),
    st.tuples(st.just("stable errors"), st.sampled_from([0.0, 0.01, 0.5])),
    st.tuples(st.just("rate"), st.sampled_from([0.0, 0.5, 20.0, 400.0])),
    st.tuples(st.just("trouble"), st.sampled_from(["", "the gateway does not answer"])),
    st.tuples(st.just("behind"), st.booleans()),
    st.tuples(st.just("fail"), st.booleans()),
    st.tuples(st.just("rollout"), st.sampled_from(ROLLOUTS)),
    st.tuples(st.just("version"), st.sampled_from(["v2", "v3"])),
    st.tuples(st.just("ask"), st.sampled_from(["promote", "abort", "retry"])),
    st.tuples(st.just("crash"), st.integers(1, 6)),
    st.tuples(st.just("pass"), st.sampled_from([30, 120, 300])),
    st.tuples(st.just("pass"), st.sampled_from([30, 120, 300])),
)


def happen(world: World, spec: dict[str, Any], what: str, value: Any) -> None:
    match what:
        case "errors":
            world.errors |= {"v2": value, "v3": value}
        case "stable errors":
            world.errors["v1"] = value
        case "rate":
            world.rate = value
        case "trouble":
            world.source_trouble = value
        case "behind":
            world.gateway_behind = value
        case "fail":
            world.failing = {"v2"} if value else set()
        case "rollout":
            spec["rollout"] = value
            world.submit(json.loads(json.dumps(spec)))
        case "version":
            spec["model"] = container(value)["model"]
            world.submit(json.loads(json.dumps(spec)))
        case "ask":
            world.request(f"{value} #{world.now}")
        case "crash":
            world.crash_after = world.writes + value


@given(first=st.sampled_from(ROLLOUTS[:7]), story=st.lists(happenings, min_size=3, max_size=25))
@settings(max_examples=40)
def test_every_rollout_comes_out_the_same_again(first: dict[str, Any], story: list[tuple[str, Any]]) -> None:
    world, spec = World(), container("v1", rollout=first)
    world.submit(spec)
    operator = world.run(30)
    happen(world, spec, "version", "v2")
    for what, value in [*story, ("pass", 120)]:
        happen(world, spec, what, value)
        for _ in range(value // 5 if what == "pass" else 1):
            try:
                world.step(operator)
            except Crash:
                operator = world.operator()

    found = chains(world.ledger)
    for chain in found:
        outcome = replay(chain)
        assert outcome.differs == ""
        assert outcome.replayed == len(chain.lines)
        assert chain.whole
        weights = [weight for _, weight in outcome.weights]
        assert weights == sorted(weights) or (weights[-1] == 0 and weights[:-1] == sorted(weights[:-1]))
    last = found[-1].lines[-1]["decision"] if found else {}
    rejected = world.status.rejected
    if last.get("ended") and rejected and rejected.id == found[-1].lines[-1]["candidate"] and not world.status.rollout:
        assert last["reason"] == rejected.reason
