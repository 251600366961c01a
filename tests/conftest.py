"""Shared by all tests."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

from live import Kubectl, NoTestbed, testbed_env

S3_SECRET = "s3-models"

settings.register_profile("tidegate", deadline=None)  # a busy machine is not a failure
settings.load_profile("tidegate")


@pytest.fixture(scope="session")
def testbed() -> dict[str, str]:
    """Variables that lead to the testbed. Without one the test fails: a skipped test would look like a passed one."""
    try:
        return testbed_env()
    except NoTestbed as missing:
        told = str(missing)
    pytest.fail(told, pytrace=False)


@pytest.fixture(scope="session")
def kubectl(testbed: dict[str, str]) -> Kubectl:
    """kubectl on the testbed."""
    return Kubectl(testbed)


@pytest.fixture(scope="module")
def namespace(request: pytest.FixtureRequest, kubectl: Kubectl) -> Iterator[str]:
    """A namespace of this module alone, whose pods may read the testbed's model store."""
    name = f"t-{request.module.__name__.removeprefix('test_').replace('_', '-')[:12]}-{secrets.token_hex(3)}"
    secret = kubectl.json("get", "secret", S3_SECRET, "-n", "default")
    kept = {part: secret["metadata"][part] for part in ("name", "annotations") if part in secret["metadata"]}
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
    kubectl("create", "namespace", name)
    try:
        kubectl.apply(secret | {"metadata": kept}, account | {"secrets": [{"name": S3_SECRET}]}, namespace=name)
        yield name
    finally:
        kubectl("delete", "namespace", name, "--wait=false")
