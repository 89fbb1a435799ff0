"""Help pages, tooltips and workflows, checked against the nodes that a running ComfyUI offers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from feedback_loop.tests.comfy_host import ComfyServer

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
NOT_RUN = {"MarkdownNote", "Note", "Reroute", "PrimitiveNode"}  # nodes of the frontend alone


@pytest.fixture(scope="module")
def node_info(comfy_server: ComfyServer) -> dict[str, Any]:
    return comfy_server.get("/object_info")


def ours(node_info: dict[str, Any]) -> dict[str, Any]:
    found = {name: info for name, info in node_info.items() if name.startswith("Feedback")}
    assert found, "the pack did not load"
    return found


def inputs_of(info: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every input with its options; those of a DynamicCombo's choices too, as `combo.input`."""
    yield from nested("", info["input"])


def nested(prefix: str, groups: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for group in ("required", "optional"):
        for name, (kind, *rest) in groups.get(group, {}).items():
            options = rest[0] if rest else {}
            yield prefix + name, options
            if kind == "COMFY_DYNAMICCOMBO_V3":
                for choice in options["options"]:
                    yield from nested(f"{prefix}{name}.", choice["inputs"])


def test_every_node_has_a_help_page_that_the_server_gives_out(comfy_server: ComfyServer, node_info) -> None:
    for name in ours(node_info):
        assert (ROOT / "web" / "docs" / f"{name}.md").is_file(), name
        status, page = comfy_server.request("GET", f"/extensions/feedback_loop/docs/{name}.md")
        assert status == 200 and len(page) > 300, name


def test_no_help_page_is_left_of_a_node_that_is_gone(node_info) -> None:
    assert {page.stem for page in (ROOT / "web" / "docs").glob("*.md")} == set(ours(node_info))


def test_every_input_of_every_node_has_a_tooltip(node_info) -> None:
    bare = [
        f"{name}.{input_name}"
        for name, info in ours(node_info).items()
        for input_name, options in inputs_of(info)
        if not options.get("tooltip")
    ]
    assert bare == []


def test_every_output_of_every_node_has_a_tooltip(node_info) -> None:
    for name, info in ours(node_info).items():
        assert len(info.get("output_tooltips", [])) == len(info["output"]), name
        assert all(info.get("output_tooltips", [])), name


def test_a_help_page_names_every_input_of_its_node(node_info) -> None:
    for name, info in ours(node_info).items():
        page = (ROOT / "web" / "docs" / f"{name}.md").read_text("utf-8")
        missing = [shown for shown, _ in inputs_of(info) if shown.split(".")[-1] not in page]
        assert missing == [], f"{name}: {missing}"


def test_the_first_workflows_are_there() -> None:
    assert [path.name[:3] for path in WORKFLOWS][:4] == ["01_", "02_", "03_", "04_"]


def test_the_server_offers_the_workflows_as_templates(comfy_server: ComfyServer) -> None:
    templates = comfy_server.get("/workflow_templates")
    assert sorted(templates["feedback_loop"]) == [path.stem for path in WORKFLOWS]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_is_in_ui_format_and_has_a_thumbnail(path: Path) -> None:
    graph = json.loads(path.read_text("utf-8"))
    assert {"nodes", "links", "version"} <= set(graph), "this is not what the frontend saves"
    assert path.with_suffix(".jpg").is_file()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_uses_nodes_and_inputs_that_exist(path: Path, node_info) -> None:
    graph = json.loads(path.read_text("utf-8"))
    inner = {node["id"]: node for node in graph.get("definitions", {}).get("subgraphs", [])}
    for node in [*graph["nodes"], *(node for subgraph in inner.values() for node in subgraph["nodes"])]:
        if node["type"] in NOT_RUN or node["type"] in inner:
            continue
        assert node["type"] in node_info, node["type"]
        known = {name for name, _ in inputs_of(node_info[node["type"]])}
        used = {slot["name"] for slot in node.get("inputs", [])}
        assert used <= known, f"{node['type']}: {sorted(used - known)}"
