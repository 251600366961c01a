"""The command line, with a cluster that is a few dictionaries: what it prints, what it asks for, how it ends."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from click.testing import CliRunner, Result

from tidegate import __version__
from tidegate.adapters.api import ApiError
from tidegate.api import crds
from tidegate.cli import main

REQUEST = "tidegate.dev/request"
FOLDER = "/apis/tidegate.dev/v1alpha1/namespaces/shop/modeldeployments"
ACTIONS = ["promote", "abort", "undo", "retry", "pause", "resume"]


def deployment(name: str = "churn", namespace: str = "shop", **status: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": namespace, "generation": 3},
        "spec": {},
        "status": {"observedGeneration": 3} | status,
    }


def condition(kind: str, status: str, reason: str, message: str = "") -> dict[str, Any]:
    return {"type": kind, "status": status, "reason": reason, "message": message}


ROLLING = deployment(
    url="http://churn.shop.example.test",
    stable="v1-11111111",
    candidate="v2-22222222",
    weight=20,
    versions=[
        {"id": "v1-11111111", "name": "v1", "role": "Stable", "weight": 80, "revision": "churn-v1-11111111-00001"},
        {"id": "v2-22222222", "name": "v2", "role": "Candidate", "weight": 20},
    ],
    rollout={"candidate": "v2-22222222", "stable": "v1-11111111", "step": 2},
    conditions=[
        condition("Ready", "Unknown", "RollingOut", "v2 is being rolled out"),
        condition("Progressing", "False", "AwaitingApproval", "waiting for approval"),
    ],
)


TESTING = deployment(
    stable="v1-11111111",
    versions=[{"id": "v1-11111111", "name": "v1", "role": "Stable", "weight": 50}],
    experiment={
        "id": "0",
        "arms": [
            {
                "name": "control",
                "version": "v1-11111111",
                "weight": 50,
                "goal": {"count": 200, "rate": 0.5},
                "worse": 0.71,
                "worseAt": 1.602,
            },
            {
                "name": "deep",
                "version": "v2-22222222",
                "weight": 50,
                "goal": {"count": 190, "rate": 0.6123},
                "worse": 0.0,
                "worseAt": 1.602,
                "best": 0.931,
                "verdict": "Healthy",
            },
            {
                "name": "wide",
                "version": "v3-33333333",
                "weight": 0,
                "goal": {"count": 40, "bad": 9, "rate": 0.225},
                "worseAt": 1.602,
                "verdict": "Degraded",
                "out": "Degraded",
                "why": "errors: 9 of 40 responses failed",
            },
        ],
        "rate": 20.0,
        "coldStarts": 2,
    },
)


class Cluster:
    """An API server with ModelDeployments, and an operator that answers at once."""

    def __init__(self, *deployments: dict[str, Any]) -> None:
        self.objects = {f"{d['metadata']['namespace']}/{d['metadata']['name']}": d for d in deployments}
        self.patches: list[tuple[str, Any]] = []
        self.opened: list[tuple[str | None, str | None]] = []
        self.answer: Callable[[str], dict[str, Any]] | None = lambda value: {"accepted": True, "message": "done"}
        self.error: Exception | None = None

    @asynccontextmanager
    async def connected(self, kubeconfig: str | None = None, context: str | None = None) -> AsyncIterator[Cluster]:
        self.opened.append((kubeconfig, context))
        if self.error:
            raise self.error
        yield self

    async def get(self, path: str) -> Any:
        namespace, name = re.fullmatch(r".*/namespaces/(.+)/modeldeployments/(.+)", path).groups()  # type: ignore[union-attr]
        return self.objects.get(f"{namespace}/{name}")

    async def call(self, method: str, path: str, query: Any = None, body: Any = None, content_type: str = "") -> Any:
        if method == "GET":
            wanted = re.search(r"/namespaces/([^/]+)/", path)
            found = [d for d in self.objects.values() if not wanted or d["metadata"]["namespace"] == wanted[1]]
            return {"items": found}
        assert (method, content_type, query["fieldManager"]) == (
            "PATCH",
            "application/merge-patch+json",
            "tidegate-cli",
        )
        self.patches.append((path, body))
        found = await self.get(path)
        if "spec" in body:
            found["metadata"]["generation"] += 1
            if self.answer:
                found["status"]["observedGeneration"] = found["metadata"]["generation"]
        elif self.answer:
            value = body["metadata"]["annotations"][REQUEST]
            found["status"]["request"] = {"value": value} | self.answer(value)
        return found

    @property
    def asked(self) -> str:
        """The one request that was made, without its mark."""
        ((path, body),) = self.patches
        assert path == f"{FOLDER}/churn"
        value = body["metadata"]["annotations"][REQUEST]
        match = re.fullmatch(r"(.*) #\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ-[0-9a-f]{6}", value)
        assert match, "each request is a value of its own, so that it is acted on though it was made before"
        return match[1]


def copy(obj: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(obj))  # type: ignore[no-any-return]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    found = Cluster(copy(ROLLING))
    monkeypatch.setattr("tidegate.adapters.api.connected", found.connected)
    return found


def tidegate(*args: str, code: int = 0) -> Result:
    """Runs a command in namespace shop, and holds its exit code against what it should be."""
    where = ["-n", "shop"] if args[0] in (*ACTIONS, "get") and "-A" not in args and "-n" not in args else []
    result = CliRunner().invoke(main, [*args, *where])
    assert result.exit_code == code, result.output
    return result


# --- help and wrong usage ---


@pytest.mark.parametrize("command", [[], *([name] for name in sorted(main.commands))], ids=lambda c: " ".join(c))
def test_help_says_what_every_option_is_for(command: list[str]) -> None:
    told = CliRunner().invoke(main, [*command, "--help"])
    assert told.exit_code == 0
    assert told.output.startswith(f"Usage: main {' '.join(command)}".rstrip())
    assert len(told.output.splitlines()[2].strip()) > 10
    options = main.commands[command[0]].params if command else main.params
    undocumented = [p.name for p in options if p.param_type_name == "option" and not getattr(p, "help", None)]
    assert set(undocumented) <= {"output", "log_level"}, "only what its choices explain goes without a help text"


def test_h_is_help() -> None:
    assert tidegate("-h").output == tidegate("--help").output
    assert CliRunner().invoke(main, ["get", "-h"]).output.startswith("Usage: main get")


def test_every_command_is_in_the_summary_with_a_sentence() -> None:
    told = CliRunner().invoke(main, ["--help"]).output
    for name, command in main.commands.items():
        assert re.search(rf"^  {name} +\w", told, re.MULTILINE), name
        assert command.help
        assert command.help.strip().endswith(".")


def test_version() -> None:
    assert tidegate("--version").output == f"tidegate, version {__version__}\n"


@pytest.mark.parametrize(
    "args",
    [
        ["nonsense"],
        ["get", "--nonsense"],
        ["get", "a", "b"],
        ["get", "churn", "-A"],
        ["get", "-o", "yaml"],
        ["promote"],
        ["undo", "churn", "v1"],
        ["abort", "churn", "--timeout", "soon"],
        ["run", "--log-level", "loud"],
        ["run", "--port", "http"],
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2_and_says_so(cluster: Cluster, args: list[str]) -> None:
    told = CliRunner().invoke(main, args)
    assert told.exit_code == 2
    assert "Usage:" in told.output
    assert "Error:" in told.output
    assert not cluster.opened


# --- crds ---


def test_crds_prints_yaml_that_can_be_applied() -> None:
    assert list(yaml.safe_load_all(tidegate("crds").output)) == crds.definitions()


def test_crds_writes_a_folder(tmp_path: Path) -> None:
    told = tidegate("crds", "--output", str(tmp_path / "new")).output
    written = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "new").iterdir()}
    assert written == crds.files()
    assert told.splitlines() == [f"wrote {tmp_path / 'new' / name}" for name in crds.files()]


# --- get ---


def test_get_one_shows_its_versions_and_why(cluster: Cluster) -> None:
    assert tidegate("get", "churn").output.splitlines() == [
        "shop/churn  http://churn.shop.example.test",
        "",
        "VERSION  ID           ROLE       WEIGHT  REVISION",
        "v1       v1-11111111  Stable     80%     churn-v1-11111111-00001",
        "v2       v2-22222222  Candidate  20%     -",
        "",
        "Ready:         Unknown RollingOut",
        "               v2 is being rolled out",
        "Progressing:   False   AwaitingApproval",
        "               waiting for approval",
    ]


def test_get_shows_the_evidence(cluster: Cluster) -> None:
    judged = json.loads(json.dumps(ROLLING))
    judged["status"]["rollout"] |= {
        "rate": 20.0,
        "forecast": "at 20 requests/s",
        "coldStarts": 1,
        "guardrails": [
            {
                "name": "errors",
                "kind": "errors",
                "verdict": "Undecided",
                "candidate": {"count": 200, "bad": 1, "rate": 0.005},
                "stable": {"count": 800, "bad": 2, "rate": 0.0025},
                "allowed": 0.00875,
                "degraded": -0.31,
                "degradedAt": 2.3,
                "healthy": 0.52,
                "healthyAt": 1.3,
                "secondsLeft": 90,
            },
            {
                "name": "drift",
                "kind": "query",
                "verdict": "Healthy",
                "candidate": {"count": 0},
                "stable": {"count": 0},
                "value": 0.1,
                "why": "0.1 is at most 0.2",
            },
        ],
    }
    cluster.objects["shop/churn"] = judged
    told = tidegate("get", "churn").output.splitlines()
    at = told.index("GUARDRAIL  VERDICT    CANDIDATE  STABLE    ALLOWED  DEGRADED     HEALTHY     LEFT")
    assert told[at + 1 : at + 7] == [
        "errors     Undecided  1 of 200   2 of 800  0.88%    -0.3 of 2.3  0.5 of 1.3  90 s",
        "drift      Healthy    0.1        -         -        -            -           -",
        "drift: 0.1 is at most 0.2",
        "20 requests/s; DEGRADED and HEALTHY are logarithms of e-values and their limits",
        "at the beginning: at 20 requests/s",
        "cold starts meanwhile: 1",
    ]


def test_get_shows_an_experiment(cluster: Cluster) -> None:
    cluster.objects["shop/churn"] = copy(TESTING)
    told = tidegate("get", "churn").output.splitlines()
    at = next(i for i, line in enumerate(told) if line.startswith("ARM "))
    assert told[at].split()[:4] == ["ARM", "VERSION", "WEIGHT", "GOAL"]
    rows = [line.split() for line in told[at + 1 : at + 4]]
    assert rows == [
        ["control", "v1-11111111", "50%", "0.5", "(200)", "0.7", "of", "1.6", "-", "-", "-"],
        ["deep", "v2-22222222", "50%", "0.612", "(190)", "0.0", "of", "1.6", "93%", "Healthy", "-"],
        ["wide", "v3-33333333", "0%", "9", "of", "40", "-", "-", "Degraded", "Degraded"],
    ]
    assert told[at + 4 : at + 7] == [
        "wide: errors: 9 of 40 responses failed",
        "20 requests/s; LOSING is the logarithm of an e-value and its limit",
        "cold starts meanwhile: 2",
    ]


def test_get_lists(cluster: Cluster) -> None:
    cluster.objects["shop/new"] = {"metadata": {"name": "new", "namespace": "shop", "generation": 1}, "spec": {}}
    cluster.objects["other/x"] = deployment("x", "other")
    assert tidegate("get").output.splitlines() == [
        "NAMESPACE  NAME   READY    STABLE       CANDIDATE    WEIGHT  VERDICT  URL",
        "shop       churn  Unknown  v1-11111111  v2-22222222  20%     -        http://churn.shop.example.test",
        "shop       new    Unknown  -            -            -       -        -",
    ]
    assert len(tidegate("get", "-A").output.splitlines()) == 4


def test_get_of_nothing(cluster: Cluster) -> None:
    cluster.objects.clear()
    assert tidegate("get").output == "no ModelDeployments\n"
    assert json.loads(tidegate("get", "-o", "json").output) == []


def test_get_json_is_the_object(cluster: Cluster) -> None:
    assert json.loads(tidegate("get", "churn", "-o", "json").output) == ROLLING
    assert json.loads(tidegate("get", "-o", "json").output) == [ROLLING]


def test_get_says_when_the_status_is_older_than_the_spec(cluster: Cluster) -> None:
    cluster.objects["shop/churn"]["metadata"]["generation"] = 4
    assert "has not yet looked at the newest spec" in tidegate("get", "churn").output


def test_get_of_one_that_was_just_made(cluster: Cluster) -> None:
    cluster.objects["shop/churn"] = {"metadata": {"name": "churn", "namespace": "shop", "generation": 1}, "spec": {}}
    assert tidegate("get", "churn").output.startswith("shop/churn  (no URL yet)\n")


@pytest.mark.parametrize("args", [["get"], *([name] for name in ACTIONS)], ids=" ".join)
def test_what_is_not_there_is_said_and_ends_with_1(cluster: Cluster, args: list[str]) -> None:
    told = tidegate(*args, "gone", code=1)
    assert told.stderr == "Error: no ModelDeployment gone in namespace shop; `tidegate get -A` lists all\n"
    assert not cluster.patches


# --- actions ---


@pytest.mark.parametrize(
    ("args", "asked"),
    [
        (["promote", "churn"], "approve v2-22222222/2"),
        (["promote", "churn", "--full"], "promote v2-22222222"),
        (["abort", "churn"], "abort v2-22222222"),
        (["undo", "churn"], "undo"),
        (["undo", "churn", "--to", "v0"], "undo v0"),
        (["retry", "churn"], "retry"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_an_action_names_the_version_it_means_and_tells_the_answer(
    cluster: Cluster, args: list[str], asked: str
) -> None:
    assert tidegate(*args).stdout == "done\n"
    assert cluster.asked == asked


@pytest.mark.parametrize(
    ("args", "asked"),
    [
        (["promote", "churn", "--arm", "deep"], "promote deep"),
        (["abort", "churn", "--arm", "wide"], "abort wide"),
        (["abort", "churn"], "abort"),
        (["retry", "churn"], "retry"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_actions_on_an_experiment(cluster: Cluster, args: list[str], asked: str) -> None:
    cluster.objects["shop/churn"] = copy(TESTING)
    assert tidegate(*args).stdout == "done\n"
    assert cluster.asked == asked


@pytest.mark.parametrize("args", [["promote"], ["promote", "--full"]], ids=" ".join)
def test_of_an_experiment_one_has_to_say_which_is_to_be_promoted(cluster: Cluster, args: list[str]) -> None:
    cluster.objects["shop/churn"] = copy(TESTING)
    assert "say which one is to get all requests, --arm deep" in tidegate(*args, "churn", code=1).stderr
    assert not cluster.patches


@pytest.mark.parametrize("args", [["promote"], ["promote", "--full"], ["abort"]], ids=" ".join)
def test_what_needs_a_rollout_is_not_even_asked_for_without_one(cluster: Cluster, args: list[str]) -> None:
    cluster.objects["shop/churn"] = deployment(stable="v1-11111111")
    assert "no rollout of churn is on" in tidegate(*args, "churn", code=1).stderr
    assert not cluster.patches


def test_a_refusal_goes_to_stderr_and_ends_with_1(cluster: Cluster) -> None:
    cluster.answer = lambda value: {"accepted": False, "message": "nothing to retry"}
    told = tidegate("retry", "churn", code=1)
    assert (told.stdout, told.stderr) == ("", "nothing to retry\n")


@pytest.mark.parametrize(("accepted", "code"), [(True, 0), (False, 1)])
def test_json_is_the_answer_whatever_it_is(cluster: Cluster, accepted: bool, code: int) -> None:
    cluster.answer = lambda value: {"accepted": accepted, "message": "so"}
    told = json.loads(tidegate("undo", "churn", "-o", "json", code=code).stdout)
    assert (told["accepted"], told["message"]) == (accepted, "so")


def test_an_operator_that_does_not_answer_is_told_with_what_to_look_at(cluster: Cluster) -> None:
    cluster.answer = None
    for args in (["retry"], ["pause"]):
        told = tidegate(*args, "churn", "--timeout", "0", code=1)
        assert "the operator has not answered within 0 s" in told.stderr
        assert "the request stands" in told.stderr
        assert "kubectl -n tidegate-system get pods" in told.stderr


@pytest.mark.parametrize(("command", "paused"), [("pause", True), ("resume", False)])
def test_pause_and_resume_set_the_spec(cluster: Cluster, command: str, paused: bool) -> None:
    assert tidegate(command, "churn").stdout == f"{command}d: waiting for approval\n"
    assert cluster.patches == [(f"{FOLDER}/churn", {"spec": {"rollout": {"paused": paused}}})]
    told = json.loads(tidegate(command, "churn", "-o", "json").stdout)
    assert told == {"accepted": True, "message": f"{command}d: waiting for approval"}


# --- the cluster ---


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            ApiError(403, 'user "ann" cannot list modeldeployments'),
            'Error: 403: user "ann" cannot list modeldeployments\n',
        ),
        (ApiError(0, "no cluster to talk to. Set KUBECONFIG"), "Error: no cluster to talk to. Set KUBECONFIG\n"),
        (aiohttp.ClientError("refused"), "Error: the cluster cannot be reached: refused. Is KUBECONFIG right?\n"),
        (TimeoutError(), "Error: the cluster cannot be reached: no answer in time. Is KUBECONFIG right?\n"),
    ],
)
def test_trouble_with_the_cluster_is_one_line_and_ends_with_1(cluster: Cluster, error: Exception, told: str) -> None:
    cluster.error = error
    assert tidegate("get", code=1).stderr == told


def test_kubeconfig_and_context_lead_to_the_cluster_and_to_the_namespace(cluster: Cluster, tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    contexts = [
        {"name": "here", "context": {"cluster": "c", "user": "u", "namespace": "shop"}},
        {"name": "there", "context": {"cluster": "c", "user": "u"}},
    ]
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "here",
                "contexts": contexts,
                "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
                "users": [{"name": "u", "user": {}}],
            }
        ),
        encoding="utf-8",
    )
    cluster.objects["default/churn"] = deployment(namespace="default", url="http://default")
    for args, first in (([], "shop/churn"), (["--context", "there"], "default/churn")):
        told = CliRunner().invoke(main, ["get", "churn", "--kubeconfig", str(path), *args])
        assert told.exit_code == 0, told.output
        assert told.output.startswith(first)
    assert cluster.opened == [(str(path), None), (str(path), "there")]
    told = CliRunner().invoke(main, ["get", "churn", "--kubeconfig", str(tmp_path / "none")])
    assert told.output.startswith("default/churn"), "without a kubeconfig, the namespace default"
