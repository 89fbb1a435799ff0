"""One real ComfyUI for all attacks, in a folder of its own with things around it that nobody may touch or read."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from feedback_loop import start
from feedback_loop.tests import comfy_host
from feedback_loop.tests.nodes import comfy_modules  # noqa: F401  (makes ComfyUI's modules importable)

from .target import State, Target, hostile_folders, judged_pictures


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("attacked")
    hostile_folders(folder)
    for server in comfy_host.running(folder, start.find_comfyui()):
        yield judged_pictures(Target(server, folder))


@pytest.fixture(scope="module", autouse=True)
def fresh_pictures(target: Target) -> None:
    """For each module anew: what makes its own requests (test_openapi) finds ids in answers, and may rightly delete."""
    judged_pictures(target)


@pytest.fixture(scope="module")
def calm(target: Target, fresh_pictures: None) -> State:
    """How things stand before the first attack of a module, and have to stand after each."""
    return target.state()


@pytest.fixture
def unharmed(target: Target, calm: State) -> Iterator[None]:
    """What has to hold after an attack, whatever became of it."""
    yield
    assert target.server.alive(), f"ComfyUI ended:\n{target.server.log()[-4000:]}"
    now = target.state()
    assert now.judged == calm.judged, "an attack was recorded"
    assert now.outside == calm.outside, "files outside of the pack's own folders were made, changed or removed"
