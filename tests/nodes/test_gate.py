"""FeedbackGate in a real ComfyUI: what a run that waits does when it is answered, stopped, out of time or alone."""

from __future__ import annotations

import asyncio
import base64
import copy
import json
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import numpy as np
import pytest
from PIL import Image

from feedback_loop.feedback.media import encode_png
from feedback_loop.tests.comfy_host import JSON, ComfyServer, error_of

from .http_calls import API, NO_ID, listed

PROMPT = json.loads((Path(__file__).parent / "prompts" / "gate.json").read_text("utf-8"))
SIZE = (20, 30)  # height, width


@pytest.fixture(autouse=True)
def nothing_waits(comfy_server: ComfyServer) -> Iterator[None]:
    """Before and after: a test that fails must not leave a run that blocks all others."""
    yield
    comfy_server.post("/queue", {"clear": True})
    comfy_server.post("/interrupt", {})
    until(lambda: not gates(comfy_server) and not running(comfy_server))


@pytest.fixture(scope="module")
def pictures(comfy_server: ComfyServer) -> list[np.ndarray]:
    """The pixels of gate_a.png and gate_b.png in the input folder."""
    made = [np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8) for seed in (1, 2)]
    for name, pixels in zip("ab", made, strict=True):
        Image.fromarray(pixels).save(comfy_server.base_directory / "input" / f"gate_{name}.png")
    return made


