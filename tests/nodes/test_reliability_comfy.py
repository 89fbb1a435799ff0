"""A whole ComfyUI that is killed while people rate, and two on one database."""

from __future__ import annotations

import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import URLError

import pytest

from feedback_loop import start
from feedback_loop.feedback.records import Generation
from feedback_loop.feedback.store import FeedbackStore
from feedback_loop.tests import comfy_host
from feedback_loop.tests.conftest import COMFYUI
from feedback_loop.tests.feedback.conftest import picture

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]
ROOT = "/feedback_loop/v1"


def started(folder: Path, number: int) -> comfy_host.ComfyServer:
    """A server on the base directory of the one before."""
    if COMFYUI is None:
        pytest.skip("no ComfyUI found (COMFYUI_PATH)")
    log = folder / f"comfyui-{number}.log"
    server = start.start_server(Path(sys.executable), COMFYUI, folder / "base", start.free_port(), log, ["--cpu"])
    return comfy_host.ComfyServer(start.wait_until_ready(server))


def opened(server: comfy_host.ComfyServer) -> FeedbackStore:
    """The store of a server that has made its data folder."""
    server.get(f"{ROOT}/stats")
    (database,) = server.base_directory.rglob("feedback.sqlite3")
    return FeedbackStore(f"sqlite:///{database}", database.parent / "media")


def rate(server: comfy_host.ComfyServer, image: str, rater: str) -> str:
    body = {"image_id": image, "axis": "overall", "value": 4, "scale": {"min": 1, "max": 5}, "rater": rater}
    status, answer = server.request("POST", f"{ROOT}/ratings", body)
    assert status == 201, answer
    return answer["id"]


def test_no_acknowledged_rating_is_lost_when_a_whole_comfyui_is_killed_five_times(tmp_path: Path):
    acknowledged: list[str] = []
    image = ""
    for kill in range(5):
        server = started(tmp_path, kill)
        try:
            if not image:
                store = opened(server)
                image = store.add_image(picture(), Generation(), "c")
                store.close()

            def rate_until_killed(thread: int, server=server, kill=kill, image=image) -> list[str]:
                ids: list[str] = []
                try:
                    for turn in range(10_000):
                        ids.append(rate(server, image, f"{kill} {thread} {turn}"))
                        if thread == 0 and turn == 5 + kill:
                            server.server.process.send_signal(signal.SIGKILL)
                except (URLError, ConnectionError, TimeoutError):
                    return ids
                raise AssertionError("nobody killed it")

            with ThreadPoolExecutor(8) as threads:
                acknowledged += [id_ for ids in threads.map(rate_until_killed, range(8)) for id_ in ids]
        finally:
            server.server.stop()
    server = started(tmp_path, 5)
    try:
        store = opened(server)
        found = [one.rating_id for one in store.rated(store.feedback())]
        assert set(acknowledged) <= set(found)
        assert len(set(found)) == len(found) == server.get(f"{ROOT}/stats")["ratings"]
        assert len(acknowledged) >= 5 * 6
        store.close()
    finally:
        server.server.stop()


def test_two_comfyuis_on_one_database_take_each_others_ratings(tmp_path: Path):
    servers = [started(tmp_path, number) for number in range(2)]
    try:
        store = opened(servers[0])
        image = store.add_image(picture(), Generation(), "c")
        with ThreadPoolExecutor(8) as threads:
            rated = threads.map(lambda n: rate(servers[n % 2], image, f"rater {n}"), range(60))
        assert sorted(one.rating_id for one in store.rated(store.feedback())) == sorted(rated)
        assert [server.get(f"{ROOT}/stats")["ratings"] for server in servers] == [60, 60]
        store.close()
    finally:
        for server in servers:
            server.server.stop()
