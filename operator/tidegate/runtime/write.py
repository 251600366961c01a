"""Writing a decision down: status first, then the objects, and nothing that is as it should be already."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Protocol

from tidegate.api import API_VERSION
from tidegate.api.modeldeployment import ModelDeploymentStatus
from tidegate.core.decide import Decision, remembered
from tidegate.core.events import Event
from tidegate.core.names import FIELD_MANAGER
from tidegate.core.observed import Object, Observed, name
from tidegate.core.workloads import KINDS as WORKLOADS
from tidegate.runtime.queue import Key


class Conflict(Exception):
    """The object has changed since it was read; look again."""


class Refused(Exception):
    """The API server does not take the object as it is: a webhook, a policy, a quota. The message says why."""


class Cluster(Protocol):
    """What the writer needs of a cluster."""

    async def apply(self, obj: Mapping[str, Any], subresource: str | None = None) -> Object:
        """Server-side apply with Tidegate's field manager; the object as it is afterwards.

        `Conflict` if stale, `Refused` if the API server does not take it.
        """

    async def delete(self, obj: Object) -> None:
        """Deletes exactly this object (by uid); no error if it has gone."""

    async def announce(self, about: Object, event: Event) -> None:
        """Records an Event; its loss is no harm."""


class Writer:
    """Applies decisions, and remembers what it applied so that a second pass writes nothing.

    An object is left alone if it is asked to be what it was asked to be before, and Tidegate's fields in it are
    still the ones that it set then: whoever changes one takes it over in `managedFields`. The memory is only a
    saving. After a restart every object is applied once more, which changes nothing in the cluster.

    But not workloads: one that is there stays as it was made, since a release that renders it otherwise would have
    Knative cut a new Revision, and start its pods, for every version of every model.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._memory: dict[str, tuple[str, str]] = {}
        self._refused: dict[Key, dict[str, str]] = {}
        self.writes = 0
        """Calls that were made to change something."""

    async def write(self, observed: Observed, decision: Decision) -> None:
        """Carries a decision out. May stop after any single write: the next pass goes on from there."""
        deployment = observed.deployment
        if decision.status != remembered(deployment):
            await self._status(deployment, decision.status)
        present: dict[str, Object] = {_address(obj): obj for obj in (*observed.records, *observed.workloads)}
        if observed.route is not None:
            present[_address(observed.route)] = observed.route
        refused: dict[str, str] = {}
        failed: list[Exception] = []
        for obj in decision.apply:
            try:
                await self._apply(obj, present.get(_address(obj)))
            except Refused as refusal:
                refused[name(obj)] = str(refusal)
            except Exception as error:  # one object's trouble must not keep the Route from being written
                failed.append(error)
        self._remember(deployment, refused)
        if failed:
            raise failed[0]
        for record in observed.records:
            if status := decision.version_status.get(name(record)):
                await self._child_status(record, status.model_dump(mode="json", by_alias=True, exclude_none=True))
        for leftover in decision.delete:
            self.writes += 1
            await self._cluster.delete(leftover)
            self._memory.pop(_address(leftover), None)
        for event in decision.events:
            await self._cluster.announce(deployment, event)

    def refused(self, key: Key) -> Mapping[str, str]:
        """Why workloads of a deployment were refused in its last pass, by their names."""
        return self._refused.get(key, {})

    def _remember(self, deployment: Object, refused: dict[str, str]) -> None:
        key = Key(deployment["metadata"]["namespace"], name(deployment))
        self._refused.pop(key, None)
        if refused:
            self._refused[key] = refused

    def forget(self, namespace: str, deployment: str) -> None:
        """Drops what is remembered of a deployment that is gone."""
        self._refused.pop(Key(namespace, deployment), None)
        prefix = f"{namespace}/{deployment}/"
        for address in [a for a in self._memory if a.startswith(prefix)]:
            del self._memory[address]

    async def _apply(self, obj: Mapping[str, Any], present: Object | None) -> None:
        address, wanted = _address(obj), _digest(obj)
        if present is not None:
            known = self._memory.get(address)
            if known is None and obj["kind"] in WORKLOADS and _made_by_us(present):
                known = self._memory[address] = (wanted, _ours(present))
            if known == (wanted, _ours(present)):
                return
        self.writes += 1
        result = await self._cluster.apply(obj)
        if obj["kind"] != "Revision":  # they are patched only where they differ
            self._memory[address] = (wanted, _ours(result))

    async def _status(self, deployment: Object, status: ModelDeploymentStatus) -> None:
        """Writes the status, unless the object has changed since it was read: two writers never mix."""
        metadata = deployment["metadata"]
        self.writes += 1
        await self._cluster.apply(
            {
                "apiVersion": API_VERSION,
                "kind": "ModelDeployment",
                "metadata": {key: metadata[key] for key in ("name", "namespace", "uid", "resourceVersion")},
                "status": status.model_dump(mode="json", by_alias=True, exclude_none=True),
            },
            "status",
        )

    async def _child_status(self, record: Object, status: Mapping[str, Any]) -> None:
        metadata = record["metadata"]
        self.writes += 1
        await self._cluster.apply(
            {
                "apiVersion": API_VERSION,
                "kind": "ModelVersion",
                "metadata": {key: metadata[key] for key in ("name", "namespace", "uid")},
                "status": status,
            },
            "status",
        )


def _address(obj: Mapping[str, Any]) -> str:
    """Where an object is: its deployment first, so that what belongs to one is found by a prefix."""
    metadata = obj["metadata"]
    deployment = metadata.get("labels", {}).get("tidegate.dev/deployment", "")
    return f"{metadata['namespace']}/{deployment}/{obj['kind']}/{metadata['name']}"


def _digest(obj: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(obj, sort_keys=True).encode()).hexdigest()


def _our_fields(obj: Object) -> list[Any]:
    return [
        entry.get("fieldsV1")
        for entry in obj["metadata"].get("managedFields") or ()
        if entry.get("manager") == FIELD_MANAGER and entry.get("operation") == "Apply" and not entry.get("subresource")
    ]


def _made_by_us(obj: Object) -> bool:
    return bool(_our_fields(obj))


def _ours(obj: Object) -> str:
    """The object's identity and the fields of it that Tidegate set and nobody has changed since."""
    return _digest({"uid": obj["metadata"].get("uid"), "fields": _our_fields(obj)})
