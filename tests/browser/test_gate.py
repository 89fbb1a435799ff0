"""FeedbackGate in the browser, in both renderers: a run waits in the page, and goes on with what a person decided."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

API = "/feedback_loop/v1"
expect.set_options(timeout=60_000)  # the machine may be busy with other work

# The frontend mounts a widget only when its node is in view.
IN_VIEW = """() => {
  const node = app.graph.nodes.find((one) => one.type === "FeedbackGate");
  node.pos = [500, 120];
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset = [0, 0];
  app.canvas.setDirty(true, true);
}"""


class Gate:
    """A graph with one gate over pictures of different colours, open in the browser, and its waiting run."""

    def __init__(self, comfy_page: Any) -> None:
        self.comfy_page, self.page, self.server = comfy_page, comfy_page.page, comfy_page.server
        self.element = self.page.locator(".lg-node, .dom-widget, body").locator(".fl-gate").first

    def ask(self, count: int = 4, wait: bool = True, **inputs: Any) -> Gate:
        settings = {"mode": "choose", "timeout": 0, "on_timeout": "skip", "without_client": "wait", **inputs}
        self.prompt = {
            **ramp(count),
            "50": {
                "class_type": "FeedbackGate",
                "inputs": {"images": [str(count), 0], "collection": f"gate {uuid.uuid4()}", **settings},
            },
            "51": {"class_type": "PreviewAny", "inputs": {"source": ["50", 3]}},
            "52": {"class_type": "PreviewAny", "inputs": {"source": ["50", 2]}},
            "53": {"class_type": "MaskToImage", "inputs": {"mask": ["50", 1]}},
            "54": {"class_type": "PreviewImage", "inputs": {"images": ["53", 0]}},
        }
        self.comfy_page.load_prompt(self.prompt)
        self.page.evaluate(IN_VIEW)
        if wait:
            self.queue()
        return self

    def queue(self) -> None:
        self.before = set(self.server.get("/history"))
        self.page.evaluate("() => window.app.queuePrompt(0, 1)")
        self.asked = self.comfy_page.poll(self.waiting, 120)[0]
        expect(self.cards()).to_have_count(len(self.asked["images"]))

    def waiting(self) -> list[dict[str, Any]]:
        return self.server.get(f"{API}/gates")["gates"]

    def end(self) -> dict[str, Any]:
        """The outputs of the run, once it has ended."""
        entry = self.server.wait(self.asked["prompt_id"], 120)
        assert entry["status"]["status_str"] == "success"
        return entry["outputs"]

    def cards(self) -> Locator:
        return self.element.locator(".fl-card")

    def button(self, name: str) -> Locator:
        return self.element.get_by_role("button", name=name)

    def marks(self, place: int) -> dict[str, Any]:
        return self.server.get(f"{API}/images/{self.asked['images'][place]}/marks")


def ramp(count: int) -> dict[str, Any]:
    """Nodes 1 to `count`: the last one gives a batch of that many pictures of different colours."""
    image = {"width": 64, "height": 48, "batch_size": 1}
    colours = [0xC0392B, 0x27AE60, 0x2980B9, 0xF1C40F, 0x8E44AD]
    nodes: dict[str, Any] = {"1": {"class_type": "EmptyImage", "inputs": {**image, "color": colours[0]}}}
    for index in range(1, count):
        nodes[f"9{index}"] = {"class_type": "EmptyImage", "inputs": {**image, "color": colours[index % 5]}}
        batch = {"image1": [str(index), 0], "image2": [f"9{index}", 0]}
        nodes[str(index + 1)] = {"class_type": "ImageBatch", "inputs": batch}
    return nodes


# What does not depend on how nodes are drawn is tried once.
once = pytest.mark.parametrize("renderer", [False], ids=["classic"], indirect=True)


@pytest.fixture
def gate(renderer: Any) -> Iterator[Gate]:
    renderer.page.mouse.move(5, 500)
    yield Gate(renderer)
    server = renderer.server
    server.post("/queue", {"clear": True})
    server.post("/interrupt", {})
    renderer.poll(lambda: not server.get(f"{API}/gates")["gates"] and not server.get("/queue")["queue_running"], 60)
    renderer.page.evaluate("() => document.querySelectorAll('dialog.fl-full').forEach((view) => view.close())")
    assert renderer.errors == []


def test_a_click_chooses_and_the_run_goes_on_with_it(gate: Gate) -> None:
    gate.ask(timeout=600)
    expect(gate.element.locator(".fl-gate-time")).to_contain_text("then nothing goes on")
    expect(gate.button("Go on")).to_be_disabled()
    gate.cards().nth(2).locator("img").click()
    gate.element.get_by_role("textbox").fill("the blue one")
    gate.button("Go on with picture 3").click()
    outputs = gate.end()
    assert (outputs["51"]["text"], outputs["52"]["text"]) == (["2"], ["the blue one"])
    assert len(gate.marks(2)["comparisons"]) == 3
    expect(gate.element.get_by_text("The run went on: chosen by me.")).to_be_visible()


def test_the_keyboard_alone_chooses_paints_comments_and_goes_on(gate: Gate) -> None:
    gate.ask()
    keys = gate.page.keyboard
    gate.cards().first.focus()
    keys.press("2")
    expect(gate.cards().nth(1)).to_be_focused()
    keys.press("t")
    keys.type("green 1 2 3")
    keys.press("Tab")
    expect(gate.button("Mark")).to_be_focused()
    keys.press("Enter")
    expect(gate.element.locator(".fl-stage")).to_be_focused()
    keys.press("Enter")
    for _ in range(5):
        keys.press("Shift+ArrowRight")
    keys.press("Escape")
    expect(gate.button("Change mark")).to_be_focused()
    gate.cards().nth(1).focus()
    keys.press("Enter")
    outputs = gate.end()
    assert (outputs["51"]["text"], outputs["52"]["text"]) == (["1"], ["green 1 2 3"])
    (region,) = gate.marks(1)["regions"]
    assert region["shape"] == "mask"
    assert [one["text"] for one in gate.marks(1)["comments"]] == ["green 1 2 3"]


@once
def test_pictures_clicked_in_order_are_ranked(gate: Gate) -> None:
    gate.ask(3, mode="rank")
    expect(gate.button("Go on in this order")).to_be_disabled()
    gate.cards().nth(2).locator("img").click()
    gate.cards().nth(0).locator("img").click()
    # Only one place is left for the one that is left.
    expect(gate.cards().nth(1).locator(".fl-place")).to_contain_text("Place 3")
    gate.button("Go on in this order").click()
    outputs = gate.end()
    first, second, third = gate.asked["images"]
    assert outputs["50"]["feedback_gate"][0]["images"] == [third, first, second]
    assert [one["image_ids"] for one in gate.marks(0)["rankings"]] == [[third, first, second]]


@once
def test_what_is_clicked_away_is_rejected_and_the_rest_approved(gate: Gate) -> None:
    gate.ask(3, mode="approve")
    gate.cards().nth(1).locator("img").click()
    gate.button("Approve 2 of 3 pictures").click()
    outputs = gate.end()
    first, _, third = gate.asked["images"]
    assert outputs["50"]["feedback_gate"][0]["images"] == [first, third]


@once
def test_rejecting_lets_nothing_go_on(gate: Gate) -> None:
    gate.ask(1, mode="approve")
    gate.button("Reject").click()
    assert set(gate.end()) == {"50"}


@once
def test_what_was_said_can_be_taken_back_while_the_run_goes_on_with_it(gate: Gate) -> None:
    gate.ask(3)
    gate.cards().nth(1).locator("img").click()
    gate.element.get_by_role("textbox").fill("sharper")
    gate.button("Go on with picture 2").click()
    assert gate.end()["51"]["text"] == ["1"]
    assert len(gate.marks(1)["comparisons"]) == 2
    take_back = gate.button("Take back what I said")
    take_back.click()
    expect(gate.element.get_by_text("Took back: “Go on with picture 2”")).to_be_visible()
    expect(take_back).to_be_hidden()
    assert not any(gate.marks(1).values())
    # The next answer is taken back by its key, on a picture of the question after it.
    gate.queue()
    gate.cards().first.focus()
    gate.page.keyboard.press("1")
    gate.page.keyboard.press("Enter")
    gate.end()
    first = gate.asked["images"][0]
    assert len(gate.server.get(f"{API}/images/{first}/marks")["comparisons"]) == 2
    gate.queue()
    gate.cards().first.focus()
    gate.page.keyboard.press("u")
    gone = lambda: not gate.server.get(f"{API}/images/{first}/marks")["comparisons"]  # noqa: E731
    gate.comfy_page.poll(gone, 60)


@once
def test_pictures_that_cannot_be_read_at_first_are_asked_for_again(gate: Gate) -> None:
    """As while a database server is away: the node says so, and shows them when it is back."""
    answer = {"status": 503, "json": {"error": "The feedback database does not answer."}}
    gate.page.route("**/feedback_loop/v1/images/*", lambda route: route.fulfill(**answer))
    gate.ask(2, wait=False)
    gate.page.evaluate("() => window.app.queuePrompt(0, 1)")
    gate.asked = gate.comfy_page.poll(gate.waiting, 60)[0]
    expect(gate.element).to_contain_text("can't be read at this moment")
    gate.page.unroute_all()
    expect(gate.cards()).to_have_count(2)
    gate.cards().first.locator("img").click()
    gate.button("Go on with picture 1").click()
    assert gate.end()["51"]["text"] == ["0"]


def test_a_painted_part_leaves_the_node_as_a_mask(gate: Gate) -> None:
    gate.ask(2)
    gate.cards().nth(1).locator("img").click()
    gate.button("Mark").click()
    box = gate.element.locator(".fl-stage").bounding_box()
    assert box
    gate.page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + box["height"] / 2)
    gate.page.mouse.down()
    gate.page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + box["height"] / 2, steps=5)
    gate.page.mouse.up()
    gate.button("Back to the pictures").click()
    expect(gate.cards().nth(1).locator(".fl-place")).to_contain_text("marked")
    gate.button("Go on with picture 2").click()
    gate.end()
    (region,) = gate.marks(1)["regions"]
    assert (region["shape"], region["label"]) == ("mask", "marked")


@once
def test_after_a_reload_the_same_question_is_there_and_can_be_answered(gate: Gate) -> None:
    gate.ask()
    key = gate.asked["key"]
    gate.comfy_page.open()
    pill = gate.page.get_by_role("button", name="A run waits for you")
    pill.click()
    dialog = gate.page.locator("dialog.fl-gate-dialog")
    expect(dialog.locator(".fl-card")).to_have_count(4)
    assert [one["key"] for one in gate.waiting()] == [key]
    dialog.locator(".fl-card").nth(3).locator("img").click()
    dialog.get_by_role("button", name="Go on with picture 4").click()
    assert gate.end()["51"]["text"] == ["3"]
    expect(dialog).to_have_count(0)
    expect(pill).to_be_hidden()


@once
def test_a_second_tab_shows_the_question_and_sees_it_answered_in_the_first(gate: Gate) -> None:
    gate.ask(2)
    second: Page = gate.page.context.new_page()
    try:
        second.goto(gate.server.url)
        pill = second.get_by_role("button", name="A run waits for you")
        expect(pill).to_be_visible()
        pill.click()
        dialog = second.locator("dialog.fl-gate-dialog")
        expect(dialog.locator(".fl-card")).to_have_count(2)
        gate.cards().first.locator("img").click()
        gate.button("Go on with picture 1").click()
        gate.end()
        expect(dialog).to_have_count(0)
        expect(pill).to_be_hidden()
    finally:
        second.close()


@once
def test_several_runs_in_the_queue_are_asked_about_one_after_the_other(gate: Gate) -> None:
    gate.ask(2)
    gate.page.evaluate("() => window.app.queuePrompt(0, 1)")
    first = gate.asked
    gate.cards().nth(1).focus()
    gate.page.keyboard.press("Enter")
    gate.page.keyboard.press("Enter")
    assert gate.end()["51"]["text"] == ["1"]
    gate.asked = gate.comfy_page.poll(gate.waiting, 60)[0]
    assert gate.asked["prompt_id"] != first["prompt_id"]
    # Nothing of the first answer is left in the second question.
    expect(gate.button("Go on")).to_be_disabled()
    gate.cards().nth(0).locator("img").click()
    gate.button("Go on with picture 1").click()
    assert gate.end()["51"]["text"] == ["0"]


def test_stopping_the_run_takes_the_question_away(gate: Gate) -> None:
    gate.ask(2)
    gate.page.evaluate("() => window.app.extensionManager.command.execute('Comfy.Interrupt')")
    gate.comfy_page.poll(lambda: not gate.waiting(), 30)
    expect(gate.cards()).to_have_count(0)
    assert not gate.server.get("/queue")["queue_running"]


@once
def test_the_countdown_ends_with_the_outcome_that_it_stated(gate: Gate) -> None:
    gate.ask(2, timeout=4, on_timeout="first")
    expect(gate.element.locator(".fl-gate-time")).to_contain_text("then the first picture goes on")
    assert gate.end()["51"]["text"] == ["0"]
    expect(gate.element.get_by_text("Nobody answered within 4 seconds: first")).to_be_visible()


@once
def test_a_gate_inside_a_subgraph_is_asked_about_and_answered(gate: Gate) -> None:
    gate.ask(2, wait=False)
    gate.page.evaluate(
        """() => {
          const node = app.graph.nodes.find((one) => one.type === "FeedbackGate");
          app.graph.convertToSubgraph(new Set([node]));
        }"""
    )
    gate.page.evaluate("() => window.app.queuePrompt(0, 1)")
    gate.asked = gate.comfy_page.poll(gate.waiting, 60)[0]
    assert ":" in gate.asked["node_id"]
    expect(gate.page.get_by_role("button", name="A run waits for you")).to_be_visible()
    gate.page.keyboard.press("Alt+g")
    dialog = gate.page.locator("dialog.fl-gate-dialog")
    expect(dialog.get_by_role("heading", name="Wait for a choice")).to_be_visible()
    expect(dialog.locator(".fl-card").first).to_be_focused()
    gate.page.keyboard.press("2")
    gate.page.keyboard.press("Enter")
    assert gate.end()["51"]["text"] == ["1"]


@once
def test_an_answer_that_is_refused_says_why_and_leaves_the_question(gate: Gate) -> None:
    gate.ask(2)
    gate.page.route("**/gates/*", lambda route: route.fulfill(status=503, json={"error": "The disk is full."}))
    gate.cards().first.locator("img").click()
    gate.button("Go on with picture 1").click()
    expect(gate.page.get_by_text("The disk is full.")).to_be_visible()
    gate.page.unroute_all()
    gate.button("Go on with picture 1").click()
    assert gate.end()["51"]["text"] == ["0"]


def test_nothing_of_the_question_is_in_the_saved_workflow_or_the_prompt(gate: Gate) -> None:
    gate.ask(2)
    gate.cards().first.locator("img").click()
    sent = gate.page.evaluate("async () => await window.app.graphToPrompt()")
    assert set(sent["output"]["50"]["inputs"]) == {*gate.prompt["50"]["inputs"], "ask_again"}
    assert gate.asked["images"][0] not in json.dumps(sent)
