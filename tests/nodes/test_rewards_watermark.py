"""The watermark nodes as a prompt would run them: the map, the auditor, a detector of one's own, interrupts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import numpy as np
import pytest
import torch

from feedback_loop.feedback.records import Generation
from feedback_loop.feedback.rewards.watermark import WatermarkPenalty
from feedback_loop.feedback.store import FeedbackStore
from feedback_loop.nodes import compat, denoiser, learning, reward_files, rewards_watermark
from feedback_loop.nodes.rewards_colour import FeedbackColorReward
from feedback_loop.nodes.rewards_combine import FeedbackCombineRewards, FeedbackMaskReward
from feedback_loop.nodes.rewards_watermark import FeedbackTrainWatermarkDetector, FeedbackWatermarkPenalty
from feedback_loop.training import overlays, watermark_own


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few crops, marks and tests: what the node does with them is the same."""
    few = {"crops": {64: 10, 128: 6}, "marks": {64: 7, 128: 7}, "tested": 3}
    recipe = watermark_own.OwnRecipe
    monkeypatch.setattr(watermark_own, "OwnRecipe", lambda **given: recipe(**given, **few))


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FeedbackStore]:
    opened = FeedbackStore(f"sqlite:///{tmp_path / 'feedback.sqlite3'}", tmp_path / "media")
    monkeypatch.setattr(rewards_watermark, "store", lambda: opened)
    yield opened
    opened.close()


def pictures(count: int = 8, side: int = 64) -> torch.Tensor:
    """IMAGE of dark slopes, each a little different."""
    slope = torch.linspace(0.1, 0.3, side).view(1, 1, side, 1).expand(count, side, side, 3)
    return slope + torch.arange(count).view(-1, 1, 1, 1) / 100


def marked(count: int = 2) -> torch.Tensor:
    cover = torch.tensor(overlays.mark(overlays.tiled_text, 64, np.random.default_rng(4))).float() / 255
    return pictures(count) + 0.6 * cover[None, :, :, None]


def test_the_penalty_comes_with_a_map_of_where_marks_are(inference_mode) -> None:
    both = torch.cat([pictures(1), marked(1)])
    reward, where = FeedbackWatermarkPenalty.execute(images=both).args
    assert where.shape == (2, 64, 64) and float(where[1].mean()) > 3 * float(where[0].mean())
    clean, with_mark = learning.measured(reward, learning.pictures_of(both))
    assert clean > with_mark


def test_without_pictures_the_map_is_black() -> None:
    _, where = FeedbackWatermarkPenalty.execute().args
    assert where.shape == (1, 64, 64) and not where.any()


def test_the_auditor_is_another_detector_that_scores_otherwise() -> None:
    plain, audited = (FeedbackWatermarkPenalty.execute(detector=name).args[0] for name in ("built in", "auditor"))
    assert audited.name == "no watermark (auditor)"
    assert learning.measured(plain, learning.pictures_of(marked())) != learning.measured(
        audited, learning.pictures_of(marked())
    )


def train(**inputs: Any) -> Any:
    with torch.inference_mode():
        return FeedbackTrainWatermarkDetector.execute(**({"images": pictures(), "steps": 2} | inputs))


