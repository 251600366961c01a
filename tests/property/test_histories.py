"""What must hold in every history of a ModelDeployment, whatever users, clocks and pods do."""

from __future__ import annotations

import copy

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from world import World, container, files

VERSIONS = ["v1", "v2", "v3"]
ROLLOUTS = [
    {},
    {"pace": "Steady", "deadline": "1h", "onDeadline": "Rollback"},
    {"strategy": "Immediate"},
    {"strategy": "BlueGreen"},
    {"guardrails": [], "steps": [{"weight": 10}, {"weight": 40, "pause": {"for": "20s"}}]},
    {"guardrails": [], "steps": [{"pause": {}}, {"weight": 30, "pause": {}}, {"weight": 70}]},
    {"guardrails": [], "steps": [{"weight": 50, "pause": {"for": "1m"}}], "keepVersions": 1},
    {"paused": True},
    {"keepVersions": 0},
]
SCALINGS = [{}, {"min": 1}, {"min": 2, "initial": 2}, {"max": 1}, {"initial": 3}]
REQUESTS = ["approve", "promote", "abort", "undo", "undo v1", "retry", "abort v2", "nonsense"]

specs = st.builds(
    lambda make, version, rollout, scaling: make(version, rollout=rollout, scaling=scaling),
    st.sampled_from([container, files]),
    st.sampled_from(VERSIONS),
    st.sampled_from(ROLLOUTS),
    st.sampled_from(SCALINGS),
)


class Histories(RuleBasedStateMachine):
    """Users apply, ask and change their minds; pods fail and recover; the operator restarts; time passes."""

    @initialize(spec=specs)
    def begin(self, spec) -> None:
        self.world = World()
        self.world.submit(spec)
        self.operator = self.world.operator()
        self.asked = 0
        self.seen = 0

    @rule(spec=specs)
    def apply(self, spec) -> None:
        self.world.submit(spec)

    @rule(rollout=st.sampled_from(ROLLOUTS))
    def change_the_plan(self, rollout) -> None:
        self.world.submit({**self.world.deployment["spec"], "rollout": rollout})

    @rule(behind=st.booleans())
    def gateway(self, behind) -> None:
        self.world.gateway_behind = behind

    @rule(request=st.sampled_from(REQUESTS))
    def ask(self, request) -> None:
        self.asked += 1
        self.world.request(f"{request} #{self.asked}")

    @rule(version=st.sampled_from(VERSIONS))
    def fail(self, version) -> None:
        self.world.failing.add(version)

    @rule(version=st.sampled_from(VERSIONS))
    def stall(self, version) -> None:
        self.world.slow.add(version)

    @rule()
    def recover(self) -> None:
        self.world.failing.clear()
        self.world.slow.clear()

    @rule(seconds=st.sampled_from([1, 5, 30, 90, 4000]), passes=st.integers(1, 6))
    def pass_time(self, seconds, passes) -> None:
        for _ in range(passes):
            before = copy.deepcopy(self.world.status)
            self.world.step(self.operator, seconds)
            self.check_pass(before)

    @rule()
    def restart(self) -> None:
        self.operator = self.world.operator()

    def check_pass(self, before) -> None:
        after = self.world.status
        one, two = before.rollout, after.rollout
        if one and two and one.candidate == two.candidate:
            assert two.weight >= one.weight, "a weight falls to zero only, with the end of the rollout"
            if one.plan == two.plan and not two.promote:
                assert two.step - one.step in (0, 1), "one step at a time"
            assert two.approved <= two.step
        if after.stable and after.stable != before.stable:
            revisions = {r["metadata"]["labels"]["tidegate.dev/version"]: r for r in self.world.of("Revision").values()}
            promoted = revisions[after.stable]
            assert promoted["status"]["conditions"][0]["status"] == "True", "only what is ready is promoted"

    @invariant()
    def weights_sum_to_100(self) -> None:
        route = self.world.objects.get(("Route", "churn"))
        if route is not None:
            percents = [target["percent"] for target in route["spec"]["traffic"]]
            assert sum(percents) == 100
            assert all(0 <= percent <= 100 for percent in percents)
            tags = [target["tag"] for target in route["spec"]["traffic"]]
            assert len(set(tags)) == len(tags)

    @invariant()
    def what_has_traffic_has_a_workload(self) -> None:
        there = set(self.world.of("Revision"))
        assert set(self.world.gateway) <= there, "no target's workload is deleted while the gateway sends it requests"

    @invariant()
    def conditions_are_whole(self) -> None:
        status = self.world.status
        if status.observed_generation:
            assert [c.type for c in status.conditions] == ["Ready", "Servable", "Progressing", "VersionsReady"]
            assert all(c.message and c.reason for c in status.conditions)

    def teardown(self) -> None:
        """Left alone with healthy pods, every history comes to rest, and at rest nothing is written."""
        world = getattr(self, "world", None)
        if world is None:
            return
        world.failing.clear()
        world.slow.clear()
        world.gateway_behind = False
        world.run(1800, self.operator, every=60)
        world.rate = 0.0  # a candidate that somebody holds at a weight is counted as long as there are requests
        world.run(600, self.operator, every=60)
        writes, changes = world.writes, world.changes
        world.run(60, self.operator)
        assert world.writes == writes, "a second pass writes nothing"
        world.run(30)
        assert world.changes == changes, "nor does a restarted operator change anything"
        rollout = world.status.rollout
        if rollout is not None:
            waiting = world.status.condition("Progressing").reason
            assert waiting in ("Paused", "AwaitingApproval"), f"a rollout waits for a person or it ends, not {waiting}"
        elif world.status.stable:
            assert sum(world.gateway.values()) == 100
            goal = world.status.stable.split("-")[0]
            assert world.weights() == {goal: 100}
            assert set(world.pods()) <= {goal}, "a version without traffic keeps no pod"
            kept = {world.status.stable, *world.status.kept}
            workloads = world.of("Configuration") | world.of("InferenceService")
            assert {w["metadata"]["labels"]["tidegate.dev/version"] for w in workloads.values()} == kept


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


@given(first=specs, second=specs)
@settings(max_examples=20, deadline=None)
def test_there_and_back_is_as_if_never_gone(first, second) -> None:
    """A → B → A equals A: what the spec says is what there is, whatever it said before."""
    for spec in (first, second):
        spec["rollout"] = {**spec["rollout"], "strategy": "Immediate", "keepVersions": 0, "paused": False}
        spec["rollout"].pop("steps", None)
    straight, detour = World(), World()
    straight.submit(first)
    straight.run(300, every=30)
    for spec in (first, second, first):
        detour.submit(spec)
        detour.run(300, every=30)

    def shape(world: World) -> dict:
        kinds = ("Configuration", "InferenceService", "Route")
        return {
            **{(kind, name): obj["spec"] for kind in kinds for name, obj in world.of(kind).items()},
            **{("Revision", n): r["metadata"]["annotations"] for n, r in world.of("Revision").items()},
        }

    assert shape(detour) == shape(straight)
    assert detour.weights() == straight.weights() == {first["model"]["version"]: 100}
