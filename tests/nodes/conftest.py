"""Makes ComfyUI's own modules importable here, on the CPU, so that nodes are tested in this process with real classes.

The flags are set on the parsed arguments, since `comfy.cli_args` reads no command line unless it is told to, and
before `comfy.model_management` and `folder_paths` look at them.
"""

from __future__ import annotations

import sys
import tempfile
import uuid

import pytest

from feedback_loop import start
from feedback_loop.tests.comfy_host import ComfyServer

from .http_calls import captured

COMFYUI = start.find_comfyui()
BASE = tempfile.TemporaryDirectory(prefix="feedback_loop_comfy_")

if COMFYUI is not None:
    sys.path.insert(0, str(COMFYUI))
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    comfy.cli_args.args.base_directory = BASE.name


@pytest.fixture(scope="session", autouse=True)
def _base_directory():
    """Removed at the end of the session rather than when the interpreter happens to collect it."""
    yield
    BASE.cleanup()


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
