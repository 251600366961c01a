"""The client of the Kubernetes API, on a real API server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from live import Kubectl
from tidegate.adapters.api import Api, ApiError, connected
from tidegate.core.events import Event
from tidegate.runtime.write import Conflict, Refused

pytestmark = pytest.mark.cluster
T = TypeVar("T")
Do = Callable[[Callable[[Api], Awaitable[T]]], T]


@pytest.fixture(scope="module")
def do(testbed: dict[str, str]) -> Do[Any]:
    """Runs something with the API."""

    def run(act: Callable[[Api], Awaitable[Any]]) -> Any:
        async def go() -> Any:
            async with connected(testbed["KUBECONFIG"]) as api:
                return await act(api)

        return asyncio.run(go())

    return run


def configuration(namespace: str, name: str, timeout: int = 60) -> dict[str, Any]:
    """A Configuration that Knative takes, and that never gets a pod: its image is nowhere."""
    container = {"name": "user-container", "image": "dev.local/nothing/of-that-name:1"}
    return {
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Configuration",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"template": {"spec": {"timeoutSeconds": timeout, "containers": [container]}}},
    }


def test_apply_makes_and_changes_an_object_and_does_nothing_the_second_time(do: Do[Any], namespace: str) -> None:
    made = do(lambda api: api.apply(configuration(namespace, "applied")))
    assert made["spec"]["template"]["spec"]["timeoutSeconds"] == 60
    again = do(lambda api: api.apply(configuration(namespace, "applied")))
    assert again["metadata"]["uid"] == made["metadata"]["uid"]
    assert again["metadata"]["generation"] == made["metadata"]["generation"]
    entries = again["metadata"]["managedFields"]
    assert [(e["manager"], e["operation"]) for e in entries if e["manager"] == "tidegate"] == [("tidegate", "Apply")]


def test_what_a_webhook_denies_is_refused_in_its_words(do: Do[Any], namespace: str) -> None:
    with pytest.raises(Refused, match=r"expected 0 <= 86400 <= \d+: spec.template.spec.timeoutSeconds"):
        do(lambda api: api.apply(configuration(namespace, "denied", timeout=86400)))
    assert do(lambda api: api.get(path(namespace, "denied"))) is None


def test_a_stale_write_is_a_conflict(do: Do[Any], namespace: str) -> None:
    made = do(lambda api: api.apply(configuration(namespace, "stale")))
    stale = configuration(namespace, "stale", timeout=61)
    stale["metadata"]["resourceVersion"] = "1"
    with pytest.raises(Conflict):
        do(lambda api: api.apply(stale))
    other = configuration(namespace, "stale", timeout=61)
    other["metadata"]["uid"] = "00000000-0000-0000-0000-000000000000"
    with pytest.raises(Conflict):
        do(lambda api: api.apply(other))
    assert do(lambda api: api.get(path(namespace, "stale")))["metadata"]["uid"] == made["metadata"]["uid"]


def test_delete_takes_exactly_the_object_that_was_seen(do: Do[Any], namespace: str) -> None:
    made = do(lambda api: api.apply(configuration(namespace, "deleted")))
    another = {**made, "metadata": {**made["metadata"], "uid": "00000000-0000-0000-0000-000000000000"}}
    do(lambda api: api.delete(another))
    assert do(lambda api: api.get(path(namespace, "deleted"))) is not None
    do(lambda api: api.delete(made))
    do(lambda api: api.delete(made))
    assert do(lambda api: api.get(path(namespace, "deleted"))) is None


def test_an_event_is_shown_by_describe_and_its_repetition_is_not(do: Do[Any], namespace: str, kubectl: Kubectl) -> None:
    about = do(lambda api: api.apply(configuration(namespace, "told")))
    event = Event("Warning", "CandidateFailed", "it broke")
    do(lambda api: api.announce(about, event))
    do(lambda api: api.announce(about, event))
    assert "CandidateFailed" in kubectl("describe", "configuration", "told", "-n", namespace)
    found = kubectl.json("get", "events", "-n", namespace, "--field-selector=reason=CandidateFailed")["items"]
    assert 1 <= len(found) <= 2, "two only if a minute passed in between"


def test_refusals_of_other_calls_have_their_status(do: Do[Any], namespace: str) -> None:
    with pytest.raises(ApiError) as missing:
        do(lambda api: api.call("GET", "/apis/nothing.example.test/v1/things"))
    assert missing.value.status == 404


def path(namespace: str, name: str) -> str:
    return f"/apis/serving.knative.dev/v1/namespaces/{namespace}/configurations/{name}"
