"""Names of labels, annotations and child objects."""

from __future__ import annotations

import hashlib
import re

FIELD_MANAGER = "tidegate"
"""The one field manager of every server-side apply."""

DEPLOYMENT_LABEL = "tidegate.dev/deployment"
VERSION_LABEL = "tidegate.dev/version"
MANAGED_BY = {"app.kubernetes.io/managed-by": "tidegate"}

_SLUG = 16
_STEM = 19
"""With a slug of 16 and eight digits of hash this leaves room for Knative's longest suffix, `-transformer-00001`,
in the 63 characters of a Revision's name."""


def slug(version: str) -> str:
    """A version's name as a DNS label without dashes, a letter first, at most 16 characters: `1.2.0` is `v120`.

    Without dashes the parts of a child's name cannot run into each other (`a` + `b-c` is not `a-b` + `c`).
    """
    bare = re.sub(r"[^a-z0-9]", "", version.lower())
    return (bare if bare[:1].isalpha() else f"v{bare}")[:_SLUG]


def version_id(version: str, digest: str) -> str:
    """What a version goes by everywhere: its slug and eight digits of its hash, such as `v2-1a2b3c4d`."""
    return f"{slug(version)}-{digest[:8]}"


def child(deployment: str, identity: str) -> str:
    """Name of a version's workload and record: the deployment's name, shortened if need be, and the version's id."""
    stem = deployment
    if len(stem) > _STEM:
        stem = f"{stem[: _STEM - 7].rstrip('-')}-{hashlib.sha256(deployment.encode()).hexdigest()[:6]}"
    return f"{stem}-{identity}"


def labels(deployment: str, identity: str | None = None) -> dict[str, str]:
    """Labels of a child of the deployment, and of the version if one is given."""
    return {DEPLOYMENT_LABEL: deployment} | ({VERSION_LABEL: identity} if identity else {}) | MANAGED_BY
