"""Identity of versions: the hash of the template, shown under the user's name for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tidegate.api import API_VERSION
from tidegate.api.modelversion import ModelVersionSpec, Runtime
from tidegate.api.template import EnvVar, Template
from tidegate.core import names
from tidegate.core.observed import Object, name

HISTORY = 50
"""Records kept of each ModelDeployment."""

_PLACEHOLDER = "{{.Name}}"
"""What KServe replaces by the InferenceService's name in a runtime's arguments and variables."""


def digest(template: Template) -> str:
    """SHA-256 of the template, the version's name included, as hexadecimal digits.

    Defaults are left out and keys sorted, so that neither the API server's defaulting nor a later release's new
    field changes it.
    """
    text = json.dumps(template.wire(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def identity(template: Template) -> str:
    """The version's id: its name as a slug, and eight digits of the hash."""
    return names.version_id(template.model.version, digest(template))


@dataclass(frozen=True)
class NoRuntime(Exception):
    """No serving runtime can serve the template."""

    message: str


def pick_runtime(template: Template, runtimes: Iterable[Object]) -> Runtime | None:
    """The serving runtime for the template; None if it needs none. `NoRuntime` if there is none.

    A runtime that is named is taken as it is. Else it is one that picks itself for the format: Tidegate's own before
    others, then by KServe's priority, then by name, so that the choice does not depend on their order.
    """
    model = template.model
    if model.uri is None:
        return None
    known = [runtime for runtime in runtimes if not runtime["spec"].get("disabled")]
    if model.runtime is not None:
        chosen = next((runtime for runtime in known if name(runtime) == model.runtime), None)
        if chosen is None:
            raise NoRuntime(f"no serving runtime is called {model.runtime}; there are: {_listing(map(name, known))}")
        return _told(chosen)

    def rank(runtime: Object) -> tuple[bool, int, str]:
        ours = runtime["metadata"].get("labels", {}).get("app.kubernetes.io/part-of") == "tidegate"
        priority = max(int(f.get("priority") or 0) for f in _formats(runtime) if f["name"] == model.format)
        return (not ours, -priority, name(runtime))

    fitting = [
        runtime
        for runtime in known
        if any(f["name"] == model.format and f.get("autoSelect") for f in _formats(runtime))
    ]
    if not fitting:
        formats = _listing({f["name"] for runtime in known for f in _formats(runtime) if f.get("autoSelect")})
        raise NoRuntime(f"no serving runtime is installed for the format {model.format}; there are some for: {formats}")
    return _told(min(fitting, key=rank))


def _formats(runtime: Object) -> list[Mapping[str, Any]]:
    return runtime["spec"].get("supportedModelFormats") or []


def _listing(words: Iterable[str]) -> str:
    return ", ".join(sorted(words)) or "none"


def _told(runtime: Object) -> Runtime:
    """The runtime, and what gives the model its stable name: KServe would name it after the workload.

    KServe appends a model's arguments to its runtime's and merges variables by name, so the last word is ours.
    """
    containers = runtime["spec"].get("containers") or []
    main = next((c for c in containers if c.get("name") == "kserve-container"), containers[0] if containers else {})
    return Runtime(
        name=name(runtime),
        args=[arg for arg in main.get("args") or [] if _PLACEHOLDER in arg],
        env=[
            EnvVar(name=variable["name"], value=variable["value"])
            for variable in main.get("env") or []
            if _PLACEHOLDER in (variable.get("value") or "")
        ],
    )


def stable_named(text: str, deployment: str) -> str:
    """An argument or variable of a runtime, with the deployment's name where KServe puts the workload's."""
    return text.replace(_PLACEHOLDER, deployment)


def record(
    deployment: Object, template: Template, runtimes: Iterable[Object], existing: Iterable[ModelVersionSpec]
) -> ModelVersionSpec:
    """What the record of a new version says. `NoRuntime` if nothing can serve it.

    The tag is the slug alone where no other version of the deployment has it, so that its URL reads well.
    """
    whole = digest(template)
    identity = names.version_id(template.model.version, whole)
    short = names.slug(template.model.version)
    taken = {other.tag for other in existing if other.id != identity}
    return ModelVersionSpec(
        deployment=name(deployment),
        id=identity,
        hash=whole,
        tag=identity if short in taken else short,
        made_by=_author(deployment),
        template=template,
        runtime=pick_runtime(template, runtimes),
    )


def baseline(stable: ModelVersionSpec) -> ModelVersionSpec:
    """A fresh copy of a version to compare a candidate with: the same in all but its id, which its pods are told.

    It has no record of its own, since it follows from the stable version's.
    """
    identity = names.version_id(
        stable.template.model.version, hashlib.sha256(f"baseline {stable.hash}".encode()).hexdigest()
    )
    return stable.model_copy(update={"id": identity, "tag": identity})


def _author(deployment: Object) -> str:
    """The field manager that last wrote the model's version."""
    entries = [
        entry
        for entry in deployment["metadata"].get("managedFields") or ()
        if "f:model" in (entry.get("fieldsV1") or {}).get("f:spec", {})
    ]
    return str(max(entries, key=lambda entry: entry.get("time") or "")["manager"]) if entries else ""


def manifest(deployment: Object, spec: ModelVersionSpec) -> dict[str, Any]:
    """The ModelVersion object."""
    return {
        "apiVersion": API_VERSION,
        "kind": "ModelVersion",
        "metadata": child_metadata(deployment, names.child(name(deployment), spec.id), spec.id),
        "spec": spec.wire(),
    }


def child_metadata(deployment: Object, child: str, identity: str | None = None) -> dict[str, Any]:
    """Metadata of an object that the deployment owns: it goes when the deployment goes."""
    return {
        "name": child,
        "namespace": deployment["metadata"]["namespace"],
        "labels": names.labels(name(deployment), identity),
        "ownerReferences": [
            {
                "apiVersion": API_VERSION,
                "kind": "ModelDeployment",
                "name": name(deployment),
                "uid": deployment["metadata"]["uid"],
                "controller": True,
                "blockOwnerDeletion": False,
            }
        ],
    }
