"""The drawn world: captions say only what is true, and the drawing shows what the scene says."""

from __future__ import annotations

import numpy as np
import pytest

from feedback_loop.demo import judge, world


def scenes(n: int, seed: int = 0, watermark_rate: float = 0.35) -> list[world.Scene]:
    rng = np.random.default_rng(seed)
    return [world.sample_scene(rng, watermark_rate) for _ in range(n)]


def test_every_word_of_a_caption_holds_by_the_judges_own_rule() -> None:
    """The judge's rule is laxer than the caption's (it asks for the right side of a gap), so all words must hold."""
    drawn = scenes(500)
    truth = judge.truth_of_scenes(drawn)
    for i, scene in enumerate(drawn):
        for attribute, word in world.attributes(scene).items():
            assert truth.holds(attribute, word)[i], (attribute, word, scene)


def test_opposite_words_never_hold_at_once() -> None:
    truth = judge.truth_of_scenes(scenes(300))
    for attribute, one, other in [("size", "small", "large"), ("light", "dark", "bright"), ("place", "left", "right")]:
        assert not (truth.holds(attribute, one) & truth.holds(attribute, other)).any()


def test_a_picture_shows_its_colour_at_its_place() -> None:
    for scene in scenes(50, watermark_rate=0.0):
        if scene.count == 1:
            centre = world.draw(scene)[round(scene.y), round(scene.x)].astype(int)
            assert np.abs(centre - np.array(world.COLOURS[scene.colour])).max() <= 3


def test_a_watermark_changes_the_picture_and_nothing_else_does() -> None:
    for scene in scenes(60, watermark_rate=1.0):
        clean = world.draw(world.without_watermark(scene)).astype(int)
        difference = np.abs(world.draw(scene).astype(int) - clean)
        assert difference.max() > 25 and (difference.max(-1) > 12).mean() < 0.6


def test_a_third_of_the_scenes_is_watermarked_and_a_fifth_of_those_captions_say_so() -> None:
    """35 % of 4,000: standard error .75 points; 20 % of about 1,400: 1.1 points. Four of each are allowed."""
    rng, drawn = np.random.default_rng(1), scenes(4000)
    marked = [s for s in drawn if s.watermark != "none"]
    assert len(marked) / len(drawn) == pytest.approx(0.35, abs=0.03)
    told = np.mean(["watermark" in world.caption(s, rng) for s in marked])
    assert told == pytest.approx(0.2, abs=0.045)


def test_the_same_seed_draws_the_same_picture() -> None:
    a, b = scenes(5, seed=9), scenes(5, seed=9)
    assert a == b and all((world.draw(x) == world.draw(y)).all() for x, y in zip(a, b, strict=True))
