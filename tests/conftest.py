"""Makes the checkout importable as `feedback_loop`, the pack's name outside ComfyUI, and offers a real ComfyUI server.

`comfy_server` and `browser` are shared by the whole session: a test that changes the server's state cleans up, or asks
for `own_comfy_server`.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# One thread each: the server and the tests share the machine, and figures do not depend on the number of cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

if "feedback_loop" not in sys.modules:
    spec = importlib.util.spec_from_file_location(
        "feedback_loop", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec and spec.loader
    sys.modules["feedback_loop"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

from feedback_loop import start  # noqa: E402
from feedback_loop.tests import comfy_host  # noqa: E402

COMFYUI = start.find_comfyui(ROOT)
LEFT_OUT: list[str] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(ROOT / "tests").parts[0]
        if folder in ("nodes", "browser", "security"):
            item.add_marker("comfy")
        if folder == "browser":
            item.add_marker("browser")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leaves out, by name, what this machine cannot run; the summary says so."""
    relative = collection_path.relative_to(ROOT / "tests") if collection_path.is_relative_to(ROOT / "tests") else None
    if relative in (Path("nodes"), Path("security")) and COMFYUI is None:
        LEFT_OUT.append(f"tests/{relative}: no ComfyUI found (COMFYUI_PATH, or run `python3 start.py test`)")
        return True
    if relative == Path("browser") and (COMFYUI is None or start.find_chromium() is None):
        LEFT_OUT.append("tests/browser: no ComfyUI or no Chromium found (CHROMIUM_PATH)")
        return True
    return None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in dict.fromkeys(LEFT_OUT):
        terminalreporter.write_line(f"NOT RUN: {line}", yellow=True)


@pytest.fixture(scope="session")
def comfy_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[comfy_host.ComfyServer]:
    """A real ComfyUI on the CPU with the pack in its custom_nodes, in a base directory of its own."""
    yield from comfy_host.running(tmp_path_factory.mktemp("comfy"), COMFYUI)


@pytest.fixture
def own_comfy_server(tmp_path: Path) -> Iterator[comfy_host.ComfyServer]:
    """A server for one test alone, to kill or to restart; it takes about ten seconds."""
    yield from comfy_host.running(tmp_path, COMFYUI)
