"""What an experiment finds out by chance and by right, from samples to the status."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from math import inf
from typing import Any

import numpy as np

from tidegate.api.experiment import ArmStatus, ExperimentStatus
from tidegate.api.rollout import RolloutSpec
from tidegate.core.rollout import comparison
from tidegate.core.rollout.counts import Reading, Requests, Rewards, Sample

ARMS = ("control", "deep", "wide")
EDGES = (0.5, 1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10000.0, 30000.0, 60000.0, inf)


def spec(strategy: str = "ABTest", **more: Any) -> RolloutSpec:
    return RolloutSpec.model_validate({"strategy": strategy, **more})


def begun(*names: str) -> ExperimentStatus:
    """An experiment that has just given its versions even weights."""
    even = [100 // len(names)] * len(names)
    even[0] += 100 - sum(even)
    arms = [ArmStatus(name=name, version=name, weight=weight) for name, weight in zip(names, even, strict=True)]
    return ExperimentStatus(id="x", arms=arms, began=datetime(2026, 1, 1, tzinfo=UTC))


class Users:
    """Requests that are split as the weights say, each answered with a reward of 0 or 1."""

    def __init__(self, rng: np.random.Generator, means: Mapping[str, float], requests: int) -> None:
        self.rng, self.means, self.requests, self.t = rng, means, requests, 0.0
        self.seen = dict.fromkeys(means, (0, 0))

    def sample(self, experiment: ExperimentStatus, seconds: float) -> Sample:
        """What has been counted after so many seconds more."""
        self.t += seconds
        split = self.rng.multinomial(self.requests, [arm.weight / 100 for arm in experiment.arms])
        for arm, n in zip(experiment.arms, split, strict=True):
            count, liked = self.seen[arm.name]
            self.seen[arm.name] = (count + int(n), liked + int(self.rng.binomial(n, self.means[arm.name])))
        requests = {name: Requests(count) for name, (count, _) in self.seen.items()}
        rewards = {name: Rewards(count, float(liked), float(liked)) for name, (count, liked) in self.seen.items()}
        return Sample(self.t, Reading(self.t, requests, "m"), Reading(self.t, rewards, "m"))


def test_nothing_is_told_of_equal_versions_while_a_bandits_weights_follow_the_rewards() -> None:
    """Three versions that are all the best, three hundred times: in at most 5% of them any is called worse.

    The weights go after what has been liked so far, as far and as fast as they may: what comes of that is no fair
    sample of the rewards any more.
    """
    rng, runs, wrong, moved = np.random.default_rng(11), 300, 0, 0
    query = [{"name": "none", "query": {"promql": "0", "max": 1}}]  # nothing that a judge would spend time on
    told = spec("Bandit", bandit={"maxChange": 100, "floor": 5}, guardrails=query)
    assert told.risk.false_promotion == 0.05
    for _ in range(runs):
        experiment, users = begun(*ARMS), Users(rng, dict.fromkeys(ARMS, 0.5), 600)
        experiment = comparison.observe(experiment, told, users.sample(experiment, 0.1), in_force=True, cold=False)
        for _ in range(10):
            experiment = comparison.observe(experiment, told, users.sample(experiment, 60), in_force=True, cold=False)
            now = {arm.name: arm.weight for arm in experiment.arms}
            weights = comparison.bandit_weights(experiment, told, now)
            arms = [arm.model_copy(update={"weight": weights[arm.name]}) for arm in experiment.arms]
            experiment = comparison.reweighted(experiment.model_copy(update={"arms": arms}), told, anew=False)
        moved += max(arm.weight for arm in experiment.arms) > 50
        wrong += any(arm.worse_than for arm in experiment.arms)
    assert moved > runs / 2, "the weights do follow"
    assert wrong <= 0.05 * runs


def test_the_best_is_found_and_is_the_right_one() -> None:
    rng, winners = np.random.default_rng(12), []
    for run in range(90):
        means = dict.fromkeys(ARMS, 0.5) | {ARMS[run % 3]: 0.8}
        experiment, users = begun(*ARMS), Users(rng, means, 150)
        for _ in range(20):
            experiment = comparison.observe(experiment, spec(), users.sample(experiment, 5), in_force=True, cold=False)
            if len(experiment.alive) == 1:
                break
        winners += [arm.name == ARMS[run % 3] for arm in experiment.alive if len(experiment.alive) == 1]
    assert len(winners) >= 81, "nearly always"
    assert all(winners)


def test_the_largest_experiment_fits_into_the_status() -> None:
    """Six versions, eight guardrails of which six are on latency, a histogram as long as gateways have them."""
    latency = [{"name": f"tail-{i}-{'x' * 20}", "latency": {"maxIncrease": "1%"}} for i in range(6)]
    guardrails = [{"name": "errors", "errors": {}}, {"name": "value", "reward": {}}, *latency]
    names = ["control", *(f"challenger-{i}-{'x' * 18}" for i in range(5))]
    experiment = begun(*names)
    versions = {name: f"{'v' * 40}-{i:08d}" for i, name in enumerate(names)}
    arms = [arm.model_copy(update={"version": versions[arm.name]}) for arm in experiment.arms]
    experiment = experiment.model_copy(update={"arms": arms})
    rng = np.random.default_rng(13)
    counts = {version: np.zeros(len(EDGES), dtype=int) for version in versions.values()}
    for i in range(1, 30):
        for seen in counts.values():
            seen += np.cumsum(rng.multinomial(1000 if i > 3 else 10, [1 / len(EDGES)] * len(EDGES)))
        requests = {
            version: Requests(int(seen[-1]), int(seen[-1]) // 97, dict(zip(EDGES, seen.tolist(), strict=True)))
            for version, seen in counts.items()
        }
        rewards = {
            version: Rewards(int(seen[-1]), int(seen[-1]) / 3, int(seen[-1]) / 7) for version, seen in counts.items()
        }
        mark = "m" * 64
        sample = Sample(
            1.7e9 + 5.3 * i, Reading(1.7e9 + 5.3 * i, requests, mark), Reading(1.7e9 + 5.3 * i, rewards, mark)
        )
        experiment = comparison.observe(experiment, spec(guardrails=guardrails), sample, in_force=True, cold=False)
        limit = ExperimentStatus.model_json_schema()["properties"]["state"]["maxLength"]
        assert len(experiment.state) < limit / 2
    again = comparison.State.load(experiment.state)
    assert again.dump() == experiment.state
    assert len(json.loads(experiment.state)["contest"]["pairs"]) == 15
