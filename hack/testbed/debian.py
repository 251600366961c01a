"""What comes from Debian: programs that this machine lacks, and root file systems that images start from."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from . import files
from .settings import Settings
from .steps import Log, Problem, Step
from .versions import key, pinned


def can_install() -> bool:
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def install(log: Log, cache: Path, packages: Sequence[str]) -> None:
    if not can_install():
        raise Problem(
            f"this needs the Debian packages {', '.join(packages)}",
            f"run as root: apt-get install {' '.join(packages)}",
        )
    # as if in single-user mode: where no systemd runs, a package must not start its daemon in its own way
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    with files.locked(cache / "locks" / "apt.lock"):
        log.run(["apt-get", "update", "-q"], env=env)
        log.run(
            ["apt-get", "install", "-y", "-q", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300", *packages],
            env=env,
        )


@dataclass(frozen=True)
class Root:
    """A Debian root file system, as a tar file made by mmdebstrap."""

    name: str
    packages: tuple[str, ...]
    finish: tuple[str, ...] = ()  # commands run at its end, with $1 its directory

    def path(self, cache: Path) -> Path:
        made_from = key(self.packages, self.finish, LEFT_OUT, pinned().debian_suite)
        return cache / "debian" / f"{self.name}-{pinned().debian_suite}-{made_from}.tar"


LEFT_OUT = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/info/*")

NODE = Root(
    "node",
    (
        *(
            "systemd",
            "systemd-sysv",
            "dbus",
            "containerd",
            "runc",
            "containernetworking-plugins",
            "iptables",
            "nftables",
        ),
        *(
            "iproute2",
            "conntrack",
            "socat",
            "util-linux",
            "mount",
            "ebtables",
            "ethtool",
            "kmod",
            "curl",
            "jq",
            "rsync",
        ),
        *("ca-certificates", "procps", "hostname", "tar", "gzip"),
    ),
)
SLIM = Root("slim", ("iptables", "nftables", "conntrack", "kmod", "ca-certificates"))
# As python:3.11-slim is seen by a Dockerfile: python, python3 and pip in /usr/local/bin, packages under /usr/local/lib,
# and a pip that installs where it is told to, since the image is nobody's operating system.
PYTHON = Root(
    "python",
    ("python3", "python3-pip", "python3-venv", "ca-certificates"),
    (
        'ln -s ../../bin/python3 "$1/usr/local/bin/python3"',
        'ln -s ../../bin/python3 "$1/usr/local/bin/python"',
        'ln -s ../../bin/pip3 "$1/usr/local/bin/pip"',
        'ln -s ../../bin/pip3 "$1/usr/local/bin/pip3"',
        'mkdir -p "$1/usr/local/lib/python3.11/dist-packages"',
        'ln -s dist-packages "$1/usr/local/lib/python3.11/site-packages"',
        'rm "$1/usr/lib/python3.11/EXTERNALLY-MANAGED"',
    ),
)


@cache
def tools(settings: Settings) -> Step:
    return Step(
        "Debian's image builder",
        lambda log: install(log, settings.cache, ["mmdebstrap"]),
        done=lambda: shutil.which("mmdebstrap") is not None,
        seconds=15,
        shared=True,
    )


@cache
def root(settings: Settings, which: Root) -> Step:
    path = which.path(settings.cache)

    def make(log: Log) -> None:
        with files.made_whole(path) as temporary:
            log.run(
                [
                    *("mmdebstrap", "--variant=minbase", "--format=tar", f"--include={','.join(which.packages)}"),
                    *(f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT),
                    *(f"--customize-hook={command}" for command in which.finish),
                    *(pinned().debian_suite, str(temporary)),
                ]
            )

    return Step(
        f"Debian root: {which.name}",
        make,
        done=path.exists,
        shared=True,
        needs=[tools(settings)],
        seconds=60,
        advice="check that Debian's packages can be reached, then run it again",
    )
