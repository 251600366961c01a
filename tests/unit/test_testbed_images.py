"""How images come to be: pulled or built, decided once, and unseen by whoever wants one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hack.testbed import images, own, registry, settings
from hack.testbed.steps import Log
from hack.testbed.versions import pinned


class FakeDocker:
    """A daemon that has the images it is told to have."""

    def __init__(self) -> None:
        self.present: set[str] = set()
        self.env: dict[str, str] = {}

    def has(self, ref: str) -> bool:
        return ref in self.present


class FakeLog(Log):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.commands: list[list[str]] = []

    def run(self, command: Any, **_: Any) -> None:
        self.commands.append([str(word) for word in command])


Make = Callable[..., tuple[images.Images, FakeDocker, list[str]]]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    def build(reachable: bool, way: str = "auto", docker: FakeDocker | None = None) -> Any:
        probes: list[str] = []

        def probe() -> bool:
            probes.append("probe")
            return reachable

        monkeypatch.setattr(registry, "reachable", probe)
        read = settings.read({"TIDEGATE_CACHE": str(tmp_path), "TIDEGATE_IMAGES": way})
        daemon = docker or FakeDocker()
        return images.Images(read, daemon, probes.append), daemon, probes  # type: ignore[arg-type]

    return build


def test_every_image_has_a_way_to_be_built_and_one_to_be_pulled(make: Make) -> None:
    for way in ("pull", "build"):
        found, _, probes = make(reachable=False, way=way)
        refs = {name: found.ensure(name)[0] for name in images.NAMES}
        assert len(set(refs.values())) == len(refs)
        assert probes == []
        for name, ref in refs.items():
            assert ref.startswith("dev.local/") or (name == "python-base" and ref == "python:3.11-slim-bookworm")


def test_a_pulled_image_gets_its_local_name(make: Make, tmp_path: Path) -> None:
    found, daemon, _ = make(reachable=True)
    ref, step = found.ensure("kourier")
    assert not step.done()
    log = FakeLog(tmp_path / "log")
    step.run(log)
    log.close()
    published = pinned().published["kourier"]
    assert log.commands == [["docker", "pull", "--quiet", published], ["docker", "tag", published, ref]]
    daemon.present.add(ref)
    assert step.done()


def test_the_way_is_said_and_kept_as_long_as_the_images_are_there(make: Make) -> None:
    found, daemon, heard = make(reachable=False)
    daemon.present = {found.ensure(name)[0] for name in images.NAMES}
    assert heard[0] == "probe"
    assert "no container registry answers" in heard[1]

    again, _, heard = make(reachable=True, docker=daemon)
    assert again.way() == "build"
    assert heard == []

    daemon.present.pop()
    anew, _, heard = make(reachable=True, docker=FakeDocker())
    assert anew.way() == "pull"
    assert heard[0] == "probe"


def test_one_step_for_each_image(make: Make) -> None:
    found, _, _ = make(reachable=False)
    assert found.ensure("s3")[1] is found.ensure("s3")[1]
    slim = [
        need for name in ("s3", "envoy", "node") for need in found.ensure(name)[1].needs if need.name == "image slim"
    ]
    assert len(slim) == 3
    assert len({id(step) for step in slim}) == 1


def test_the_tag_of_our_image_follows_its_content(make: Make, tmp_path: Path) -> None:
    folder = tmp_path / "server"
    folder.mkdir()
    (folder / "Dockerfile").write_text("FROM python:3.11-slim-bookworm\n")
    source = own.Source("server", "dev.local/server", folder / "Dockerfile", folder, (".",))

    def ref() -> str:
        found, daemon, _ = make(reachable=False, way="build")
        return own.OwnImages(settings.read({"TIDEGATE_CACHE": str(tmp_path)}), daemon, found).ensure(source)[0]  # type: ignore[arg-type]

    first = ref()
    assert ref() == first
    (folder / "server.py").write_text("print()\n")
    assert ref() != first