def until(question: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := question():
            return answer
        time.sleep(0.05)
    raise AssertionError(f"still {answer!r} after {seconds} s")


def gates(server: ComfyServer) -> list[JSON]:
    return server.get(f"{API}/gates")["gates"]


def running(server: ComfyServer) -> list[Any]:
    return server.get("/queue")["queue_running"]


def of_run(server: ComfyServer, prompt_id: str, count: int = 1) -> list[JSON]:
    """What this run waits for, once there are `count` of it."""

    def found() -> list[JSON]:
        mine = [gate for gate in gates(server) if gate["prompt_id"] == prompt_id]
        return mine if len(mine) == count else []

    return until(found)


def answer(server: ComfyServer, gate: JSON, headers: dict[str, str] | None = None, **body: Any) -> tuple[int, Any]:
    return server.request("POST", f"{API}/gates/{quote(gate['key'], safe='')}", {"rater": "ann", **body}, headers)


def choose(server: ComfyServer, gate: JSON, place: int, **more: Any) -> None:
    status, said = answer(server, gate, action="choose", images=[gate["images"][place]], **more)
    assert status == 200, said


def asking(**inputs: Any) -> JSON:
    """The prompt with other settings of its gate."""
    prompt = copy.deepcopy(PROMPT)
    prompt["4"]["inputs"].update(collection=f"gate {uuid.uuid4()}", **inputs)
    return prompt


def saved(server: ComfyServer, entry: JSON, node: str = "5") -> list[np.ndarray]:
    files = [image["filename"] for image in entry["outputs"].get(node, {}).get("images", [])]
    return [np.asarray(Image.open(server.base_directory / "output" / name).convert("RGB")) for name in files]


def ended(entry: JSON) -> list[str]:
    return [kind for kind, _ in entry["status"]["messages"]]


def same(found: list[np.ndarray], expected: list[np.ndarray]) -> bool:
    return len(found) == len(expected) and all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def marks(server: ComfyServer, image: str) -> JSON:
    return server.get(f"{API}/images/{image}/marks")


def test_the_chosen_picture_goes_on_with_mask_comment_and_index(comfy_server, pictures) -> None:
    run = comfy_server.queue_prompt(asking())
    (gate,) = of_run(comfy_server, run)
    assert (gate["node_id"], gate["list_index"], gate["mode"]) == ("4", 0, "choose")
    assert 0 < gate["seconds_left"] <= 300
    painted = np.zeros(SIZE, np.uint8)
    painted[5:10, 3:9] = 255
    first, second = gate["images"]
    mask = base64.b64encode(encode_png(painted)).decode()
    choose(comfy_server, gate, 1, mask=mask, comment="the left hand")
    entry = comfy_server.wait(run)
    assert ended(entry)[-1] == "execution_success"
    assert same(saved(comfy_server, entry), [pictures[1]])
    assert same(saved(comfy_server, entry, "9"), [np.repeat(painted[..., None], 3, -1)])
    assert (entry["outputs"]["6"]["text"], entry["outputs"]["7"]["text"]) == (["the left hand"], ["1"])
    assert entry["outputs"]["4"]["feedback_gate"] == [{"images": [second], "how": "chosen by ann", "key": gate["key"]}]
    assert gates(comfy_server) == []

    (comparison,) = marks(comfy_server, first)["comparisons"]
    about = ("left", "right", "winner", "rater", "axis", "policy")
    assert tuple(comparison[name] for name in about) == (first, second, "right", "ann", "overall", "gate")
    (region,) = marks(comfy_server, second)["regions"]
    assert (region["shape"], region["label"]) == ("mask", "marked")
    assert [one["text"] for one in marks(comfy_server, second)["comments"]] == ["the left hand"]


def test_what_is_acknowledged_is_stored_and_sent_twice_it_is_stored_once(comfy_server, pictures) -> None:
    run = comfy_server.queue_prompt(asking())
    (gate,) = of_run(comfy_server, run)
    body = {"action": "choose", "images": gate["images"][:1]}
    once = {"Idempotency-Key": str(uuid.uuid4())}
    assert answer(comfy_server, gate, once, **body)[0] == 200
    assert len(marks(comfy_server, gate["images"][0])["comparisons"]) == 1
    assert answer(comfy_server, gate, once, **body)[0] == 200
    comfy_server.wait(run)
    assert answer(comfy_server, gate, once, **body)[0] == 200
    assert len(marks(comfy_server, gate["images"][0])["comparisons"]) == 1


def test_the_answer_names_what_it_stored_so_that_it_can_be_taken_back_with_the_time_it_took(
    comfy_server, pictures, rater
) -> None:
    run = comfy_server.queue_prompt(asking())
    (gate,) = of_run(comfy_server, run)
    first, second = gate["images"]
    body = {"action": "choose", "images": [second], "comment": "sharper", "lead_time": 2.5, "rater": rater}
    said = answer(comfy_server, gate, **body)[1]
    assert comfy_server.wait(run)["outputs"]["4"]["feedback_gate"][0]["images"] == [second]
    (comparison,) = marks(comfy_server, first)["comparisons"]
    (comment,) = marks(comfy_server, second)["comments"]
    assert said["judgements"] == [comparison["id"], comment["id"]]
    (pace,) = [one for one in comfy_server.get(f"{API}/stats")["reliability"] if one["rater"] == rater]
    assert pace["median_seconds"] == 2.5
    for id_ in said["judgements"]:
        assert comfy_server.request("DELETE", f"{API}/judgements/{id_}")[0] == 200
    assert not any(marks(comfy_server, first).values()) and not any(marks(comfy_server, second).values())


def test_a_ranking_goes_on_in_order_and_is_kept_as_a_ranking(comfy_server, pictures) -> None:
    run = comfy_server.queue_prompt(asking(mode="rank"))
    (gate,) = of_run(comfy_server, run)
    order = gate["images"][::-1]
    assert answer(comfy_server, gate, action="rank", images=order)[0] == 200
    entry = comfy_server.wait(run)
    assert same(saved(comfy_server, entry), pictures[::-1])
    assert [one["image_ids"] for one in marks(comfy_server, order[0])["rankings"]] == [order]


def test_what_was_approved_goes_on_and_the_rest_is_rated_down(comfy_server, pictures) -> None:
    run = comfy_server.queue_prompt(asking(mode="approve"))
    (gate,) = of_run(comfy_server, run)
    first, second = gate["images"]
    assert answer(comfy_server, gate, action="approve", images=[second])[0] == 200
    entry = comfy_server.wait(run)
    assert same(saved(comfy_server, entry), [pictures[1]])
    approval = {id_: [(r["value"], r["axis"]) for r in listed(comfy_server, id_, "ann")] for id_ in (first, second)}
    assert approval == {first: [(0, "approval")], second: [(1, "approval")]}


def test_what_was_rejected_ends_here_and_the_run_without_an_error(comfy_server, pictures) -> None:
    run = comfy_server.queue_prompt(asking(mode="approve"))
    (gate,) = of_run(comfy_server, run)
    assert answer(comfy_server, gate, action="reject")[0] == 200
    entry = comfy_server.wait(run)
    assert ended(entry)[-1] == "execution_success"
    assert set(entry["outputs"]) == {"4"}, "no node after the gate ran"
    assert [r["value"] for id_ in gate["images"] for r in listed(comfy_server, id_, "ann")] == [0, 0]


def test_an_interrupt_ends_the_wait_and_leaves_the_server_ready(comfy_server, pictures) -> None:
    run = comfy_server.queue_prompt(asking(timeout=0))
    (gate,) = of_run(comfy_server, run)
    assert gate["seconds_left"] is None
    comfy_server.post("/interrupt", {"prompt_id": run})
    entry = comfy_server.wait(run, 30)
    assert ended(entry)[-1] == "execution_interrupted"
    assert gates(comfy_server) == []
    status, said = answer(comfy_server, gate, action="choose", images=gate["images"][:1])
    assert (status, said["error"]) == (409, "This run no longer waits: it was stopped.")
    assert marks(comfy_server, gate["images"][0])["comparisons"] == []
    # The worker that runs prompts is still there.
    assert comfy_server.run(asking(without_client="first", timeout=1, on_timeout="first"))["5"]["images"]


def test_when_time_is_up_the_stated_outcome_happens(comfy_server, pictures) -> None:
    skipped = comfy_server.wait(comfy_server.queue_prompt(asking(timeout=1)))
    assert (ended(skipped)[-1], set(skipped["outputs"])) == ("execution_success", {"4"})
    first = comfy_server.wait(comfy_server.queue_prompt(asking(timeout=1, on_timeout="first")))
    assert same(saved(comfy_server, first), pictures[:1])
    how = "Nobody answered within 1 seconds: first"
    assert first["outputs"]["4"]["feedback_gate"][0]["how"] == how
    failed = comfy_server.wait(comfy_server.queue_prompt(asking(timeout=1, on_timeout="fail")))
    assert "Nobody answered within 1 seconds, and on_timeout is fail. Answer" in (error_of(failed) or "")
    # Nobody's taste: nothing of it was stored.
    (shown,) = first["outputs"]["4"]["feedback_gate"][0]["images"]
    assert marks(comfy_server, shown)["comparisons"] == []


def brighter(prompt: JSON, less: bool) -> JSON:
    prompt["10"] = {"class_type": "FeedbackColorReward", "inputs": {"property": "brightness"}}
    prompt["10"]["inputs"]["aim"] = "less" if less else "more"
    prompt["4"]["inputs"]["reward"] = ["10", 0]
    return prompt


def test_a_script_without_a_page_goes_on_by_its_policy_at_once(own_quiet_server, quiet_pictures) -> None:
    """Whoever asks for the gates counts as somebody who can answer, so nobody asks here."""
    server = own_quiet_server

    def entry(**inputs: Any) -> JSON:
        return server.wait(server.queue_prompt(asking(timeout=0, **inputs)))

    skipped = entry(without_client="skip")
    assert (ended(skipped)[-1], set(skipped["outputs"])) == ("execution_success", {"4"})
    assert same(saved(server, entry(without_client="first")), quiet_pictures[:1])
    assert "No page is open" in (error_of(entry(without_client="fail")) or "")
    assert "needs a reward" in (error_of(entry(without_client="best by reward")) or "")
    means = [picture.mean() for picture in quiet_pictures]
    for less in (False, True):
        best = int(np.argmin(means) if less else np.argmax(means))
        graph = brighter(asking(timeout=0, without_client="best by reward"), less)
        assert same(saved(server, server.wait(server.queue_prompt(graph))), [quiet_pictures[best]])


@pytest.fixture
def own_quiet_server(comfy_server: ComfyServer) -> ComfyServer:
    """The shared one, once nobody has asked for its gates long enough to count as gone."""
    until(lambda: not running(comfy_server))
    time.sleep(10.5)
    return comfy_server


@pytest.fixture
def quiet_pictures(pictures: list[np.ndarray]) -> list[np.ndarray]:
    return pictures


@contextmanager
def page(server: ComfyServer, client_id: str = "a page") -> Iterator[Callable[[str], Any]]:
    """A connection as ComfyUI's page makes it; what is given waits for an event of a kind."""
    loop = asyncio.new_event_loop()

    async def connect() -> tuple[aiohttp.ClientSession, aiohttp.ClientWebSocketResponse]:
        session = aiohttp.ClientSession()
        socket = await session.ws_connect(f"{server.url}/ws?clientId={client_id}")
        await socket.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
        return session, socket

    async def event(kind: str) -> Any:
        while True:
            message = await asyncio.wait_for(socket.receive(), 60)
            if message.type == aiohttp.WSMsgType.TEXT and (said := json.loads(message.data))["type"] == kind:
                return said["data"]

    session, socket = loop.run_until_complete(connect())
    try:
        yield lambda kind: loop.run_until_complete(event(kind))
    finally:
        loop.run_until_complete(session.close())
        loop.close()


def test_every_page_is_told_when_a_run_begins_to_wait_and_when_it_ends(comfy_server, pictures) -> None:
    with page(comfy_server, "one") as one, page(comfy_server, "two") as two:
        run = comfy_server.queue_prompt(asking())
        assert [event("feedback_loop.gates")["pending"] for event in (one, two)] == [1, 1]
        (gate,) = of_run(comfy_server, run)
        choose(comfy_server, gate, 0)
        assert [event("feedback_loop.gates")["pending"] for event in (one, two)] == [0, 0]
        comfy_server.wait(run)


def test_of_two_tabs_that_answer_at_once_one_counts(comfy_server, pictures) -> None:
    run = comfy_server.queue_prompt(asking())
    (gate,) = of_run(comfy_server, run)

    def tab(place: int) -> tuple[int, Any]:
        return answer(comfy_server, gate, action="choose", images=[gate["images"][place]], rater=f"tab {place}")

    with ThreadPoolExecutor(2) as pool:
        said = list(pool.map(tab, (0, 1)))
    assert sorted(status for status, _ in said) == [200, 409]
    won = [status for status, _ in said].index(200)
    assert same(saved(comfy_server, comfy_server.wait(run)), [pictures[won]])
    assert [one["rater"] for one in marks(comfy_server, gate["images"][0])["comparisons"]] == [f"tab {won}"]


def test_runs_in_the_queue_ask_one_after_the_other_each_under_its_own_key(comfy_server, pictures) -> None:
    runs = [comfy_server.queue_prompt(asking()) for _ in range(2)]
    (first,) = of_run(comfy_server, runs[0])
    assert [gate["prompt_id"] for gate in gates(comfy_server)] == runs[:1]
    choose(comfy_server, first, 0)
    (second,) = of_run(comfy_server, runs[1])
    assert answer(comfy_server, first, action="choose", images=first["images"][1:])[0] == 409
    choose(comfy_server, second, 1)
    found = [saved(comfy_server, comfy_server.wait(run)) for run in runs]
    assert same(found[0], pictures[:1]) and same(found[1], pictures[1:])


def test_a_run_with_the_same_pictures_asks_again_unless_it_is_told_not_to(comfy_server, pictures) -> None:
    for ask_again in (True, False):
        prompt = asking(ask_again=ask_again)
        run = comfy_server.queue_prompt(prompt)
        choose(comfy_server, of_run(comfy_server, run)[0], 1)
        comfy_server.wait(run)
        run = comfy_server.queue_prompt(prompt)
        if ask_again:
            choose(comfy_server, of_run(comfy_server, run)[0], 0)
        entry = comfy_server.wait(run)
        assert entry["outputs"]["7"]["text"] == ["0" if ask_again else "1"]


def in_a_subgraph(prompt: JSON) -> JSON:
    """As a page sends it when the gate is node 3 of a subgraph that is node 12: under an execution id."""
    return json.loads(json.dumps(prompt).replace('"4"', '"12:3"'))


def test_inside_a_subgraph_the_gate_is_known_by_its_execution_id(comfy_server, pictures) -> None:
    run = comfy_server.queue_prompt(in_a_subgraph(asking()), {"id": "a workflow"})
    (gate,) = of_run(comfy_server, run)
    assert (gate["node_id"], gate["workflow_id"]) == ("12:3", "a workflow")
    choose(comfy_server, gate, 1)
    assert same(saved(comfy_server, comfy_server.wait(run)), [pictures[1]])


def of_a_list() -> JSON:
    """The two pictures as a list of two batches of one."""
    prompt = asking(mode="approve")
    prompt["11"] = {"class_type": "RebatchImages", "inputs": {"images": ["3", 0], "batch_size": 1}}
    prompt["4"]["inputs"]["images"] = ["11", 0]
    return prompt


def test_the_items_of_a_list_are_answered_one_by_one_in_any_order(comfy_server, pictures) -> None:
    run = comfy_server.queue_prompt(of_a_list())
    first, second = of_run(comfy_server, run, 2)
    assert [first["list_index"], second["list_index"]] == [0, 1]
    assert answer(comfy_server, second, action="approve", images=second["images"])[0] == 200
    assert [gate["list_index"] for gate in of_run(comfy_server, run)] == [0]
    assert answer(comfy_server, first, action="reject")[0] == 200
    entry = comfy_server.wait(run)
    assert same(saved(comfy_server, entry), [pictures[1]]), "what was rejected is missing, the rest goes on"
    assert [one["images"] for one in entry["outputs"]["4"]["feedback_gate"]] == [[], second["images"]]


def test_an_interrupt_ends_the_waits_of_a_whole_list(comfy_server, pictures) -> None:
    """ComfyUI's flag is down as soon as one of them has seen it, and it waits for all of them."""
    run = comfy_server.queue_prompt(of_a_list())
    of_run(comfy_server, run, 2)
    comfy_server.post("/interrupt", {})
    assert ended(comfy_server.wait(run, 30))[-1] == "execution_interrupted"
    assert gates(comfy_server) == []


def test_a_node_that_fails_while_another_waits_leaves_nothing_behind(comfy_server, pictures) -> None:
    prompt = asking()
    prompt["20"] = {**copy.deepcopy(prompt["4"])}
    prompt["20"]["inputs"].update(collection="  ", mode="choose")
    entry = comfy_server.wait(comfy_server.queue_prompt(prompt))
    assert "collection is empty" in (error_of(entry) or "")
    assert gates(comfy_server) == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"action": "choose", "images": []}, 422),
        ({"action": "choose", "images": [NO_ID]}, 422),
        ({"action": "choose", "images": ["../../etc/passwd"]}, 422),
        ({"action": "delete", "images": []}, 422),
        ({"action": "choose", "images": [], "path": "/etc"}, 422),
        ({"action": "choose", "images": [], "mask": "no base64!"}, 422),
        ({"action": "choose", "images": [], "rater": ""}, 422),
    ],
)
def test_an_answer_that_does_not_fit_is_refused_and_the_run_waits_on(comfy_server, waiting, body, status) -> None:
    assert answer(comfy_server, waiting, **body)[0] == status
    assert gates(comfy_server)[0]["key"] == waiting["key"]


