"""The nodes whose rewards are networks of models/rewards or ComfyUI's own CLIP, as a prompt would run them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import folder_paths
import nodes as comfy_nodes
import pytest
import torch

from feedback_loop.feedback.rewards.base import Reward, RewardError
from feedback_loop.nodes import demo, denoiser, learning, reward_folders, rewards_text, text_tower
from feedback_loop.nodes.encoder import encoder_from
from feedback_loop.nodes.guidance import FeedbackRewardGuidance
from feedback_loop.nodes.rewards_classifier import FeedbackClassifierReward
from feedback_loop.nodes.rewards_text import CONNECTED, FOLDER, HEAD, IMAGE_REWARD, OPPOSITE, PROMPT, FeedbackTextReward
from feedback_loop.tests.feedback import model_folders
from feedback_loop.tests.feedback.slopes import slopes
from feedback_loop.tests.nodes import tiny_joint, tiny_models


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("models") / "rewards"
    model_folders.classifier(folder / "animals")
    model_folders.classifier(folder / "by somebody" / "deeper", "convnext")
    model_folders.clip(folder / "pick")
    model_folders.image_reward(folder / "judge")
    save_file({"layers.0.weight": torch.ones(1, 16), "layers.0.bias": torch.zeros(1)}, folder / "head.safetensors")
    (folder / "broken").mkdir()
    (folder / "broken" / "config.json").write_text("{")
    return folder


@pytest.fixture(autouse=True)
def known(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = ([str(models)], {".safetensors", ".json"})
    monkeypatch.setitem(folder_paths.folder_names_and_paths, reward_folders.FOLDER, entry)
    folder_paths.filename_list_cache.pop(reward_folders.FOLDER, None)


def classifier(model: str = "animals", label: str = "dog", **changed: Any) -> Reward:
    return FeedbackClassifierReward.execute(model={"model": model, "label": label}, **changed).args[0]


def words(model: dict[str, Any], wish: str = "a bright picture", opposite: str = "a dark picture") -> Reward:
    return FeedbackTextReward.execute(wish=wish, opposite=opposite, model=model).args[0]


def pictures(n: int = 2, side: int = 32) -> torch.Tensor:
    return 0.3 + 0.4 * torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(3))


def test_the_lists_offer_what_is_there_and_leave_out_what_cannot_be_read() -> None:
    assert reward_folders.classifiers() == {
        "animals": ["cat", "dog", "tree"],
        "by somebody/deeper": ["cat", "dog", "tree"],
    }
    assert reward_folders.joint_models() == ["pick"] and reward_folders.heads() == ["head.safetensors"]
    assert reward_folders.image_rewards() == ["judge"]
    inputs = {shown.id: shown for shown in FeedbackClassifierReward.define_schema().inputs}
    assert [option.key for option in inputs["model"].options] == ["animals", "by somebody/deeper"]


def test_an_empty_folder_offers_a_sentence_that_says_what_to_put_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(folder_paths.folder_names_and_paths, reward_folders.FOLDER, ([str(tmp_path)], {".json"}))
    folder_paths.filename_list_cache.pop(reward_folders.FOLDER, None)
    [model, *_] = FeedbackClassifierReward.define_schema().inputs
    assert [option.key for option in model.options] == [reward_folders.NONE]


@pytest.mark.parametrize("model", ["animals", "by somebody/deeper"])
def test_a_classifier_made_as_a_prompt_makes_it_has_a_gradient_while_sampling(model: str, inference_mode) -> None:
    """Its weights are inference tensors; `normal_reward` is what guidance runs. Single precision, h = 1e-3."""
    reward = classifier(model)
    assert learning.measured(reward, pictures()) == pytest.approx(reward(pictures()).tolist(), abs=1e-5)
    normal = denoiser.normal_reward(reward)()
    with denoiser.gradients():
        by_autograd, by_hand = slopes(normal, pictures(), 1e-3)
    assert by_autograd == pytest.approx(by_hand, rel=2e-2) and abs(by_hand) > 1e-4


def test_a_networks_weights_have_one_place_in_comfyuis_memory_management() -> None:
    reward = classifier()
    [patcher] = denoiser.patchers_of(reward)
    assert denoiser.patchers_of(reward) == [patcher] and patcher.model is reward.networks()[0]


def test_more_and_less_of_a_label_are_one_anothers_negative_up_to_what_is_enough() -> None:
    more, less = (classifier(aim=aim, enough=20.0)(pictures()) for aim in ("more", "less"))
    assert torch.allclose(more, -less, atol=1e-4)


def test_a_label_or_model_that_is_not_there_is_refused_by_a_sentence(models: Path, tmp_path: Path) -> None:
    with pytest.raises(RewardError, match="no label 'horse'"):
        classifier(label="horse")
    with pytest.raises(RewardError, match="There is no '../animals'"):
        classifier("../animals")
    with pytest.raises(RewardError, match="no JSON"):
        classifier("broken")


def test_a_link_that_leads_out_of_the_folder_is_not_followed(models: Path, tmp_path: Path) -> None:
    model_folders.classifier(tmp_path / "outside")
    os.symlink(tmp_path / "outside", models / "link")
    try:
        folder_paths.filename_list_cache.pop(reward_folders.FOLDER, None)
        with pytest.raises(RewardError, match="There is no 'link'"):
            classifier("link")
    finally:
        (models / "link").unlink()


def test_a_changed_model_has_another_fingerprint(models: Path) -> None:
    """However ComfyUI hands the choice over: nested, or flat under a dotted name."""
    asked = [{"model": {"model": "pick"}}, {"model": "x", "model.folder": "pick"}]
    before = [FeedbackTextReward.fingerprint_inputs(**inputs) for inputs in asked]
    assert before[0] == before[1] != FeedbackTextReward.fingerprint_inputs(model={"model": "animals"})
    model_folders.change(models / "pick" / "preprocessor_config.json", note="changed")
    folder_paths.filename_list_cache.pop(reward_folders.FOLDER, None)
    assert FeedbackTextReward.fingerprint_inputs(**asked[0]) != before[0]


# --- words -----------------------------------------------------------------------------------------------------------


def test_words_through_comfyuis_own_towers_are_its_projected_pooled_output(inference_mode) -> None:
    clip = tiny_models.clip()
    said = ["a bright picture", "a dark one"]
    found = text_tower.text_tower(clip, 32)(said)
    clip.cond_stage_model.clip_l.options_default = ("last", None, True)  # SD 1's class asks for the unprojected
    pooled = [clip.encode_from_tokens(clip.tokenize(text), return_pooled=True)[1] for text in said]
    assert torch.allclose(found, torch.cat(pooled).float().cpu(), atol=1e-5)


def test_reading_words_leaves_the_clip_as_it_was(inference_mode) -> None:
    clip = tiny_models.clip()
    before = clip.encode_from_tokens(clip.tokenize("a circle"), return_dict=True)
    words(tiny_joint.connected(clip=clip))
    after = clip.encode_from_tokens(clip.tokenize("a circle"), return_dict=True)
    assert torch.equal(before["cond"], after["cond"]) and torch.equal(before["pooled_output"], after["pooled_output"])


def test_a_wish_through_connected_encoders_has_a_gradient_while_sampling(inference_mode) -> None:
    reward = words(tiny_joint.connected())
    normal = denoiser.normal_reward(reward)()
    with denoiser.gradients():
        by_autograd, by_hand = slopes(normal, pictures(side=48), 1e-3)
    assert by_autograd == pytest.approx(by_hand, rel=2e-2) and abs(by_hand) > 1e-4


def test_the_half_of_a_double_encoder_that_fits_is_taken() -> None:
    """SDXL's tiny clip has two towers of width 32 in clip_l and clip_g; the first that fits is clip_l."""
    clip = tiny_models.sdxl_clip()
    found = text_tower.text_tower(clip, 32)(["a circle"])
    pooled = clip.cond_stage_model.clip_l.encode_token_weights(clip.tokenize("a circle")["l"])[1]
    assert torch.allclose(found, pooled.float(), atol=1e-5)


