"""The reward nodes on a tiny CLIP_VISION and a real store: learn, save, load, combine, score; and what they refuse."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
import pytest
import torch

from feedback_loop.feedback.marks import Tag
from feedback_loop.feedback.records import Generation, Rating
from feedback_loop.feedback.rewards.base import RewardError
from feedback_loop.feedback.rewards.colour import ColourReward
from feedback_loop.feedback.store import FeedbackStore
from feedback_loop.nodes import (
    compat,
    denoiser,
    encoder,
    learning,
    reward_files,
    rewards,
    rewards_colour,
    rewards_combine,
)
from feedback_loop.tests.nodes import tiny_models
from feedback_loop.training.judgements import TooFewJudgementsError


@pytest.fixture(scope="module")
def clip_vision() -> Any:
    with torch.inference_mode():  # as a loader node makes it
        return tiny_models.clip_vision(5)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FeedbackStore]:
    opened = FeedbackStore(f"sqlite:///{tmp_path / 'feedback.sqlite3'}", tmp_path / "media")
    monkeypatch.setattr(rewards, "store", lambda: opened)
    yield opened
    opened.close()


@pytest.fixture
def reward_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "feedback_rewards"
    entry = ([str(folder)], {".safetensors"})
    monkeypatch.setitem(folder_paths.folder_names_and_paths, compat.REWARDS_FOLDER, entry)
    folder_paths.filename_list_cache.pop(compat.REWARDS_FOLDER, None)
    return folder


def picture(level: float, seed: int) -> np.ndarray:
    """32 x 32, about `level` bright, with a little texture."""
    noise = np.random.default_rng(seed).uniform(-20, 20, (32, 32, 3))
    return (255 * level + noise).clip(0, 255).astype(np.uint8)


def rate_by_brightness(kept: FeedbackStore, n: int = 24) -> None:
    """The brighter, the more stars; four pictures a prompt."""
    for i in range(n):
        level = 0.1 + 0.8 * ((7 * i) % n) / n
        image = kept.add_image(picture(level, i), Generation(prompt=f"prompt {i // 4}", seed=str(i)), "tests")
        kept.add_rating(Rating(image, 1 + int(4.99 * (level - 0.1) / 0.8), "ann"))


def learn(kept: FeedbackStore, clip_vision: Any, **changed: Any) -> tuple[Any, ...]:
    with torch.inference_mode():
        node = rewards.FeedbackTrainReward.execute(feedback=kept.feedback(), clip_vision=clip_vision, **changed)
    assert node.result is not None
    return node.result


def test_features_are_the_embedding_the_mean_of_the_patches_and_of_their_quarters(clip_vision: Any) -> None:
    """32 pixels in patches of 8: 4 x 4 tokens of width 32, embedding 16: 16 + 32 + 4 * 32 = 176 features. Equal to
    what ComfyUI's own encode_image gives, up to its rounding to 8 bits (none here: the levels are whole)."""
    images = torch.randint(0, 256, (2, 32, 32, 3), generator=torch.Generator().manual_seed(0)).float() / 255
    with torch.inference_mode():
        theirs = clip_vision.encode_image(images)
        ours = encoder.encoder_from(clip_vision)(images.movedim(-1, 1))
    assert ours.shape == (2, 176)
    patches = theirs["penultimate_hidden_states"][:, 1:].float()
    assert torch.allclose(ours[:, :16], theirs["image_embeds"].float(), atol=1e-4)
    assert torch.allclose(ours[:, 16:48], patches.mean(dim=1), atol=1e-4)
    top_left = patches.unflatten(1, (4, 4))[:, :2, :2].flatten(1, 2).mean(dim=1)
    assert torch.allclose(ours[:, 48:80], top_left, atol=1e-4)


