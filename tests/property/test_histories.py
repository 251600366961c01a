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
EXPERIMENTS = [
    {"strategy": "ABTest"},
    {"strategy": "ABTest", "promoteWinner": True},
    {"strategy": "ABTest", "promoteWinner": True, "deadline": "10m", "onDeadline": "Rollback"},
    {"strategy": "ABTest", "goal": "errors", "keepVersions": 0, "promoteWinner": True},
    {"strategy": "ABTest", "paused": True},
    {"strategy": "Bandit"},
    {"strategy": "Bandit", "bandit": {"floor": 1, "maxChange": 100, "every": "10s", "halfLife": "1m"}},
]
CHALLENGERS = [{"deep": "v2"}, {"deep": "v2", "wide": "v3"}, {"wide": "v3", "deep": "v1"}, {"tall": "v3"}]
REWARDS = [{"v1": 0.5, "v2": 0.5, "v3": 0.5}, {"v1": 0.5, "v2": 0.8, "v3": 0.2}, {"v1": 0.8, "v2": 0.5, "v3": 0.5}]
SCALINGS = [{}, {"min": 1}, {"min": 2, "initial": 2}, {"max": 1}, {"initial": 3}]
REQUESTS = ["approve", "promote", "abort", "undo", "undo v1", "retry", "abort v2", "nonsense"]
REQUESTS += ["abort deep", "promote deep", "promote wide"]

single = st.builds(
    lambda make, version, rollout, scaling: make(version, rollout=rollout, scaling=scaling),
    st.sampled_from([container, files]),
    st.sampled_from(VERSIONS),
    st.sampled_from(ROLLOUTS),
    st.sampled_from(SCALINGS),
)


def compared(make, version, challengers, weight, rollout, scaling) -> dict:
    """A spec with challengers; one of them may have a weight of its own."""
    listed = [{"name": name, "model": make(its)["model"]} for name, its in challengers.items()]
    if weight and rollout["strategy"] == "ABTest":
        listed[0]["weight"] = weight
    return make(version, challengers=listed, rollout=rollout, scaling=scaling)


several = st.builds(
    compared,
    st.sampled_from([container, files]),
    st.sampled_from(VERSIONS),
    st.sampled_from(CHALLENGERS),
    st.sampled_from([None, None, 1, 40, 90]),
    st.sampled_from(EXPERIMENTS),
    st.sampled_from(SCALINGS),
)
specs = st.one_of(single, several)


