"""The pack's JavaScript loads in the real frontend, in both renderers."""

from __future__ import annotations

import pytest

from feedback_loop import start


@pytest.mark.parametrize("vue_nodes", [False, True], ids=["classic", "vue"])
def test_comfyui_opens_with_the_pack_and_without_a_script_error(comfy_page, vue_nodes: bool) -> None:
    comfy_page.set_vue_nodes(vue_nodes)
    nodes = comfy_page.page.evaluate("() => Object.keys(window.LiteGraph.registered_node_types)")
    assert "FeedbackCapture" in nodes
    assert comfy_page.errors == []


def test_the_page_that_start_py_opens_shows_the_first_workflow(comfy_page) -> None:
    comfy_page.page.goto(comfy_page.server.url + start.first_page())
    shown = "() => window.app?.graph?.nodes.some(node => node.type === 'FeedbackCapture')"
    comfy_page.page.wait_for_function(shown, timeout=60_000)
    assert comfy_page.errors == []
