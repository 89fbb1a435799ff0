"""A graph with a FeedbackCapture node that has recorded four pictures of one prompt, open in the browser."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from playwright.sync_api import Locator, expect

API = "/feedback_loop/v1"
PROMPT = "a red fox on a <b>blue</b> hill"
SECONDS = 120  # the machine may be busy with other work

# The frontend mounts a widget only when its node is in view.
IN_VIEW = """scale => {
  const node = app.graph.nodes.find((one) => one.type === "FeedbackCapture");
  node.pos = [500 / scale, 120 / scale];
  app.canvas.ds.scale = scale;
  app.canvas.ds.offset = [0, 0];
  app.canvas.setDirty(true, true);
}"""


class Captured:
    """What a user does with the node's view. `ids` of the pictures as they are shown, newest first."""

    def __init__(self, comfy_page: Any, mode: str = "stars", count: int = 4) -> None:
        self.comfy_page, self.page, self.server = comfy_page, comfy_page.page, comfy_page.server
        expect.set_options(timeout=SECONDS * 1000)
        self.collection = f"widgets {uuid.uuid4()}"
        image = {"width": 64, "height": 48, "batch_size": count, "color": 0x3366AA}
        capture = {"images": ["1", 0], "collection": self.collection, "positive": ["3", 0]}
        self.prompt = {
            "1": {"class_type": "EmptyImage", "inputs": image},
            "3": {"class_type": "PrimitiveString", "inputs": {"value": PROMPT}},
            "2": {"class_type": "FeedbackCapture", "inputs": capture},
        }
        comfy_page.load_prompt(self.prompt)
        self.show()
        self.ids = comfy_page.queue()["outputs"]["2"]["feedback_images"][::-1]
        expect(self.cards).to_have_count(count)
        self.choose_mode(mode)

    def show(self, scale: float = 1) -> None:
        self.page.evaluate(IN_VIEW, scale)

    def reopen(self) -> None:
        """Reloads the page and opens the graph again."""
        self.comfy_page.open().load_prompt(self.prompt)
        self.show()
        expect(self.cards).to_have_count(len(self.ids))

    @property
    def cards(self) -> Locator:
        return self.page.locator(".fl-card")

    @property
    def view(self) -> Locator:
        return self.page.locator(".fl-capture")

    @property
    def large(self) -> Locator:
        return self.page.locator("dialog.fl-full")

    @property
    def stage(self) -> Locator:
        return self.large.locator(".fl-stage")

    def card(self, index: int) -> Locator:
        return self.page.locator(f'.fl-card[data-image-id="{self.ids[index]}"]')

    def mode(self, mode: str) -> Locator:
        return self.view.locator(f'.fl-option[data-value="{mode}"]')

    def choose_mode(self, mode: str) -> None:
        self.mode(mode).click()
        expect(self.mode(mode)).to_have_attribute("aria-checked", "true")

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def open_large(self, index: int = 0) -> Locator:
        self.card(index).focus()
        self.press(" ")
        expect(self.large).to_be_visible()
        return self.large

    def close(self) -> None:
        """Whatever a test left open."""
        self.page.unroute_all()
        self.page.evaluate("() => document.querySelectorAll('dialog.fl-full').forEach((view) => view.close())")
        self.page.mouse.move(5, 500)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Drags over the large picture; the places are fractions of it."""
        box = self.stage.bounding_box()
        assert box
        places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in (start, end)]
        self.page.mouse.move(*places[0])
        self.page.mouse.down()
        self.page.mouse.move(*places[1], steps=4)
        self.page.mouse.up()

    def marks(self, index: int = 0) -> dict[str, list[dict[str, Any]]]:
        return self.server.get(f"{API}/images/{self.ids[index]}/marks")

    def expect_stored(self, question: Callable[[], Any], expected: Any) -> None:
        """Waits until the server says so."""
        seen: list[Any] = []

        def answered() -> bool:
            seen.append(question())
            return seen[-1] == expected

        try:
            self.comfy_page.poll(answered, SECONDS)
        except AssertionError as error:
            raise AssertionError(f"{seen[-1]!r} instead of {expected!r}") from error

    def ratings(self, index: int = 0) -> list[tuple[float, float]]:
        """(value, top of the scale) of the ratings that count."""
        ratings = self.server.get(f"{API}/images/{self.ids[index]}")["ratings"]
        return [(rating["value"], rating["scale"]["max"]) for rating in ratings]

    def wins(self) -> set[tuple[int, int]]:
        """(better, worse) of every comparison that counts, as places among the pictures."""
        said = {one["id"]: one for index in range(len(self.ids)) for one in self.marks(index)["comparisons"]}
        pairs = set()
        for one in said.values():
            sides = {"left": self.ids.index(one["left"]), "right": self.ids.index(one["right"])}
            if one["winner"] in sides:
                better = sides.pop(one["winner"])
                pairs.add((better, *sides.values()))
        return pairs
