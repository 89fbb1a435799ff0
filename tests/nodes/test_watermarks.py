"""Watermark scores: made beside the run for what is captured, and for everything else when somebody asks for them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from feedback_loop.feedback.records import Generation
from feedback_loop.feedback.rewards.watermark import WatermarkPenalty
from feedback_loop.nodes.watermarks import EVENT, SIDE, Looker, score
from feedback_loop.training.overlays import lay, mark, tiled_text

from .http_calls import API, captured
from .routes_host import RoutesServer, serving

SECONDS = 120  # the machine may be busy with other work


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RoutesServer]:
    with serving(tmp_path) as running:
        yield running


def picture(marked: bool, size: int = 128) -> np.ndarray:
    """Dark blue that grows lighter downwards, uint8 (S, S, 3), with or without white text all over it."""
    rise = np.linspace(0, 60, size)[:, None, None]
    ground = np.broadcast_to(rise + (20, 40, 90), (size, size, 3)).astype(np.uint8)
    return lay(ground, mark(tiled_text, size, np.random.default_rng(4)), 0.6, (255, 255, 255)) if marked else ground


def added(server: RoutesServer, *pictures: np.ndarray) -> list[str]:
    return [server.store.add_image(pixels, Generation(), "c") for pixels in pictures]


def test_pictures_from_before_are_looked_at_when_asked_for_and_the_marked_one_comes_first(server) -> None:
    clean, marked = added(server, picture(False), picture(True))
    assert server.get(f"{API}/images?sort=watermark")["items"] == []
    assert server.post(f"{API}/watermarks/scan", {}) == {"done": 0, "left": 2}
    assert server.looker.finished(SECONDS)
    found = server.get(f"{API}/images?sort=watermark")["items"]
    assert [one["id"] for one in found] == [marked, clean]
    assert found[0]["watermark"] > 0.5 > found[1]["watermark"]
    assert [one["id"] for one in server.get(f"{API}/images?min_watermark=0.5")["items"]] == [marked]


def test_the_score_is_the_probability_that_the_reward_speaks_of(server) -> None:
    pixels = picture(True)
    (id_,) = added(server, pixels)
    server.looker.look_at([id_])
    assert server.looker.finished(SECONDS)
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
    assert server.get(f"{API}/images/{id_}")["watermark"] == pytest.approx(WatermarkPenalty().probability(image).item())


def test_pages_are_told_how_far_it_is(server) -> None:
    """Twenty pictures, eight at once: 8, 16 and 20 are done, and nothing is left."""
    added(server, *(np.full((16, 16, 3), grey, np.uint8) for grey in range(20)))
    server.looker.look_at_all()
    assert server.looker.finished(SECONDS)
    server.looker.stop()  # The last event has been sent once the thread has ended.
    assert server.events == [(EVENT, {"done": done, "left": 20 - done}) for done in (8, 16, 20)]


def test_what_was_captured_goes_first_and_nobody_waits_for_it(server) -> None:
    """The detector is held up at its first picture; asking returns and the server answers."""
    held, reached = threading.Event(), threading.Event()

    def busy() -> bool:
        reached.set()
        held.wait(SECONDS)
        return False

    looker = Looker(lambda: server.store, lambda *event: None, busy)
    try:
        before = added(server, *(np.full((16, 16, 3), grey, np.uint8) for grey in range(9)))
        looker.look_at_all()
        assert reached.wait(SECONDS)
        (new,) = added(server, picture(False))
        looker.look_at([new])
        assert server.get(f"{API}/images/{new}")["watermark"] is None
        # Those that are being looked at stay first in the list of the thread; the new one goes before the ninth.
        assert looker.look_at_all().left == 10
        assert next(iter(looker._waiting)) == new
        held.set()
        assert looker.finished(SECONDS)
        assert all(server.get(f"{API}/images/{id_}")["watermark"] is not None for id_ in [*before, new])
    finally:
        held.set()
        looker.stop()


def test_deleted_and_missing_pictures_are_left_out_and_not_tried_for_ever(server) -> None:
    there, lost, gone = added(server, *(np.full((16, 16, 3), grey, np.uint8) for grey in (1, 2, 3)))
    server.store.image_file(lost).unlink()
    server.store.delete_image(gone)
    server.looker.look_at([gone, lost, there])
    assert server.looker.finished(SECONDS)
    assert server.get(f"{API}/images/{there}")["watermark"] is not None
    assert server.get(f"{API}/images/{lost}")["watermark"] is None
    assert server.post(f"{API}/watermarks/scan", {})["left"] == 0


def test_a_picture_that_is_deleted_while_it_is_looked_at_does_not_cost_the_others_their_score(server) -> None:
    gone, stays = added(server, *(np.full((16, 16, 3), grey, np.uint8) for grey in (1, 2)))
    server.store.delete_image(gone)
    server.looker._keep({gone: 0.5, stays: 0.25})
    assert server.get(f"{API}/images/{stays}")["watermark"] == 0.25


def test_a_very_large_picture_is_shrunk_first_and_scored_alike() -> None:
    """Four times the detector's working size in each direction, where pixels are averaged four by four: nothing that
    the detector sees at all is lost by that."""
    detector = WatermarkPenalty()
    for marked in (False, True):
        small = picture(marked, 256)
        large = np.asarray(Image.fromarray(small).resize((4 * SIDE, 4 * SIDE), Image.Resampling.NEAREST))
        assert score(detector, large) == pytest.approx(score(detector, small), abs=0.1)


def test_a_captured_picture_gets_its_score_without_being_asked_for(comfy_server) -> None:
    """By the node in a real ComfyUI; the run has ended by then or not."""
    (id_,) = captured(comfy_server, "watermarks", 1, 0x884422)
    pause = threading.Event()
    for _ in range(10 * SECONDS):
        value = comfy_server.get(f"{API}/images/{id_}")["watermark"]
        if value is not None:
            assert 0 <= value <= 1
            return
        pause.wait(0.1)
    raise AssertionError(f"no score after {SECONDS} s")