def test_the_encoder_has_a_gradient_though_its_weights_are_inference_tensors(clip_vision: Any) -> None:
    """Central difference along a random direction; fp32 and h = 1e-2, so 2 % of tolerance."""
    with torch.inference_mode(), denoiser.gradients():
        eye, generator = encoder.encoder_from(clip_vision), torch.Generator().manual_seed(1)
        x = (0.3 + 0.4 * torch.rand(1, 3, 48, 40, generator=generator)).requires_grad_()
        direction = torch.randn(x.shape, generator=generator)
        (gradient,) = torch.autograd.grad(eye(x).square().sum(), x)
        with torch.no_grad():
            slope = (eye(x + 1e-2 * direction).square().sum() - eye(x - 1e-2 * direction).square().sum()) / 2e-2
    assert float((gradient * direction).sum()) == pytest.approx(float(slope), rel=0.02)


def test_an_encoders_id_follows_its_weights_and_not_the_object() -> None:
    same = [encoder.encoder_from(tiny_models.clip_vision(seed)).id for seed in (5, 5, 6)]
    assert same[0] == same[1] != same[2]


def test_a_taste_is_learned_from_stars_and_likes_what_was_liked(kept: FeedbackStore, clip_vision: Any) -> None:
    rate_by_brightness(kept)
    taste, report, plot, accuracy = learn(kept, clip_vision)
    levels = torch.tensor([0.15, 0.5, 0.85]).view(3, 1, 1, 1).expand(3, 3, 32, 32)
    scores = taste(levels).tolist()
    assert scores == sorted(scores) and scores[2] > scores[0] + 0.5
    assert "24 ratings" in report and plot.ndim == 4 and accuracy > 0.6


def scores(reward: Any, levels: list[float]) -> list[float]:
    pictures = np.stack([picture(level, 900 + n) for n, level in enumerate(levels)])
    with torch.no_grad():
        return reward(torch.from_numpy(pictures).movedim(-1, 1).float() / 255).tolist()


def tag_by_brightness(kept: FeedbackStore, n: int = 24) -> None:
    """The darker half has the tag "dark mood"; all were rated 3 stars, so that they were seen."""
    for i in range(n):
        level = 0.1 + 0.8 * ((7 * i) % n) / n
        image = kept.add_image(picture(level, i), Generation(prompt=f"prompt {i // 4}", seed=str(i)), "tests")
        kept.add_rating(Rating(image, 3, "ann"))
        if level < 0.5:
            kept.add_tag(Tag(image, "dark mood", "ann"))


def test_a_tag_is_learned_from_pictures_with_it_against_those_seen_without_it(
    kept: FeedbackStore, clip_vision: Any
) -> None:
    """Half of 24 pictures have it. The ratings are all equal, so nothing but the tag can have taught the reward."""
    tag_by_brightness(kept)
    unseen = kept.add_image(picture(0.9, 500), Generation(prompt="nobody saw it"), "tests")
    reward, text, _, accuracy = learn(kept, clip_vision, tag=" dark mood ")
    assert text.startswith("Learned the tag “dark mood”: 12 pictures have it, 12 were seen without it.")
    dark, bright = scores(reward, [0.15, 0.85])
    assert dark > bright and accuracy > 0.7
    run = kept.latest_run("taste")
    assert run is not None and run.settings["tag"] == "dark mood" and kept.image(unseen).ratings == ()


def test_another_axis_than_that_of_the_feedback_can_be_learned(kept: FeedbackStore, clip_vision: Any) -> None:
    """Overall the bright are liked, for their mood the dark: two rewards from one feedback that disagree."""
    rate_by_brightness(kept)
    for image in kept.images(limit=100).items:
        kept.add_rating(Rating(image.id, 6 - image.ratings[0].raw, "ann", "mood"))
    overall, mood = (learn(kept, clip_vision, axis=axis) for axis in ("", "mood"))
    assert mood[1].startswith("Learned the axis “mood”.") and not overall[1].startswith("Learned the axis")
    (dark, bright), (dark_mood, bright_mood) = (scores(made[0], [0.15, 0.85]) for made in (overall, mood))
    assert bright > dark and dark_mood > bright_mood


def test_a_tag_that_nobody_used_or_that_all_have_is_refused_by_a_sentence(
    kept: FeedbackStore, clip_vision: Any
) -> None:
    tag_by_brightness(kept)
    with pytest.raises(TooFewJudgementsError, match="No picture of this feedback has the tag “x”"):
        learn(kept, clip_vision, tag="x")
    for image in kept.images(limit=100).items:
        kept.add_tag(Tag(image.id, "everything", "ann"))
    with pytest.raises(TooFewJudgementsError, match="24 pictures have the tag “everything” and 0 were"):
        learn(kept, clip_vision, tag="everything")
    with pytest.raises(denoiser.WrongConnectionError, match="Write one of them"):
        learn(kept, clip_vision, tag="x", axis="mood")


