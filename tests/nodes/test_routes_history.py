"""Rating one's history: pictures of the output folder become pictures of a collection."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import aiohttp
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from feedback_loop.feedback import history
from feedback_loop.tests.comfy_host import ComfyServer

from .http_calls import API
from .routes_host import RoutesServer, serving

GRAPH = {
    "1": {"class_type": "CLIPTextEncode", "inputs": {"text": "a red kite", "clip": ["9", 0]}},
    "2": {
        "class_type": "KSampler",
        "inputs": {"positive": ["1", 0], "seed": 7, "steps": 20, "cfg": 5.0, "sampler_name": "euler"},
    },
    "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "kite"}},
}


def saved(path: Path, colour: int, **texts: str) -> Path:
    info = PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((12, 16, 3), colour, np.uint8)).save(path, pnginfo=info)
    return path


@pytest.fixture
def output(tmp_path: Path) -> Path:
    (folder := tmp_path / "output").mkdir()
    return folder


@pytest.fixture
def server(tmp_path: Path, output: Path) -> Iterator[RoutesServer]:
    with serving(tmp_path / "data", output=output) as running:
        yield running


@pytest.fixture(autouse=True)
def _data(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()


def scan(server: RoutesServer, collection: str = "history") -> dict:
    status, answer = server.request("POST", f"{API}/history/scan", {"collection": collection})
    assert status == 200, answer
    return answer


def counts(answer: dict) -> tuple[int, int, int]:
    return answer["added"], answer["known"], answer["refused"]


def test_pictures_come_in_with_what_their_files_say_of_them(server: RoutesServer, output: Path):
    saved(output / "kites" / "kite_00001_.png", 10, prompt=json.dumps(GRAPH), workflow='{"nodes": []}')
    saved(output / "plain.png", 20)
    assert counts(scan(server)) == (2, 0, 0)
    items = server.get(f"{API}/images?collection=history")["items"]
    assert {(item["prompt"], item["seed"]) for item in items} == {("a red kite", "7"), (None, None)}
    (kite,) = (item["id"] for item in items if item["prompt"])
    assert server.store.graphs(kite) == (GRAPH, {"nodes": []})


def test_a_second_scan_adds_only_what_is_new(server: RoutesServer, output: Path):
    saved(output / "a.png", 10)
    assert counts(scan(server)) == (1, 0, 0)
    saved(output / "b.png", 20)
    assert counts(scan(server)) == (1, 1, 0)
    assert counts(scan(server)) == (0, 2, 0)
    assert counts(scan(server, "another")) == (2, 0, 0), "each collection has its own"


def test_a_picture_that_was_captured_is_known_whatever_its_file_says(server: RoutesServer, output: Path):
    """Captured as pixels; the file in the output folder has them too, and metadata that a capture has not."""
    server.picture(10, "a red kite", "history")
    saved(output / "kite_1.png", 10, prompt=json.dumps(GRAPH))
    assert counts(scan(server)) == (0, 1, 0)


def test_files_are_left_as_they_were(server: RoutesServer, output: Path):
    path = saved(output / "a.png", 10, prompt=json.dumps(GRAPH))
    before = path.read_bytes(), path.stat().st_mtime_ns
    scan(server)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert [one.name for one in output.iterdir()] == ["a.png"]


def test_hostile_files_are_refused_by_name_and_the_others_come_in(server: RoutesServer, output: Path, tmp_path: Path):
    saved(output / "good.png", 10)
    secret = saved(tmp_path / "secret.png", 99)
    (output / "link.png").symlink_to(secret)
    (output / "page.png").write_bytes(b"<html><script>alert(1)</script>")
    saved(output / "chunk.png", 20, workflow="[" * 50_000_000)
    saved(output / "deep.png", 30, prompt='{"a":' * 5_000 + "1" + "}" * 5_000)
    saved(output / "nul.png", 40, prompt=json.dumps({**GRAPH, "1": {**GRAPH["1"], "inputs": {"text": "a\0b"}}}))
    (cut := saved(output / "cut.png", 50)).write_bytes(cut.read_bytes()[:60])
    answer = scan(server)
    assert counts(answer) == (1, 0, 6)
    reasons = {one["file"]: one["reason"] for one in answer["reasons"]}
    assert set(reasons) == {"link.png", "page.png", "chunk.png", "deep.png", "nul.png", "cut.png"}
    assert "link" in reasons["link.png"]
    assert "50000009 bytes" in reasons["chunk.png"]
    assert server.store.stats().images == 1


def test_pages_hear_how_far_the_scan_is(server: RoutesServer, output: Path):
    for colour in range(20):
        saved(output / f"{colour}.png", colour)
    scan(server)
    assert {event for event, _ in server.events} == {"feedback_loop.history"}
    assert [data["done"] for _, data in server.events] == [8, 16, 20]
    assert [data["added"] for _, data in server.events] == [8, 16, 20]
    assert {(data["files"], data["collection"]) for _, data in server.events} == {(20, "history")}


def test_an_empty_or_missing_folder_gives_nothing(server: RoutesServer, output: Path):
    assert counts(scan(server)) == (0, 0, 0)
    output.rmdir()
    assert counts(scan(server)) == (0, 0, 0)


@pytest.mark.parametrize("body", [{}, {"collection": ""}, {"collection": 5}, {"collection": "a", "folder": "/etc"}])
def test_no_folder_can_be_named(server: RoutesServer, body: dict):
    assert server.request("POST", f"{API}/history/scan", body)[0] == 422


def test_two_scans_at_once_are_one_too_many(server: RoutesServer, output: Path, monkeypatch: pytest.MonkeyPatch):
    """The first scan meets a file that it reads until the second scan has been answered."""
    reached, go_on, read = threading.Event(), threading.Event(), history.read

    def slowly(path: Path) -> history.PastPicture:
        reached.set()
        assert go_on.wait(60)
        return read(path)

    saved(output / "a.png", 10)
    monkeypatch.setattr(history, "read", slowly)
    answers: list[dict] = []
    first = threading.Thread(target=lambda: answers.append(scan(server)))
    first.start()
    assert reached.wait(60)
    status, answer = server.request("POST", f"{API}/history/scan", {"collection": "history"})
    assert status == 409
    assert "already" in answer["error"]
    assert server.get(f"{API}/stats")["images"] == 0, "everything else is answered meanwhile"
    go_on.set()
    first.join(60)
    assert [counts(one) for one in answers] == [(1, 0, 0)]


async def heard(server: ComfyServer, collection: str) -> tuple[dict, list[dict]]:
    """What a scan answers, and the events that an open page hears of it."""
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{server.url}/ws?clientId=history") as page:
        scan = session.post(f"{server.url}{API}/history/scan", json={"collection": collection})
        async with scan as answer:
            found = await answer.json()
        events = []
        while not events or events[-1]["done"] < events[-1]["files"]:
            message = await asyncio.wait_for(page.receive(), 120)
            if message.type == aiohttp.WSMsgType.TEXT and (event := message.json())["type"] == "feedback_loop.history":
                events.append(event["data"])
        return found, events


def test_a_real_comfyui_finds_what_its_own_save_node_wrote(comfy_server: ComfyServer, collection: str):
    graph = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 24, "batch_size": 1, "color": 0x123456}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "history/found"}},
    }
    comfy_server.run(graph)
    found, events = asyncio.run(heard(comfy_server, collection))
    assert found["added"] >= 1
    assert (events[-1]["done"], events[-1]["added"]) == (found["files"], found["added"])
    assert {event["collection"] for event in events} == {collection}
    items = comfy_server.get(f"{API}/images?{urlencode({'collection': collection})}")["items"]
    assert (32, 24) in {(item["width"], item["height"]) for item in items}
    again, _ = asyncio.run(heard(comfy_server, collection))
    assert (again["added"], again["known"]) == (0, found["added"] + found["known"])