@pytest.fixture
def waiting(comfy_server: ComfyServer, pictures: list[np.ndarray]) -> JSON:
    return of_run(comfy_server, comfy_server.queue_prompt(asking()))[0]


@pytest.mark.parametrize("key", ["nobody", "a/b", "..", "%00", "x" * 3000])
def test_a_key_under_which_nothing_waits_is_refused(comfy_server, key: str) -> None:
    body = {"action": "reject", "images": [], "rater": "ann"}
    status, said = comfy_server.request("POST", f"{API}/gates/{quote(key, safe='')}", body)
    assert status == 404, said


@pytest.mark.long
def test_a_page_may_be_reloaded_and_one_that_stays_away_leaves_the_run_to_its_policy(comfy_server, pictures) -> None:
    def waits(run: str) -> bool:
        # Not by asking for the gates: whoever asks counts as somebody who can answer.
        return any(job[1] == run for job in running(comfy_server))

    time.sleep(10.5)
    with page(comfy_server, "a tab"):
        run = comfy_server.queue_prompt(asking(without_client="first", timeout=0), {"id": "a workflow"})
        until(lambda: waits(run))
    time.sleep(5)
    with page(comfy_server, "a tab"):
        time.sleep(15)
        assert waits(run), "a reload is no reason to go on"
    entry = comfy_server.wait(run)
    assert same(saved(comfy_server, entry), pictures[:1])
    assert entry["outputs"]["4"]["feedback_gate"][0]["how"] == "No page is open in which to answer: first"
