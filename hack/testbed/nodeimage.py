"""The image of a kind node, put together from Debian's root file system, Kubernetes' programs and kind's own files.

kind's releases publish such an image with containerd 2 in it; this one has Debian's containerd 1.6, which the kubelet
accepts up to 1.35. kind's entrypoint and units are taken as they are in kind's module, except where noted below.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from . import files, gobuild
from .docker import Docker
from .steps import Log, Problem
from .versions import key, pinned

BUILDER = "tidegate-node-build"
COMPONENTS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy")
ENTRYPOINT = 'ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]'

# One node: the bridge plug-in is network enough, and it's Debian's.
NETWORK = {
    "cniVersion": "0.4.0",
    "name": "bridge",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "ipMasq": True,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": "10.244.0.0/24"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}
# kind applies these two files of the node image to a new cluster.
NETWORK_MANIFEST = """\
apiVersion: v1
kind: ConfigMap
metadata: {name: node-network, namespace: kube-system}
data: {about: "the bridge plug-in, configured in the node image"}
"""
STORAGE_MANIFEST = """\
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: standard, annotations: {storageclass.kubernetes.io/is-default-class: "true"}}
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: WaitForFirstConsumer
"""
DOCKERFILE = f"""\
ARG BASE
FROM $BASE
COPY files/ /
COPY programs/ /usr/bin/
RUN chmod +x /usr/local/bin/* /kind/bin/* \\
 && mkdir -p /opt/cni /etc/containerd /LICENSES /etc/kubernetes/manifests && ln -s /usr/lib/cni /opt/cni/bin \\
 && ctr oci spec \\
  | jq '.hooks.createContainer += [{{"path": "/kind/bin/mount-product-files.sh"}}] | del(.process.rlimits)' \\
  > /etc/containerd/cri-base.json \\
 && rm -f /lib/systemd/system/multi-user.target.wants/* /etc/systemd/system/*.wants/* \\
  /lib/systemd/system/local-fs.target.wants/* /lib/systemd/system/sockets.target.wants/*udev* \\
  /lib/systemd/system/sockets.target.wants/*initctl* /lib/systemd/system/basic.target.wants/* \\
 && find /lib/systemd/system/sysinit.target.wants/ -name systemd-tmpfiles-setup.service -delete \\
 && echo ReadKMsg=no >> /etc/systemd/journald.conf \\
 && systemctl enable kubelet.service containerd.service undo-mount-hacks.service \\
 && systemctl mask systemd-binfmt.service \\
 && ln -sf /lib/systemd/system/multi-user.target /etc/systemd/system/default.target \\
 && echo > /etc/machine-id
ENV container=docker
STOPSIGNAL SIGRTMIN+3
{ENTRYPOINT}
"""


def recipe() -> str:
    """What decides how the image turns out, beside its inputs: this module, however it is laid out and commented."""
    return key(ast.dump(ast.parse(Path(__file__).read_text())))


def containerd_config(text: str, pause: str) -> str:
    text = text.replace("restrict_oom_score_adj = false", "restrict_oom_score_adj = true")  # nobody may lower it here
    text = re.sub(r'sandbox_image = ".*"', f'sandbox_image = "{pause}"', text)
    return re.sub(r"^\[proxy_plugins\].*?address = .*?\n", "", text, flags=re.M | re.S)  # fuse-overlayfs isn't here


def containerd_unit(text: str) -> str:
    text = text.replace("/usr/local/bin/containerd", "/usr/bin/containerd")
    # raising limits takes a capability that a sandboxed host may lack, and the defaults do
    return re.sub(r"^(Limit\w+|TasksMax|OOMScoreAdjust)=.*\n", "", text, flags=re.M)


def _lay_out_files(log: Log, folder: Path, pause: str) -> None:
    source = gobuild.module_dir(log, gobuild.KIND) / "images" / "base" / "files"
    shutil.copytree(source, folder)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(path.stat().st_mode | 0o200)  # Go's module cache is read-only
    configuration = folder / "etc" / "containerd" / "config.toml"
    configuration.write_text(containerd_config(configuration.read_text(), pause))
    units = folder / "etc" / "systemd" / "system"
    unit = units / "containerd.service"
    unit.write_text(containerd_unit(unit.read_text()))
    (units / "containerd-fuse-overlayfs.service").unlink()
    files.write(folder / "etc" / "cni" / "net.d" / "10-bridge.conflist", json.dumps(NETWORK, indent=1))
    files.write(folder / "kind" / "version", pinned().modules[gobuild.KUBERNETES] + "\n")
    files.write(folder / "kind" / "manifests" / "default-cni.yaml", NETWORK_MANIFEST)
    files.write(folder / "kind" / "manifests" / "default-storage.yaml", STORAGE_MANIFEST)


def make(
    log: Log, docker: Docker, folder: Path, ref: str, base: str, slim: str, kubectl: Path, sets: Mapping[str, Path]
) -> None:
    kubenode, kubeadm = sets["kubernetes"] / "kubenode", sets["kubernetes"] / "kubeadm"
    version = pinned().modules[gobuild.KUBERNETES]
    wanted = log.output([kubeadm, "config", "images", "list", "--kubernetes-version", version]).split()
    named = {name.rpartition(":")[0].rpartition("/")[2]: name for name in wanted}

    context = folder / "node"
    _lay_out_files(log, context / "files", named["pause"])
    for program, source in {"kubelet": kubenode, "kubeadm": kubeadm, "kubectl": kubectl}.items():
        files.place(source, context / "programs" / program)
    (context / "Dockerfile").write_text(DOCKERFILE)
    unloaded = f"{ref}-unloaded"

    def build(tag: str, directory: Path, **arguments: str) -> None:
        extra = [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
        log.run(["docker", "build", "--network", "none", "--force-rm", "--tag", tag, *extra, directory], env=docker.env)

    build(unloaded, context, BASE=base)

    # The control plane's own images: one for Kubernetes' four programs, which are one binary, and one for each other.
    suffix = ref.rpartition("-")[2]
    tags: dict[str, str] = {}

    def component(name: str, start: str, entrypoint: str, places: Mapping[str, Path], links: Mapping[str, str]) -> str:
        directory = folder / name
        for path, source in places.items():
            files.place(source, directory / "root" / path)
        for path, target in links.items():
            (directory / "root" / path).symlink_to(target)
        lines = [
            f"FROM {start}",
            "COPY root/ /",
            "ENV PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            entrypoint,
            "",
        ]
        (directory / "Dockerfile").write_text("\n".join(lines))
        tag = f"dev.local/tidegate-testbed/node-part-{name}:{suffix}"
        build(tag, directory)
        return tag

    kubernetes = component(
        *("kubernetes", slim, ""),
        {"usr/local/bin/kubenode": kubenode},
        {f"usr/local/bin/{name}": "kubenode" for name in COMPONENTS},
    )
    tags.update({named[name]: kubernetes for name in COMPONENTS})
    tags[named["etcd"]] = component("etcd", "scratch", "", {"usr/local/bin/etcd": sets["etcd"] / "etcd"}, {})
    tags[named["coredns"]] = component(
        "coredns", "scratch", 'ENTRYPOINT ["/coredns"]', {"coredns": sets["coredns"] / "coredns"}, {}
    )
    tags[named["pause"]] = component(
        "pause", "scratch", 'ENTRYPOINT ["/pause"]', {"pause": sets["pause"] / "pause"}, {}
    )

    def inside(*words: str) -> list[str]:
        return ["docker", "exec", BUILDER, *words]

    # What `kind build node-image` does: import them into the node's containerd, then commit the container.
    archive = folder / "control-plane.tar"
    log.run(["docker", "save", "--output", archive, *sorted(set(tags.values()))], env=docker.env)
    _remove_builder(log, docker)
    try:
        log.run(
            [
                *("docker", "run", "--detach", "--name", BUILDER, "--network", "none", "--entrypoint", "sleep"),
                *("--security-opt", "seccomp=unconfined", unloaded, "infinity"),
            ],
            env=docker.env,
        )
        log.run(["docker", "exec", "--detach", BUILDER, "containerd"], env=docker.env)
        _wait_for_containerd(log, docker)
        log.run(["docker", "cp", archive, f"{BUILDER}:/parts.tar"], env=docker.env)
        imports = ("ctr", "-n", "k8s.io", "images")
        log.run(inside(*imports, "import", "--all-platforms", "--no-unpack", "--digests", "/parts.tar"), env=docker.env)
        for name, tag in tags.items():
            log.run(inside(*imports, "tag", tag, name), env=docker.env)
        log.run(inside(*imports, "rm", *sorted(set(tags.values()))), env=docker.env)
        log.run(inside("sh", "-c", "rm /parts.tar; pkill containerd; sleep 1"), env=docker.env)
        log.run(["docker", "commit", "--change", ENTRYPOINT, BUILDER, ref], env=docker.env)
    finally:
        _remove_builder(log, docker)
    log.run(["docker", "rmi", "--no-prune", unloaded, *sorted(set(tags.values()))], env=docker.env)


def _remove_builder(log: Log, docker: Docker) -> None:
    if docker.state(BUILDER):
        log.run(["docker", "rm", "--force", "--volumes", BUILDER], env=docker.env)


def _wait_for_containerd(log: Log, docker: Docker) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            log.run(["docker", "exec", BUILDER, "ctr", "version"], env=docker.env)
        except Problem:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
        else:
            return
