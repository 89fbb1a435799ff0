"""Fixtures for nodes in this process and in a real ComfyUI."""

from __future__ import annotations

import uuid

import pytest

from feedback_loop.tests.comfy_host import ComfyServer
from feedback_loop.tests.nodes import comfy_modules  # noqa: F401  (makes ComfyUI's modules importable)

from .http_calls import captured


@pytest.fixture
def inference_mode():
    """ComfyUI runs every prompt in inference mode; a node that needs gradients has to cope with that."""
    import torch

    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def collection() -> str:
    """A collection of the module's own."""
    return f"routes {uuid.uuid4()}"


@pytest.fixture(scope="module")
def images(comfy_server: ComfyServer, collection: str) -> list[str]:
    """The ids of three captured pictures."""
    return captured(comfy_server, collection, 3, 0x3366CC)


@pytest.fixture
def rater() -> str:
    """Somebody new for every test, since the server's database is shared."""
    return f"rater {uuid.uuid4()}"


@pytest.fixture
def every_step_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI's progress bars leave out steps that follow each other quickly: which ones depends on the machine."""
    import comfy.utils

    monkeypatch.setattr(comfy.utils, "PROGRESS_THROTTLE_MIN_INTERVAL", 0.0)
