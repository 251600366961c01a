"""The Kubernetes API, as plain objects: get, list, server-side apply, delete, and Events."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import aiohttp
from kubernetes.aio import client, config

from tidegate.core.events import Event
from tidegate.core.names import FIELD_MANAGER
from tidegate.core.observed import Object
from tidegate.runtime.write import Conflict, Refused

log = logging.getLogger(__name__)

METADATA = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
"""What to accept of a list so that only metadata come."""
TIMEOUT = 30
"""Seconds that a call may take."""

PLURALS = {
    "ModelDeployment": "modeldeployments",
    "ModelVersion": "modelversions",
    "InferenceService": "inferenceservices",
    "Configuration": "configurations",
    "Revision": "revisions",
    "Route": "routes",
}


class ApiError(Exception):
    """The API server refused a call."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}" if status else message)
        self.status = status
        self.message = message


class Api:
    """A thin client that speaks JSON objects. Importing the generated models of every kind is not needed for that."""

    def __init__(self, raw: client.ApiClient) -> None:
        self.raw = raw

    async def call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> Any:
        """One call. `Conflict` for 409, `ApiError` for any other refusal."""
        method, url, headers, body, _ = await self.raw.param_serialize(
            method,
            path,
            query_params=list((query or {}).items()),
            header_params={"Accept": accept, "Content-Type": content_type},
            body=body,
            auth_settings=["BearerToken"],
        )
        try:
            response = await self.raw.call_api(method, url, headers, body, _request_timeout=TIMEOUT)
            text = await response.read()
            status = response.status
        except client.ApiException as error:
            status, text = error.status, error.body or error.reason or ""
        parsed = _parse(text)
        if status < 400:
            return parsed
        message = str(parsed.get("message") or parsed)[:2000] if isinstance(parsed, dict) else str(parsed)[:2000]
        raise Conflict(message) if status == 409 else ApiError(status, message)

    async def stream(self, path: str, query: Mapping[str, str], seconds: float) -> AsyncIterator[Any]:
        """The events of a watch, for so many seconds at most. `ApiError` if the server refuses."""
        method, url, headers, _, _ = await self.raw.param_serialize(
            "GET",
            path,
            query_params=list(query.items()),
            header_params={"Accept": "application/json"},
            auth_settings=["BearerToken"],
        )
        limit = aiohttp.ClientTimeout(total=seconds, sock_connect=10)
        response = (await self.raw.call_api(method, url, headers, _request_timeout=limit)).response
        try:
            if response.status >= 400:
                raise ApiError(response.status, str(_parse(await response.read()))[:500])
            rest = b""
            async for chunk in response.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in filter(None, lines):
                    yield json.loads(line)
        finally:
            response.close()

    async def get(self, path: str) -> Object | None:
        """The object at that path, None if there is none."""
        try:
            found: Object = await self.call("GET", path)
        except ApiError as error:
            if error.status == 404:
                return None
            raise
        return found

    async def apply(self, obj: Mapping[str, Any], subresource: str | None = None) -> Object:
        """Server-side apply. The caller has made sure that the object is ours: differing fields are taken over.

        `Refused` if the API server does not take the object as it is.
        """
        tail = f"/{subresource}" if subresource else ""
        query = {"fieldManager": FIELD_MANAGER, "force": "true"}
        try:
            result: Object = await self.call(
                "PATCH", path_of(obj) + tail, query, dict(obj), "application/apply-patch+yaml"
            )
        except ApiError as error:
            if error.status == 422 and "metadata.uid: " in error.message:
                raise Conflict(error.message) from error  # another object stands there by now
            if error.status in (400, 403, 422):
                raise Refused(error.message) from error
            raise
        return result

    async def delete(self, obj: Object) -> None:
        """Deletes exactly this object; no error if it has gone, or if another stands in its place."""
        options = {"preconditions": {"uid": obj["metadata"]["uid"]}, "propagationPolicy": "Background"}
        try:
            await self.call("DELETE", path_of(obj), body=options)
        except Conflict:
            return
        except ApiError as error:
            if error.status != 404:
                raise

    async def announce(self, about: Object, event: Event) -> None:
        """Records an Event about an object, if it can be. One with the same words within a minute is the same Event."""
        metadata = about["metadata"]
        now = datetime.now(UTC).replace(microsecond=0)
        words = f"{metadata['uid']}{event.reason}{event.message}{now:%Y%m%d%H%M}"
        body = {
            "metadata": {
                "name": f"{metadata['name']}.{hashlib.sha256(words.encode()).hexdigest()[:16]}",
                "namespace": metadata["namespace"],
            },
            "involvedObject": {
                "apiVersion": about["apiVersion"],
                "kind": about["kind"],
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
            },
            "type": event.type,
            "reason": event.reason,
            "message": event.message[:1024],
            "source": {"component": "tidegate"},
            "firstTimestamp": now.isoformat().replace("+00:00", "Z"),
            "lastTimestamp": now.isoformat().replace("+00:00", "Z"),
            "count": 1,
        }
        try:
            await self.call("POST", f"/api/v1/namespaces/{metadata['namespace']}/events", body=body)
        except Conflict:
            return  # it is recorded
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:  # an Event is no reason to end a pass
            log.warning("cannot record the Event %s: %s", event.reason, words_of(error))


def words_of(error: Exception) -> str:
    """What an error says; a time-out says nothing by itself."""
    return str(error) or "no answer in time"


def path_of(obj: Mapping[str, Any]) -> str:
    """Path of a namespaced object of one of our kinds."""
    metadata = obj["metadata"]
    return f"/apis/{obj['apiVersion']}/namespaces/{metadata['namespace']}/{PLURALS[obj['kind']]}/{metadata['name']}"


def _parse(text: bytes | str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text.decode(errors="replace") if isinstance(text, bytes) else text


@asynccontextmanager
async def connected(kubeconfig: str | None = None, context: str | None = None) -> AsyncIterator[Api]:
    """The API of the cluster that we are in, or that the kubeconfig names. `ApiError` if there is neither."""
    configuration = client.Configuration()
    try:
        if kubeconfig is None and context is None and in_cluster():
            config.load_incluster_config(client_configuration=configuration)
        else:
            await config.load_kube_config(kubeconfig, context, client_configuration=configuration)
    except config.ConfigException as error:
        raise ApiError(0, f"no cluster to talk to: {error}. Set KUBECONFIG, or give --kubeconfig") from error
    async with client.ApiClient(configuration) as raw:
        yield Api(raw)


def in_cluster() -> bool:
    """Whether this process runs in a pod and nobody pointed it elsewhere."""
    import os

    return "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ
