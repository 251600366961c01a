"""The identity of versions: hash, names, runtime and record."""

from __future__ import annotations

import copy
import json
import random
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schema import DEFAULTS
from tidegate.api.modeldeployment import ModelDeploymentSpec
from tidegate.api.modelversion import ModelVersionSpec
from tidegate.api.template import Template
from tidegate.core import names, versions
from tidegate.core.versions import NoRuntime, digest, pick_runtime

FULL: dict[str, Any] = {
    "model": {
        "version": "v2",
        "uri": "s3://models/churn/2",
        "format": "sklearn",
        "args": ["--workers=2"],
        "env": [{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
        "transformer": {"image": "registry.test/transformer:1", "resources": {"limits": {"memory": "1Gi", "cpu": 1}}},
    },
    "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}},
    "accelerator": {"products": ["NVIDIA-L4"], "tolerations": [{"key": "spot"}]},
    "volumes": [{"name": "cache", "mountPath": "/cache", "emptyDir": {}}],
}


def template(spec: dict[str, Any]) -> Template:
    return ModelDeploymentSpec.model_validate(spec).template


def changed(path: str, value: Any, spec: dict[str, Any] = FULL) -> dict[str, Any]:
    """The spec with one more field, or another value of one."""
    out = copy.deepcopy(spec)
    *folders, last = path.split(".")
    node = out
    for folder in folders:
        node = node.setdefault(folder, {})
    node[last] = value
    return out


# --- the hash ---


def shuffled(value: Any, source: random.Random) -> Any:
    if isinstance(value, dict):
        items = [(key, shuffled(child, source)) for key, child in value.items()]
        source.shuffle(items)
        return dict(items)
    return [shuffled(child, source) for child in value] if isinstance(value, list) else value


@given(st.randoms(use_true_random=False))
def test_hash_does_not_depend_on_the_order_of_keys(source: random.Random) -> None:
    assert digest(template(shuffled(FULL, source))) == digest(template(FULL))


def test_hash_does_not_depend_on_defaults_written_in_by_the_api_server() -> None:
    filled = copy.deepcopy(FULL) | DEFAULTS
    filled["accelerator"] |= {"resource": "nvidia.com/gpu", "count": 1}
    filled["accelerator"]["tolerations"][0]["operator"] = "Exists"
    filled["volumes"][0]["readOnly"] = True
    filled["model"]["storage"] = {}
    assert digest(template(filled)) == digest(template(FULL))
    image = {"model": {"version": "v1", "container": {"image": "registry.test/m"}}}
    assert digest(template(changed("model.container.port", 8080, image))) == digest(template(image))


def test_hash_does_not_depend_on_fields_that_this_release_does_not_know() -> None:
    assert digest(template(changed("model.fromTheFuture", 1))) == digest(template(FULL))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("visibility", "ClusterLocal"),
        ("scaling", {"min": 3, "max": 9}),
        ("rollout", {"strategy": "Immediate", "paused": True}),
    ],
)
def test_what_is_no_part_of_a_version_is_not_in_the_hash(path: str, value: Any) -> None:
    assert digest(template(changed(path, value))) == digest(template(FULL))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model.version", "v3"),
        ("model.uri", "s3://models/churn/3"),
        ("model.runtime", "other"),
        ("model.args", ["--workers=3"]),
        ("model.env", []),
        ("model.storage.secret", "s"),
        ("model.transformer.image", "registry.test/transformer:2"),
        ("backend", "KServe"),
        ("resources.limits", {"memory": "2Gi"}),
        ("accelerator.count", 2),
        ("accelerator", {}),
        ("serviceAccountName", "reader"),
        ("imagePullSecrets", [{"name": "pull"}]),
        ("volumes", []),
        ("timeout", "10s"),
        ("concurrency", 4),
    ],
)
def test_what_ends_up_in_the_pods_is_in_the_hash_and_so_is_the_name(path: str, value: Any) -> None:
    assert digest(template(changed(path, value))) != digest(template(FULL))


def test_an_accelerator_with_defaults_only_is_not_none() -> None:
    bare = {key: value for key, value in FULL.items() if key != "accelerator"}
    assert digest(template(bare | {"accelerator": {}})) != digest(template(bare))


def test_hash_is_steady_from_release_to_release() -> None:
    """These digests are in records on clusters: whoever changes one makes a new version of every model."""
    small = {"model": {"version": "v1", "container": {"image": "registry.test/model:v1"}}}
    assert digest(template(small)) == "54feac5bf22012f0580a4617f9008a773004d5b755b43deeeef00bfc8cb70d8a"
    assert digest(template(FULL)) == "12d66ed1b88db30fa2d5e1d3908e7b42d07dd0c3b1974ae671546ed54b7830b1"


# --- names ---


def words(first: str, inside: str, most: int) -> st.SearchStrategy[str]:
    """Names that begin with one of `first`, do not end in punctuation, and have at most so many characters."""
    parts = st.tuples(st.sampled_from(first), st.text(inside, max_size=most - 1))
    return parts.map("".join).map(lambda text: text.rstrip("-._"))


LOWER, DIGITS = "abcdefghijklmnopqrstuvwxyz", "0123456789"
version_names = words(LOWER + LOWER.upper() + DIGITS, LOWER + LOWER.upper() + DIGITS + "._-", 40)
deployment_names = words(LOWER, LOWER + DIGITS + "-", 36)
digests = st.text("0123456789abcdef", min_size=8, max_size=8)
LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


@pytest.mark.parametrize(
    ("version", "slug"),
    [
        ("v2", "v2"),
        ("1.2.0", "v120"),
        ("2026-11-24", "v20261124"),
        ("Release-Candidate_9", "releasecandidate"),
        ("7", "v7"),
        ("X", "x"),
    ],
)
def test_slug(version: str, slug: str) -> None:
    assert names.slug(version) == slug


@given(version_names)
def test_slug_is_a_dns_label_without_dashes(version: str) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9]{0,15}", names.slug(version))


@given(deployment_names, version_names, digests)
def test_every_name_derived_fits_where_it_is_used(deployment: str, version: str, whole: str) -> None:
    identity = names.version_id(version, whole)
    child = names.child(deployment, identity)
    assert LABEL.fullmatch(child)
    assert len(f"{child}-transformer-00001") <= 63, "the longest name of a Revision"
    for tag in (names.slug(version), identity):
        assert LABEL.fullmatch(f"{tag}-{deployment}")
        assert len(f"{tag}-{deployment}") <= 63, "Knative's host of a tag is one DNS label"
    assert all(len(value) <= 63 for value in names.labels(deployment, identity).values())


@given(deployment_names, version_names, deployment_names, version_names, digests, digests)
def test_children_of_different_versions_have_different_names(
    one: str, version: str, other: str, another: str, whole: str, rest: str
) -> None:
    first, second = names.version_id(version, whole), names.version_id(another, rest)
    if (one, first) != (other, second):
        assert names.child(one, first) != names.child(other, second)


@given(deployment_names, version_names, digests)
def test_parts_of_a_childs_name_can_be_told_apart(deployment: str, version: str, whole: str) -> None:
    identity = names.version_id(version, whole)
    stem, slug, digits = names.child(deployment, identity).rsplit("-", 2)
    assert f"{slug}-{digits}" == identity
    assert stem == names.child(deployment, "x-0").rsplit("-", 2)[0]


def test_a_dash_in_a_name_does_not_move_into_the_version() -> None:
    assert names.child("a", names.version_id("b-c", "0" * 64)) == "a-bc-00000000"
    assert names.child("a-b", names.version_id("c", "0" * 64)) == "a-b-c-00000000"


def test_long_names_with_one_beginning_do_not_meet() -> None:
    first, second = (names.child(f"recommendations-for-{who}", "v1-00000000") for who in ("shops", "shoppers"))
    assert first != second
    assert first.startswith("recommendati-")


def test_a_short_name_is_left_as_it_is() -> None:
    assert names.child("nineteen-characters", "v1-00000000") == "nineteen-characters-v1-00000000"
    assert names.child("twenty-characters-xx", "v1-00000000").startswith("twenty-chara-")


# --- the runtime ---


def runtime(
    name: str,
    *formats: dict[str, Any],
    ours: bool = False,
    args: list[str] | None = None,
    env: list[dict[str, Any]] | None = None,
    disabled: bool = False,
) -> dict[str, Any]:
    labels = {"app.kubernetes.io/part-of": "tidegate"} if ours else {}
    container = {"name": "kserve-container", "args": args or [], "env": env or []}
    spec = {"supportedModelFormats": list(formats), "containers": [container], "disabled": disabled}
    return {"metadata": {"name": name, "labels": labels}, "spec": spec}


def auto(format_: str, priority: int | None = None) -> dict[str, Any]:
    return {"name": format_, "autoSelect": True} | ({} if priority is None else {"priority": priority})


def picked(*runtimes: dict[str, Any], **model: Any) -> str:
    wanted = template({"model": {"version": "v1", "uri": "s3://m", "format": "sklearn", **model}})
    found = pick_runtime(wanted, runtimes)
    assert found is not None
    assert pick_runtime(wanted, reversed(runtimes)) == found, "the choice does not depend on their order"
    return found.name


def test_an_image_needs_no_runtime() -> None:
    assert pick_runtime(template({"model": {"version": "v1", "container": {"image": "i"}}}), []) is None


def test_our_own_runtime_comes_before_one_with_a_higher_priority() -> None:
    assert picked(runtime("a", auto("sklearn", 9)), runtime("z", auto("sklearn", 1), ours=True)) == "z"


def test_then_the_higher_priority_then_the_name() -> None:
    assert picked(runtime("a", auto("sklearn", 1)), runtime("b", auto("sklearn", 2))) == "b"
    assert picked(runtime("a", auto("sklearn")), runtime("b", auto("sklearn", 1))) == "b"
    assert picked(runtime("b", auto("sklearn", 1)), runtime("a", auto("sklearn", 1))) == "a"
    both = runtime("c", auto("xgboost", 9), auto("sklearn", 1))
    assert picked(runtime("b", auto("sklearn", 2)), both) == "b", "the priority of another format does not count"


def test_a_runtime_that_does_not_pick_itself_is_picked_by_name_only() -> None:
    manual = runtime("manual", {"name": "sklearn"})
    assert picked(manual, runtime("b", auto("sklearn"))) == "b"
    assert picked(manual, runtime("b", auto("sklearn")), runtime="manual") == "manual"
    assert picked(runtime("other", auto("onnx")), runtime="other") == "other", "whoever names one knows why"


def test_a_disabled_runtime_is_not_there() -> None:
    off = runtime("a", auto("sklearn", 9), disabled=True)
    assert picked(off, runtime("b", auto("sklearn"))) == "b"
    with pytest.raises(NoRuntime) as caught:
        picked(off, runtime="a")
    assert caught.value.message == "no serving runtime is called a; there are: none"


def test_without_a_runtime_the_message_says_what_there_is() -> None:
    with pytest.raises(NoRuntime) as caught:
        picked(runtime("b", auto("onnx")), runtime("a", auto("xgboost"), {"name": "sklearn"}))
    told = "no serving runtime is installed for the format sklearn; there are some for: onnx, xgboost"
    assert caught.value.message == told
    with pytest.raises(NoRuntime) as caught:
        picked(runtime("b", auto("onnx")), runtime("a", auto("xgboost")), runtime="c")
    assert caught.value.message == "no serving runtime is called c; there are: a, b"


def test_a_runtime_without_formats_or_containers_is_survived() -> None:
    bare = {"metadata": {"name": "bare"}, "spec": {}}
    assert picked(bare, runtime("b", auto("sklearn"))) == "b"
    assert picked(bare, runtime="bare") == "bare"


def test_what_names_the_model_after_its_workload_is_on_record() -> None:
    """KServe fills in the workload's name, which changes with the version: the record keeps what must be said again."""
    found = pick_runtime(
        template({"model": {"version": "v1", "uri": "s3://m", "format": "sklearn"}}),
        [
            runtime(
                "a",
                auto("sklearn"),
                args=["--model_name={{.Name}}", "--model_dir=/mnt/models", "--path=/v2/{{.Name}}"],
                env=[
                    {"name": "MODEL", "value": "{{.Name}}"},
                    {"name": "HOME", "value": "/tmp"},  # noqa: S108 - a value like any other
                    {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
                ],
            )
        ],
    )
    assert found is not None
    assert found.args == ["--model_name={{.Name}}", "--path=/v2/{{.Name}}"]
    assert [(variable.name, variable.value) for variable in found.env] == [("MODEL", "{{.Name}}")]
    assert versions.stable_named("--path=/v2/{{.Name}}", "churn") == "--path=/v2/churn"


def test_only_the_model_containers_arguments_count() -> None:
    two = runtime("a", auto("sklearn"), args=["--model_name={{.Name}}"])
    two["spec"]["containers"].insert(0, {"name": "agent", "args": ["--agent={{.Name}}"]})
    found = pick_runtime(template({"model": {"version": "v1", "uri": "s3://m", "format": "sklearn"}}), [two])
    assert found is not None
    assert found.args == ["--model_name={{.Name}}"]


# --- the record ---


def deployment(**metadata: Any) -> dict[str, Any]:
    return {"metadata": {"name": "churn", "namespace": "shop", "uid": "u1", **metadata}}


def record(spec: dict[str, Any], *existing: ModelVersionSpec, **metadata: Any) -> ModelVersionSpec:
    return versions.record(deployment(**metadata), template(spec), [runtime("rt", auto("sklearn"))], existing)


def test_a_record_says_what_the_version_is() -> None:
    made = record(FULL)
    assert made.deployment == "churn"
    assert made.hash == digest(template(FULL))
    assert made.id == f"v2-{made.hash[:8]}"
    assert made.template == template(FULL)
    assert made.runtime is not None
    assert made.runtime.name == "rt"


def test_a_tag_is_the_slug_unless_another_version_has_it() -> None:
    first = record(FULL)
    assert first.tag == "v2"
    again = record(changed("model.args", ["--other"]), first)
    assert again.tag == again.id
    assert record(FULL, first, again).tag == "v2", "a record that is made once more gets its own tag again"
    assert record(changed("model.version", "V-2"), first).tag != "v2", "another name with the same slug"


def test_the_author_is_the_last_field_manager_that_wrote_the_model() -> None:
    def wrote(manager: str, time: str, *fields: str) -> dict[str, Any]:
        return {"manager": manager, "time": time, "fieldsV1": {"f:spec": {f"f:{field}": {} for field in fields}}}

    made = record(
        FULL,
        managedFields=[
            wrote("kubectl-client-side-apply", "2026-01-01T00:00:00Z", "model"),
            wrote("argocd-controller", "2026-01-02T00:00:00Z", "model", "scaling"),
            wrote("tidegate-cli", "2026-01-03T00:00:00Z", "rollout"),
            {"manager": "tidegate", "time": "2026-01-04T00:00:00Z", "fieldsV1": {"f:status": {}}},
            {"manager": "odd", "time": "2026-01-05T00:00:00Z"},
        ],
    )
    assert made.made_by == "argocd-controller"
    assert record(FULL).made_by == ""


def test_the_records_object_is_owned_by_the_deployment_and_reads_back() -> None:
    made = record(FULL)
    found = versions.manifest(deployment(), made)
    assert found["kind"] == "ModelVersion"
    assert found["metadata"]["name"] == names.child("churn", made.id)
    assert found["metadata"]["namespace"] == "shop"
    (owner,) = found["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["uid"], owner["controller"]) == ("ModelDeployment", "churn", "u1", True)
    assert found["metadata"]["labels"] == {
        "tidegate.dev/deployment": "churn",
        "tidegate.dev/version": made.id,
        "app.kubernetes.io/managed-by": "tidegate",
    }
    wire = json.loads(json.dumps(found["spec"]))
    assert ModelVersionSpec.model_validate(wire) == made
    assert digest(ModelVersionSpec.model_validate(wire).template) == made.hash