def test_a_clip_without_its_projection_is_refused() -> None:
    """As SD 1.5 checkpoints leave it: what was in memory, here zeros, or an identity in its place."""
    for weight in (torch.zeros(32, 32), torch.eye(32), torch.full((32, 32), float("nan"))):
        clip = tiny_models.clip()
        clip.cond_stage_model.clip_l.transformer.text_projection.weight.data.copy_(weight)
        with pytest.raises(denoiser.WrongConnectionError, match="no projection.*Load CLIP"):
            text_tower.text_tower(clip, 32)


def test_comfyuis_siglip_is_refused_with_the_way_out() -> None:
    with pytest.raises(denoiser.WrongConnectionError, match="siglip_vision_model.*whole SigLIP model into"):
        text_tower.joint_width(tiny_joint.clip_vision(kind="siglip_vision_model"))


def test_encoders_that_were_not_trained_together_are_warned_of(inference_mode) -> None:
    assert "hardly trained together" in words(tiny_joint.connected()).warning


def test_the_demos_encoders_belong_together_and_see_what_is_wished(inference_mode) -> None:
    """Its image tower was trained with captions of drawn scenes, which name the colours of shapes."""
    _, clip, _, vision = demo.load_demo_model()
    chosen = {"model": CONNECTED, "clip": clip, "clip_vision": vision}
    reward = words(chosen, "a red circle", "a blue circle")
    red, _, blue, *_ = reward(text_tower._discs()).tolist()
    assert red > blue + 1 and reward.warning == ""


