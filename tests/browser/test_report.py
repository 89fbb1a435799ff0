"""What a node says of its run stands in the node, in both renderers; ComfyUI itself shows no node's text."""

from __future__ import annotations

import time
from typing import Any

from playwright.sync_api import expect

# The frontend mounts a widget only when its node is in view.
IN_VIEW = """() => {
  const node = app.graph.nodes.find((one) => one.type === "FeedbackScoreImages");
  node.pos = [500, 120];
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset = [0, 0];
  app.canvas.setDirty(true, true);
}"""
SIZE = "() => app.graph.nodes.find((one) => one.type === 'FeedbackScoreImages').size[1]"
SAVED = "() => app.graph.serialize().nodes.find((one) => one.type === 'FeedbackScoreImages').widgets_values ?? []"


def scoring(color: int) -> dict[str, Any]:
    return {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": 64, "height": 64, "batch_size": 3, "color": color},
        },
        "2": {"class_type": "FeedbackColorReward", "inputs": {"property": "brightness"}},
        "3": {"class_type": "FeedbackScoreImages", "inputs": {"images": ["1", 0], "reward": ["2", 0]}},
    }


def test_the_report_of_a_run_is_read_in_the_node_and_is_no_part_of_the_workflow(renderer: Any) -> None:
    page = renderer.load_prompt(scoring(time.time_ns() % 0xFFFFFF)).page
    page.evaluate(IN_VIEW)
    before, values = page.evaluate(SIZE), page.evaluate(SAVED)
    assert page.locator(".fl-report").count() == 0
    assert renderer.queue()["status"]["status_str"] == "success"
    report = page.locator(".fl-report").first
    expect(report).to_contain_text("1. picture 1:", timeout=60_000)
    expect(report).to_be_visible()
    assert page.evaluate(SIZE) > before, "the node made no room for it"
    assert page.evaluate(SAVED) == values
    assert renderer.errors == []
