"""The parts of a pod that both backends share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tidegate.api.base import seconds
from tidegate.api.template import Container, EnvVar, Resources, Template, Transformer, Volume
from tidegate.core.placement import Placement

VERSION_VARIABLE = "TIDEGATE_VERSION"
"""Tells a model server which version it is; it answers with it in the header Tidegate-Version."""


def environment(env: Iterable[EnvVar], *more: EnvVar) -> list[dict[str, Any]]:
    """Environment variables of a container; of two with one name the later stands."""
    merged = {variable.name: variable for variable in (*more, *env)}
    return [variable.wire() for variable in merged.values()]


def resources(wanted: Resources, placement: Placement | None = None) -> dict[str, Any]:
    """Resources of a container, accelerators included."""
    extra = placement.resources if placement else {}
    out = {
        "requests": {name: str(quantity) for name, quantity in wanted.requests.items()} | extra,
        "limits": {name: str(quantity) for name, quantity in wanted.limits.items()} | extra,
    }
    return {key: value for key, value in out.items() if value}


def image(container: Container | Transformer) -> dict[str, Any]:
    """Image and entrypoint of a container."""
    return {"image": container.image} | ({"command": list(container.command)} if container.command else {})


def volumes(wanted: Iterable[Volume]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Volumes of the pod, and their mounts in the model's container."""
    pod, mounts = [], []
    for volume in wanted:
        source: dict[str, Any]
        read_only = True
        if volume.config_map:
            source = {"configMap": {"name": volume.config_map}}
        elif volume.secret:
            source = {"secret": {"secretName": volume.secret}}
        elif volume.persistent_volume_claim:
            read_only = volume.read_only
            source = {"persistentVolumeClaim": {"claimName": volume.persistent_volume_claim, "readOnly": read_only}}
        else:
            read_only = False
            limit = volume.empty_dir.size_limit if volume.empty_dir else None
            source = {"emptyDir": {} if limit is None else {"sizeLimit": str(limit)}}
        pod.append({"name": volume.name} | source)
        mounts.append({"name": volume.name, "mountPath": volume.mount_path, "readOnly": read_only})
    return pod, mounts


def account(template: Template) -> dict[str, Any]:
    """Who the pods are, and with which secrets their images are pulled."""
    out: dict[str, Any] = {}
    if template.service_account_name:
        out["serviceAccountName"] = template.service_account_name
    if template.image_pull_secrets:
        out["imagePullSecrets"] = [secret.wire() for secret in template.image_pull_secrets]
    return out


def timeout(template: Template) -> int | None:
    """How long a request may take, in whole seconds."""
    return None if template.timeout is None else max(1, round(seconds(template.timeout)))