def test_a_whole_model_judges_wishes_and_prompts(inference_mode) -> None:
    x = pictures()
    wish = words({"model": FOLDER, "folder": "pick", "judges": OPPOSITE})
    fit = words({"model": FOLDER, "folder": "pick", "judges": PROMPT})
    assert learning.measured(fit, x) == pytest.approx(learning.measured(fit, x, ["a bright picture"] * 2), abs=1e-5)
    assert learning.measured(fit, x) != learning.measured(fit, x, ["cats", "dogs"])
    normal = denoiser.normal_reward(wish)()
    with denoiser.gradients():
        by_autograd, by_hand = slopes(normal, x, 1e-3)
    assert by_autograd == pytest.approx(by_hand, rel=2e-2) and abs(by_hand) > 1e-4


def test_copying_a_preference_for_guidance_copies_no_text_encoder(inference_mode) -> None:
    """A copy of the text half would be a second set of weights that nobody counts."""
    fit = words({"model": FOLDER, "folder": "pick", "judges": PROMPT})
    normal = denoiser.normal_reward(fit)()
    assert normal._texts._tower is fit._texts._tower


def test_an_aesthetic_head_reads_the_embedding_of_the_connected_encoder(inference_mode) -> None:
    """A head of ones and no bias: the sum of the normalised embedding's 16 numbers."""
    vision = tiny_models.clip_vision()
    reward = words({"model": HEAD, "head": "head.safetensors", "clip_vision": vision})
    embedding = encoder_from(vision)(pictures())[:, :16]
    expected = torch.nn.functional.normalize(embedding, dim=1).sum(dim=1)
    assert torch.allclose(reward(pictures()), expected, atol=1e-5)
    with pytest.raises(denoiser.WrongConnectionError, match="reads 16 numbers.*has 32"):
        words({"model": HEAD, "head": "head.safetensors", "clip_vision": tiny_joint.clip_vision()})
    with pytest.raises(denoiser.WrongConnectionError, match="no image encoder"):
        words({"model": HEAD, "head": "head.safetensors"})


def test_image_reward_guides_for_its_wish_and_scores_by_each_pictures_own_prompt(inference_mode) -> None:
    """Its one network has one place in ComfyUI's memory management, and a copy for guidance holds none of its own."""
    reward = words({"model": IMAGE_REWARD, "folder": "judge"}, "a star", "")
    assert [patcher.model for patcher in denoiser.patchers_of(reward)] == reward.networks()
    normal = denoiser.normal_reward(reward)()
    assert not normal.networks()
    with denoiser.gradients():
        by_autograd, by_hand = slopes(normal, pictures(), 1e-3)
    assert by_autograd == pytest.approx(by_hand, rel=3e-2) and abs(by_hand) > 1e-3
    asked = learning.measured(reward, pictures(), ["a star", "bright bright"])
    wished = learning.measured(reward, pictures())
    assert asked[0] == pytest.approx(wished[0], abs=1e-4) and abs(asked[1] - wished[1]) > 1e-3
    model = FeedbackRewardGuidance.execute(tiny_models.sd15(), reward, tiny_models.vae(), 1.0).args[0]
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    sides = [tiny_models.conditioning("sd15", seed) for seed in (1, 2)]
    plain, guided = (
        comfy_nodes.common_ksampler(one, 3, 4, 2.0, "euler", "normal", *sides, latent)[0]["samples"]
        for one in (tiny_models.sd15(), model)
    )
    assert guided.isfinite().all() and not torch.allclose(guided, plain, atol=1e-2)


def test_a_choice_of_nothing_says_what_to_put_where() -> None:
    for chosen in ({"model": FOLDER, "folder": reward_folders.NONE}, {"model": HEAD}):
        with pytest.raises(RewardError, match=r"no such model in models/rewards\. Put"):
            words(chosen)


def test_every_choice_of_the_text_node_has_its_own_inputs() -> None:
    options = {option.key: [shown.id for shown in option.inputs] for option in rewards_text._options()}
    assert options == {
        CONNECTED: ["clip", "clip_vision"],
        FOLDER: ["folder", "judges"],
        HEAD: ["head", "clip_vision"],
        IMAGE_REWARD: ["folder"],
    }