def test_feedback_between_two_dates_can_be_learned_from_and_its_run_noted(
    kept: FeedbackStore, clip_vision: Any
) -> None:
    rate_by_brightness(kept)
    since = datetime.now(timezone.utc) - timedelta(days=1)
    with torch.inference_mode():
        rewards.FeedbackTrainReward.execute(feedback=kept.feedback(since=since), clip_vision=clip_vision)
    run = kept.latest_run("taste")
    assert run is not None and run.settings["since"] == str(since)


def test_features_are_kept_in_the_store_and_not_made_twice(
    kept: FeedbackStore, clip_vision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rate_by_brightness(kept, 12)
    learn(kept, clip_vision)
    ids = [rating.image_id for rating in kept.rated(kept.feedback())]
    assert set(kept.embeddings(ids, encoder.encoder_id(clip_vision))) == set(ids)
    monkeypatch.setattr(encoder.ClipVisionEncoder, "__call__", lambda self, images: pytest.fail("encoded again"))
    learn(kept, clip_vision)


def test_too_few_ratings_are_refused_by_a_sentence(kept: FeedbackStore, clip_vision: Any) -> None:
    with pytest.raises(TooFewJudgementsError, match="too few to learn a taste"):
        learn(kept, clip_vision)


@pytest.mark.parametrize("wrong", [None, object(), torch.zeros(1)])
def test_what_is_no_image_encoder_is_refused(kept: FeedbackStore, wrong: Any) -> None:
    with pytest.raises(denoiser.WrongConnectionError, match="no image encoder"):
        learn(kept, wrong)


def test_a_saved_taste_loads_with_its_encoder_and_refuses_another(
    kept: FeedbackStore, clip_vision: Any, reward_folder: Path
) -> None:
    rate_by_brightness(kept, 12)
    taste = learn(kept, clip_vision)[0]
    saved = rewards.FeedbackSaveReward.execute(reward=taste, name="my taste").result[0]
    assert saved == "my taste.safetensors"
    loaded = rewards.FeedbackLoadReward.execute(name=saved, clip_vision=clip_vision).result[0]
    images = torch.rand(2, 3, 32, 32)
    assert torch.allclose(loaded(images), taste(images), atol=1e-6)
    with pytest.raises(RewardError, match="fitted on"):
        rewards.FeedbackLoadReward.execute(name=saved, clip_vision=tiny_models.clip_vision(6))
    with pytest.raises(RewardError, match="connect that CLIP_VISION"):
        rewards.FeedbackLoadReward.execute(name=saved)


def test_saving_twice_keeps_both(reward_folder: Path) -> None:
    names = [reward_files.save(ColourReward(kind), "light") for kind in ("brightness", "contrast")]
    assert names == ["light.safetensors", "light_2.safetensors"]
    assert [reward_files.load(name).name for name in names] == ["brightness up", "contrast up"]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("../../etc/passwd", "_.._etc_passwd"),
        ("..\\evil", "_evil"),
        ("a/b:c*?\x00d", "a_b_c___d"),
        ("x" * 300, "x" * 100),
        (" taste.safetensors ", "taste"),
        (".hidden", "hidden"),
    ],
)
def test_a_name_becomes_a_file_inside_the_folder(reward_folder: Path, name: str, file: str) -> None:
    saved = reward_files.save(ColourReward("warmth"), name)
    assert saved == f"{file}.safetensors"
    assert [path.name for path in reward_folder.iterdir()] == [saved]


@pytest.mark.parametrize("name", ["", "  ", "...", "///", "CON", "nul.txt", "%00"[:0]])
def test_a_name_of_which_nothing_is_left_is_refused(reward_folder: Path, name: str) -> None:
    with pytest.raises(RewardError, match="no name for a file"):
        reward_files.save(ColourReward("warmth"), name)


