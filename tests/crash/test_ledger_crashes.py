"""The operator is stopped after each single write, and the ledger's lines are such writes: it reads the same."""

from __future__ import annotations

import pytest
from test_crashes import SCENARIOS, Scene, play

from tidegate.core.rollout.ledger import Chain, chains, text
from tidegate.replay.ledger import replay
from tidegate.runtime.queue import Key
from world import NAMESPACE, Crash, World, drive

JUDGED = ["degraded candidate", "proven candidate"]


def play_at_once(scenes: list[Scene], crash_after: int | None = None, *, restless: bool = False) -> World:
    """The world at the end, if passes are made until one writes nothing, and an operator that was stopped is back
    before any time has passed.

    `restless`: each pass is made by an operator that has just been started.
    """
    world = World(crash_after=crash_after)
    operator = world.operator()

    def settle() -> None:
        nonlocal operator
        before = -1
        while world.changes != before:
            before = world.changes
            try:
                drive(operator.reconcile(Key(NAMESPACE, "churn")))
            except Crash:
                before = -1
                operator = world.operator()
            if restless:
                operator = world.operator()

    for act, seconds in scenes:
        act(world)
        for _ in range(seconds // 10):
            world.pass_time(10)
            settle()
    return world


def lines(world: World) -> list[str]:
    """The ledger as it is read."""
    return [text(line) for chain in chains(world.ledger) for line in chain.lines]


@pytest.mark.parametrize("scenario", JUDGED)
def test_the_ledger_reads_the_same_though_the_operator_was_stopped(scenario: str) -> None:
    scenes = SCENARIOS[scenario]
    whole = play_at_once(scenes)
    expected = lines(whole)
    assert len(expected) > 5
    for write in range(1, whole.writes + 1):
        world = play_at_once(scenes, write)
        assert world.crash_after is None, "it was stopped"
        assert lines(world) == expected, f"crashed after write {write}"


@pytest.mark.parametrize("scenario", JUDGED)
def test_the_ledger_is_the_same_with_a_fresh_operator_for_each_pass(scenario: str) -> None:
    calm, restless = (play_at_once(SCENARIOS[scenario], restless=restless) for restless in (False, True))
    assert restless.ledger == calm.ledger


def told(chain: Chain) -> list[tuple[str, int]]:
    """The decisions that moved or ended a rollout."""
    decisions = [line["decision"] for line in chain.lines]
    return [(d["reason"], d["weight"]) for d in decisions if d.get("ended") or d["reason"] == "Advancing"]


@pytest.mark.parametrize("scenario", JUDGED)
def test_what_was_lost_with_a_crash_is_not_in_the_ledger_and_what_was_decided_is(scenario: str) -> None:
    """Time passes before the operator is back: other samples, the same decisions, and a line too many is left out."""
    scenes = SCENARIOS[scenario]
    whole, _ = play(scenes)
    (expected,) = chains(whole.ledger)
    orphans = 0
    for write in range(1, whole.writes + 1):
        world, _ = play(scenes, write)
        (chain,) = chains(world.ledger)
        assert chain.whole
        assert chain.ended
        assert told(chain) == told(expected), write
        outcome = replay(chain)
        assert (outcome.differs, outcome.replayed) == ("", len(chain.lines))
        orphans += len({line["id"] for line in world.ledger if line["kind"] != "start"}) > len(chain.lines)
    assert orphans == len(expected.lines), "the operator was once stopped between each line and the status"