def test_a_detector_is_trained_on_pictures_and_put_to_use_saved_and_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a prompt would: in inference mode, whose tensors have no gradient."""
    node = train()
    reward, report, plot = node.args
    assert "tested on 2 others" in report and plot.ndim == 4 and node.ui["text"] == (report,)
    used, where = FeedbackWatermarkPenalty.execute(margin=1.0, trained=reward, images=marked()).args
    assert used.detector is reward.detector and used.margin == 1.0 and where.shape == (2, 64, 64)
    entry = ([str(tmp_path)], {".safetensors"})
    monkeypatch.setitem(folder_paths.folder_names_and_paths, compat.REWARDS_FOLDER, entry)
    loaded = reward_files.load(reward_files.save(used, "mine"))
    x = learning.pictures_of(marked())
    assert isinstance(loaded, WatermarkPenalty) and torch.allclose(loaded(x), used(x), atol=1e-5)


def test_a_trained_detector_can_guide(inference_mode) -> None:
    normal = denoiser.normal_reward(train().args[0])()
    with denoiser.gradients():
        x = learning.pictures_of(marked()).clone().requires_grad_()
        (gradient,) = torch.autograd.grad(normal(x).sum(), x)
    assert gradient.isfinite().all() and gradient.any()


def test_pictures_of_a_collection_are_taken_as_well(kept: FeedbackStore) -> None:
    for number, picture in enumerate((pictures(6) * 255).to(torch.uint8).numpy()):
        kept.add_image(picture, Generation(prompt="x", seed=str(number)), "mine")
    assert len(rewards_watermark.own_pictures(None, " mine ")) == 6
    both = rewards_watermark.own_pictures(pictures(3) + 0.2, "mine")
    assert len(both) == 9 and all(p.dtype == np.uint8 and p.shape == (64, 64, 3) for p in both)


def test_no_more_pictures_are_read_than_are_of_use(kept: FeedbackStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """11 of the collection with room for 4 in all: every third, 4 of them."""
    monkeypatch.setattr(rewards_watermark, "MOST", 4)
    for number, picture in enumerate((pictures(11) * 255).to(torch.uint8).numpy()):
        kept.add_image(picture, Generation(prompt="x", seed=str(number)), "mine")
    assert len(rewards_watermark.own_pictures(None, "mine")) == 4


def test_an_interrupt_ends_the_training_and_the_next_one_runs() -> None:
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        train()
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert train(steps=1).args[0].made == "own"


# --- the other rewards without a network -----------------------------------------------------------------------------


def test_rewards_of_other_units_are_put_on_one_scale_by_reference_pictures() -> None:
    """Brightness .1, .2, ..., .8 has the mean .45 and the deviation .2449 (in any unit): z of .45 is 0, of .7 1.02."""
    levels = torch.arange(1, 9).view(-1, 1, 1, 1).expand(8, 16, 16, 3) / 10
    bright = FeedbackColorReward.execute(property="brightness", aim={"aim": "more"}).args[0]
    combined = FeedbackCombineRewards.execute(rewards={"a": bright}, how="minimum", reference=levels).args[0]
    x = torch.tensor([0.45, 0.7]).view(2, 1, 1, 1).expand(2, 3, 16, 16)
    assert combined(x).tolist() == pytest.approx([0.0, 0.25 / 0.24495], abs=1e-3)


def test_a_schedule_in_words_is_that_of_the_reward() -> None:
    aim, names = {"aim": "more"}, ("brightness", "warmth")
    parts = {name: FeedbackColorReward.execute(property=name, aim=aim).args[0] for name in names}
    combined = FeedbackCombineRewards.execute(rewards=parts, active=" 0-.4 ; 0.3-1").args[0]
    assert combined.spans == ((0.0, 0.4), (0.3, 1.0)) and combined.at(0.1).parts == (parts["brightness"],)


def test_a_reward_in_a_region_looks_there_alone() -> None:
    """A bright left half: brightness 1 in a mask over it, 0 in one over the right half; units of .18."""
    picture = torch.zeros(1, 3, 32, 32)
    picture[..., :16] = 1
    bright = FeedbackColorReward.execute(property="brightness", aim={"aim": "more"}).args[0]
    for left, expected in ((0, 1 / 0.18), (24, 0.0)):
        mask = torch.zeros(1, 64, 64)
        mask[:, :, left * 2 : left * 2 + 12] = 1
        reward = FeedbackMaskReward.execute(reward=bright, mask=mask).args[0]
        assert float(reward(picture)) == pytest.approx(expected, abs=1e-3)


def test_a_palette_is_a_choice_of_the_colour_node() -> None:
    chosen = {"property": "nearness to a palette", "palette": "#1f6f8b"}
    near, far = (FeedbackColorReward.execute(aim={"aim": aim}, **chosen).args[0] for aim in ("more", "less"))
    assert (near.name, far.name) == ("near #1f6f8b", "far from #1f6f8b")
    amount = FeedbackColorReward.execute(property="amount of red", aim={"aim": "less"}).args[0]
    assert amount.name == "amount of red down"