def test_a_link_that_leads_out_of_the_folder_is_not_followed(reward_folder: Path, tmp_path: Path) -> None:
    reward_folder.mkdir()
    reward_files.save_reward(ColourReward("warmth"), tmp_path / "outside.safetensors")
    os.symlink(tmp_path / "outside.safetensors", reward_folder / "link.safetensors")
    with pytest.raises(RewardError, match="outside of the folder"):
        reward_files.load("link.safetensors")


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "gone.safetensors"])
def test_loading_a_path_or_what_is_gone_says_that_there_is_no_such_reward(
    reward_folder: Path, tmp_path: Path, name: str
) -> None:
    reward_files.save_reward(ColourReward("warmth"), tmp_path / "outside.safetensors")
    with pytest.raises(RewardError, match="There is no reward"):
        reward_files.load(name)


def test_a_changed_file_has_another_fingerprint(reward_folder: Path) -> None:
    reward_files.save(ColourReward("warmth"), "light")
    before = rewards.FeedbackLoadReward.fingerprint_inputs("light.safetensors")
    (reward_folder / "light.safetensors").unlink()
    reward_files.save(ColourReward("contrast", target=0.25), "light")
    assert rewards.FeedbackLoadReward.fingerprint_inputs("light.safetensors") != before


@pytest.mark.parametrize(
    ("aim", "name"),
    [
        ({"aim": "more"}, "warmth up"),
        ({"aim": "less"}, "warmth down"),
        ({"aim": "target", "value": 0.2}, "warmth near 0.2"),
    ],
)
def test_the_colour_node_makes_the_reward_that_was_asked_for(aim: dict[str, Any], name: str) -> None:
    assert rewards_colour.FeedbackColorReward.execute(property="warmth", aim=aim).result[0].name == name


def test_combining_adds_with_weights_in_order_and_missing_ones_count_one() -> None:
    """Grey .5: brightness .5 / .18 = 2.778, contrast .001 / .07: 2 * 2.778 + 1 * .0143."""
    parts = {"reward0": ColourReward("brightness"), "reward1": ColourReward("contrast")}
    combined = rewards_combine.FeedbackCombineRewards.execute(rewards=parts, weights="2").result[0]
    assert float(combined(torch.full((1, 3, 8, 8), 0.5))) == pytest.approx(2 * 0.5 / 0.18 + 0.001 / 0.07, abs=1e-3)


@pytest.mark.parametrize(
    ("text", "says"),
    [("one", "separated by commas"), ("1,2,3", "3 weights for 2 rewards"), ("nan", "between"), ("inf", "between")],
)
def test_weights_that_are_none_are_refused(text: str, says: str) -> None:
    with pytest.raises(RewardError, match=says):
        learning.parse_weights(text, 2)


def test_scoring_sorts_pictures_and_gives_scores_in_their_own_order() -> None:
    """Brightness .2, .8, .5 in units of .18; best first: 1, 2, 0. Transparency and grey are accepted."""
    images = torch.tensor([0.2, 0.8, 0.5]).view(3, 1, 1, 1).expand(3, 8, 8, 4)
    with torch.inference_mode():
        node = rewards.FeedbackScoreImages.execute(images=images, reward=ColourReward("brightness"))
    ordered, scores, mean, ranking, chart = node.result
    assert scores == pytest.approx([0.2 / 0.18, 0.8 / 0.18, 0.5 / 0.18], abs=1e-4)
    assert torch.equal(ordered, images[[1, 2, 0]]) and mean == pytest.approx(0.5 / 0.18, abs=1e-4)
    assert "1. picture 2" in node.ui["text"][0]


def test_scoring_with_what_is_no_reward_or_of_no_picture_is_refused() -> None:
    with pytest.raises(denoiser.WrongConnectionError, match="no reward"):
        rewards.FeedbackScoreImages.execute(images=torch.zeros(1, 8, 8, 3), reward=torch.zeros(1))
    with pytest.raises(denoiser.WrongConnectionError, match="at least one picture"):
        rewards.FeedbackScoreImages.execute(images=torch.zeros(0, 8, 8, 3), reward=ColourReward("warmth"))
