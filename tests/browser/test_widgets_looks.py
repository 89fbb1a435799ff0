"""How the views look: nothing overlaps, text is large enough and stands out, zoomed or not, on dark and on light."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import expect

from feedback_loop.tests.browser.captured import Captured

MODES = ("stars", "thumbs", "best", "rank", "compare")
SMALLEST_TEXT = 8.5  # pixels on the screen
LEAST_CONTRAST = 4.5  # WCAG 2.1, AA

# Boxes of what can be pressed or read, as it is seen: cut off by what scrolls or clips around it.
SEEN = """root => {
  const seen = [];
  const kinds = "button, input, textarea, img, .fl-count, .fl-hint:not(:has(*)), .fl-group-prompt, h3";
  for (const node of root.querySelectorAll(kinds)) {
    let { left, top, right, bottom } = node.getBoundingClientRect();
    for (let around = node.parentElement; around && root.contains(around); around = around.parentElement) {
      if (getComputedStyle(around).overflow === "visible") continue;
      const box = around.getBoundingClientRect();
      left = Math.max(left, box.left); right = Math.min(right, box.right);
      top = Math.max(top, box.top); bottom = Math.min(bottom, box.bottom);
    }
    const text = (node.textContent || node.title || node.className).trim().slice(0, 30);
    if (right - left > 1 && bottom - top > 1 && text) seen.push({ text, left, top, right, bottom });
  }
  const box = root.getBoundingClientRect();
  return { seen, root: { left: box.left, top: box.top, right: box.right, bottom: box.bottom } };
}"""

# Text on the screen: its size, and its contrast against the first opaque ground below it.
TEXTS = """root => {
  const scale = root.getBoundingClientRect().width / root.offsetWidth;
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colours) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => {
    const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const [x, y, z] = [r, g, b].map((v) => linear(v / 255));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const texts = [];
  const walk = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  for (let text = walk.nextNode(); text; text = walk.nextNode()) {
    const node = text.parentElement;
    if (!text.data.trim() || !node.checkVisibility() || node.closest(":disabled, .fl-number, .fl-badge")) continue;
    const grounds = [];
    for (let at = node; at; at = at.parentElement) grounds.unshift(getComputedStyle(at).backgroundColor);
    const style = getComputedStyle(node);
    const [one, other] = [light(rgba([...grounds, style.color])), light(rgba(grounds))];
    const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    texts.push({ text: text.data.trim().slice(0, 30), size: parseFloat(style.fontSize) * scale, contrast });
  }
  return texts;
}"""


@pytest.fixture
def captured(renderer: Any) -> Iterator[Captured]:
    captured = Captured(renderer)
    yield captured
    set_theme(captured, "dark")
    captured.close()


def set_theme(captured: Captured, theme: str) -> None:
    captured.page.evaluate("name => app.extensionManager.setting.set('Comfy.ColorPalette', name)", theme)
    dark = "dark => Boolean(document.querySelector('.dark-theme')) === dark"
    captured.page.wait_for_function(dark, arg=theme == "dark")


def overlaps(found: dict[str, Any]) -> list[str]:
    """Pairs of boxes that share more than a pixel, and boxes that leave the view."""
    boxes, root = found["seen"], found["root"]
    out = [
        f"{box['text']} leaves the view"
        for box in boxes
        if min(box["left"] - root["left"], box["top"] - root["top"]) < -1
        or min(root["right"] - box["right"], root["bottom"] - box["bottom"]) < -1
    ]
    for index, one in enumerate(boxes):
        for other in boxes[index + 1 :]:
            width = min(one["right"], other["right"]) - max(one["left"], other["left"])
            height = min(one["bottom"], other["bottom"]) - max(one["top"], other["top"])
            if width > 1 and height > 1:
                out.append(f"{one['text']} overlaps {other['text']}")
    return out


def unreadable(texts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    assert texts
    return [text for text in texts if text["size"] < SMALLEST_TEXT or text["contrast"] < LEAST_CONTRAST]


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_nothing_overlaps_in_the_node_and_all_text_is_readable_at_full_and_half_zoom(
    captured: Captured, theme: str
) -> None:
    set_theme(captured, theme)
    for scale in (1, 0.5):
        captured.show(scale)
        for mode in MODES:
            captured.choose_mode(mode)
            captured.page.wait_for_timeout(300)  # the node's own layout follows a frame later
            assert overlaps(captured.view.evaluate(SEEN)) == [], f"{mode} at {scale}"
            assert unreadable(captured.view.evaluate(TEXTS)) == [], f"{mode} at {scale}"


def test_nothing_overlaps_in_the_large_view_on_a_wide_and_a_narrow_window(captured: Captured) -> None:
    size = captured.page.viewport_size
    captured.open_large()
    captured.drag((0.3, 0.3), (0.6, 0.6))
    expect(captured.large.locator(".fl-mark-list li")).to_have_count(1)
    for theme in ("dark", "light"):
        set_theme(captured, theme)
        for width, height in ((1600, 1000), (1000, 650), (600, 900)):
            captured.page.set_viewport_size({"width": width, "height": height})
            assert overlaps(captured.large.evaluate(SEEN)) == [], f"{width} x {height}"
            assert unreadable(captured.large.evaluate(TEXTS)) == [], f"{width} x {height}, {theme}"
    captured.page.set_viewport_size(size)