class Histories(RuleBasedStateMachine):
    """Users apply, ask and change their minds; pods fail and recover; the operator restarts; time passes."""

    @initialize(spec=specs, rewards=st.sampled_from(REWARDS))
    def begin(self, spec, rewards) -> None:
        self.world = World(rewards=dict(rewards))
        self.world.submit(spec)
        self.operator = self.world.operator()
        self.asked = 0
        self.seen = 0

    @rule(spec=specs)
    def apply(self, spec) -> None:
        self.world.submit(spec)

    @rule(rollout=st.sampled_from(ROLLOUTS), experiment=st.sampled_from(EXPERIMENTS))
    def change_the_plan(self, rollout, experiment) -> None:
        spec = self.world.deployment["spec"]
        if spec.get("challengers"):
            rollout = experiment
            listed = [c if rollout["strategy"] == "ABTest" else {**c, "weight": None} for c in spec["challengers"]]
            spec = {**spec, "challengers": [{k: v for k, v in c.items() if v is not None} for c in listed]}
        self.world.submit({**spec, "rollout": rollout})

    @rule(rewards=st.sampled_from(REWARDS))
    def taste(self, rewards) -> None:
        self.world.rewards.update(rewards)

    @rule(version=st.sampled_from(VERSIONS))
    def spoil(self, version) -> None:
        self.world.errors[version] = 0.3

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
        self.world.errors.clear()

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
            assert self.ready(after.stable), "only what is ready is promoted"
        self.check_experiment(before, after)

    def ready(self, identity) -> bool:
        revisions = {r["metadata"]["labels"]["tidegate.dev/version"]: r for r in self.world.of("Revision").values()}
        return bool(revisions[identity]["status"]["conditions"][0]["status"] == "True")

    def check_experiment(self, before, after) -> None:
        one, two = before.experiment, after.experiment
        began = two and two.began and not (one and one.id == two.id and one.began == two.began)
        if began:
            assert all(self.ready(arm.version) for arm in two.arms), "nobody begins before all are ready"
        if two and two.began:
            assert sum(arm.weight for arm in two.arms) == 100
            assert not any(arm.weight for arm in two.arms if arm.out) or after.pinned or after.rollout
        if after.pinned and after.pinned.won and after.pinned != before.pinned:
            if after.request != before.request and after.request.value.startswith("promote"):
                return
            won = next(arm for arm in two.arms if arm.version == after.pinned.to)
            assert two.winner == won.name
            assert won.verdict == "Healthy"
            assert self.world.deployment["spec"]["rollout"].get("promoteWinner"), "nobody is promoted unasked"

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
        world.errors.clear()
        world.gateway_behind = False
        world.run(1800, self.operator, every=60)
        world.rate = 0.0  # a candidate that somebody holds at a weight is counted as long as there are requests
        world.run(2400, self.operator, every=60)  # one that forgets fast goes back to even weights
        writes, changes = world.writes, world.changes
        world.run(60, self.operator)
        assert world.writes == writes, "a second pass writes nothing"
        world.run(30)
        assert world.changes == changes, "nor does a restarted operator change anything"
        rollout = world.status.rollout
        if rollout is not None:
            waiting = world.status.condition("Progressing").reason
            assert waiting in ("Paused", "AwaitingApproval"), f"a rollout waits for a person or it ends, not {waiting}"
        elif (tested := world.status.experiment) and not world.status.pinned:
            self.check_rest(world, tested)
        elif world.status.stable:
            assert sum(world.gateway.values()) == 100
            goal = world.status.stable.split("-")[0]
            assert world.weights() == {goal: 100}
            assert set(world.pods()) <= {goal}, "a version without traffic keeps no pod"
            kept = {world.status.stable, *world.status.kept}
            workloads = world.of("Configuration") | world.of("InferenceService")
            assert {w["metadata"]["labels"]["tidegate.dev/version"] for w in workloads.values()} == kept

    def check_rest(self, world, tested) -> None:
        """An experiment at rest: those that are in have their weights, and nothing is left of those that are out."""
        within = [tested.control, *tested.challengers]
        shares = {arm.version.split("-")[0]: arm.weight for arm in within if arm.weight}
        assert world.weights() == (shares if tested.began else {tested.control.version.split("-")[0]: 100})
        assert set(world.pods()) <= {arm.version.split("-")[0] for arm in within}
        workloads = world.of("Configuration") | world.of("InferenceService")
        there = {w["metadata"]["labels"]["tidegate.dev/version"] for w in workloads.values()}
        assert there == {*(arm.version for arm in within), *world.status.kept}
        reason = world.status.condition("Progressing").reason
        assert reason in {"Comparing", "WinnerFound", "NoChallenger", "DeadlineExceeded", "Paused"}, reason
        assert world.status.condition("Ready").reason == "Experimenting"


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


class ExperimentHistories(Histories):
    """The same from an experiment that is on: what is rare from nothing is not from here."""

    @initialize(spec=several, rewards=st.sampled_from(REWARDS))
    def begin(self, spec, rewards) -> None:
        super().begin(spec, rewards)
        self.wait(60)

    @rule(seconds=st.sampled_from([60, 200, 400]))
    def wait(self, seconds) -> None:
        for _ in range(seconds // 10):
            before = copy.deepcopy(self.world.status)
            self.world.step(self.operator, 10)
            self.check_pass(before)

    @rule(request=st.sampled_from(["abort deep", "promote deep", "promote wide", "undo", "retry"]))
    def ask_of_it(self, request) -> None:
        self.ask(request)

    @rule(spec=several)
    def another(self, spec) -> None:
        self.world.submit(spec)


TestExperimentHistories = ExperimentHistories.TestCase
TestExperimentHistories.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


@given(first=single, second=single)
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
