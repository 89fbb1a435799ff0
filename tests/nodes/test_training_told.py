"""What trainers say beside the losses: cautions, the memory they need, what of a LoRA is left out; what they free."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from safetensors.torch import save_file
from sqlalchemy import select
from torch import Tensor

from feedback_loop.feedback.store import FeedbackStore
from feedback_loop.feedback.tables import model_run
from feedback_loop.nodes import cautions, evaluation_votes, existing_lora, learning, memory, training_inputs
from feedback_loop.nodes.examples import encode_pictures, rated_pictures
from feedback_loop.nodes.live import curves_of
from feedback_loop.nodes.policy import trainable
from feedback_loop.nodes.rollouts import how_to_sample, roll
from feedback_loop.nodes.training_inputs import CHECKS
from feedback_loop.tests.nodes import tiny_models
from feedback_loop.training.following import History
from feedback_loop.training.lora_files import PREFIX, LoraFileError

from . import test_reinforce, test_training

MODULE = "input_blocks.1.1.transformer_blocks.0"
DIFFUSERS = "unet.down_blocks.0.attentions.0.transformer_blocks.0"


class Weak(test_training.Brightness):
    name, warning = "weak taste", "This taste ranks only 55% of held-out pairs right: it is weak. Rate more pictures."


class OwnEncoder:
    """Says when its weights are let go of."""

    id, released = "own", 0

    def __call__(self, images: Tensor) -> Tensor:
        return images.flatten(1)

    def networks(self) -> list[Any]:
        return []

    def release(self) -> None:
        self.released += 1


class Encoded(test_training.Brightness):
    def __init__(self) -> None:
        self.encoder = OwnEncoder()
        self.encoders = (self.encoder,)

    @property
    def released(self) -> int:
        return self.encoder.released


kept = test_training.kept
"""The store of a test, and folders of its own for LoRAs and runs."""


def text_of(output: Any) -> str:
    return output.ui["text"][0]


def test_a_trainers_report_tells_what_it_needs_and_what_speaks_against_it(kept: FeedbackStore) -> None:
    """A weak taste scores more pictures, drawn in 4 steps at cfg 1; 5 pictures are too few to hold any out."""
    test_training.rate(kept, [1, 5, 2, 4, 3])
    more = {"pictures": training_inputs.MORE, "reward": Weak(), "count": 2, "sampling_steps": 4, "cfg": 1.0}
    more |= {"sampler_name": "euler", "scheduler": "normal"}
    held = {"held_out": CHECKS, "share": 0.2, "every": 1, "patience": 0}
    told = text_of(test_training.run(kept, tiny_models.sd15(), pictures=more, held_out=held))
    assert "weak taste: This taste ranks only 55% of held-out pairs right" in told
    assert "4 steps at cfg 1 look like a distilled model" in told and "PPO" in told
    assert "Nothing is held out: that takes 10 pictures or pairs, and there are 7." in told
    assert "needs about" in told and "is free" in told
    plain = text_of(test_training.run(kept, tiny_models.sd15(), name="plain"))
    assert "needs about" in plain and not any(word in plain for word in ("weak", "distilled", "held out"))


def test_more_pictures_than_fit_are_refused_before_one_is_read(
    kept: FeedbackStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five pictures of 64 x 64 take 60 KB, and their latents 5 KB; without their files none of them can be read."""
    test_training.rate(kept, [1, 5, 2, 4, 3])
    shutil.rmtree(tmp_path / "media")
    sizes = [(64, 64)] * 5
    free = {"cpu": 80_000}
    monkeypatch.setattr(memory.comfy.model_management, "get_free_memory", lambda device: free["cpu"])
    memory.check_room(tiny_models.sd15(), sizes)
    free["cpu"] = 50_000
    with pytest.raises(memory.NotEnoughMemoryError, match="The 5 rated pictures take .*Pick fewer in Collect feedback"):
        test_training.run(kept, tiny_models.sd15())


def test_reinforcing_tells_the_same_notes_its_run_and_frees_its_rewards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = FeedbackStore(f"sqlite:///{tmp_path / 'feedback.sqlite3'}", tmp_path / "media")
    for module in (test_reinforce.reinforce, test_reinforce.training_run, test_reinforce.prompt_lists):
        monkeypatch.setattr(module, "store", lambda: opened)
    monkeypatch.setattr(test_reinforce.training_run, "data_directory", lambda: tmp_path)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path / "loras")], {".safetensors"}))
    (tmp_path / "loras").mkdir()
    second = Encoded()
    alarm = {"alarm": "warn", "second_reward": second, "ratings": None}
    report = test_reinforce.run(tiny_models.sd15(), Weak(), cfg=1.0, epochs=1, alarm=alarm).args[3]
    assert "weak taste: This taste ranks only 55%" in report and "distilled" in report and "needs about" in report
    assert second.released >= 2  # after it scored the epoch, and at the end
    (noted,) = opened.ask(lambda connection: connection.execute(select(model_run)).all())
    assert (noted.kind, noted.name) == ("lora", "mine_00001.safetensors") and noted.file_hash
    assert json.loads(noted.settings)["objective"] == "NFT" and json.loads(noted.metrics)["epochs"][0]["reward"]
    opened.close()


@pytest.mark.parametrize(
    ("objective", "cfg", "steps", "warned"),
    [("NFT", 1.0, 8, True), ("AWM", 1.0, 1, True), ("SFT", 1.0, 4, True), ("PPO", 1.0, 4, False)]
    + [("NFT", 1.5, 4, False), ("NFT", 1.0, 9, False), ("DPO", 1.0, 4, False)],
)
def test_who_is_warned_of_a_distilled_model(objective: str, cfg: float, steps: int, warned: bool) -> None:
    assert bool(cautions.of_few_steps(objective, cfg, steps)) is warned


def test_a_reward_is_let_go_of_after_it_scored_also_after_an_error() -> None:
    reward = Encoded()
    learning.measured(reward, torch.rand(3, 3, 8, 8))
    assert reward.released == 1
    with pytest.raises(ValueError, match="RGB"):
        learning.measured(reward, torch.rand(3, 1, 8, 8))
    assert reward.released == 2


def test_rated_pictures_are_bytes_and_encode_as_before(kept: FeedbackStore) -> None:
    """18 pictures, in blocks of 16: the latents are those of each picture in 0..1 alone."""
    test_training.rate(kept, [1, 5] * 9)
    with torch.inference_mode():
        pictures, model, vae = rated_pictures(kept, kept.feedback()), tiny_models.sd15(), tiny_models.vae()
        assert all(image.dtype == torch.uint8 for image in pictures.images) and len(pictures.images) == 18
        latents = encode_pictures(model, vae, pictures.images)
        for i in (0, 15, 16, 17):
            (alone,) = encode_pictures(model, vae, [pictures.images[i].float() / 255])
            assert torch.allclose(latents[i], alone, atol=1e-5)
    without = pictures.without_images()
    assert len(without.images) == 0 and without.size() == pictures.size() == (64, 64)
    assert torch.equal(without.utilities(), pictures.utilities())


class Thing:
    pass


def test_the_pictures_of_an_evaluation_go_with_what_they_were_made_of() -> None:
    """Kept while model and judge are there; gone with either, without another run of the node."""
    judge, model, made = Thing(), Thing(), []

    def evaluate() -> Any:
        made.append(1)
        return Thing()

    first = evaluation_votes.once((model, None, judge), {"a": 1}, True, evaluate)
    assert evaluation_votes.once((model, None, judge), {"a": 1}, True, evaluate) is first and made == [1]
    del model
    gc.collect()
    assert evaluation_votes._last == []


def test_curves_of_a_run_on_its_own_pictures_show_no_checks() -> None:
    """Its checks are minus the reward, or 1e9 where an alarm rang: on the losses' axis they would flatten all else."""
    epochs = [{"number": n, "step": n, "reward": [0.1 * n, 0.01]} for n in range(3)]
    online = History([0.5, 0.4, 0.3], [[0, -0.1], [1, 1e9], [2, -0.2]], [], epochs)
    assert set(curves_of(online)) == {"loss", "reward"}
    assert set(curves_of(History([0.5, 0.4, 0.3], [[1, 0.6], [3, 0.5]]))) == {"loss", "held-out loss"}


def test_a_sampler_that_steps_by_the_batchs_error_rolls_out_alone() -> None:
    """dpm_adaptive as a SAMPLER object, as rollouts are given it: each picture is that of its seed alone."""
    with torch.inference_mode(), trainable(tiny_models.sd15(), rank=2, seed=0) as policy:
        conds = [tiny_models.conditioning("sd15", seed) for seed in range(3)]
        how = how_to_sample(policy.model, 2.0, 4, "dpm_adaptive", "normal", (64, 64))
        together = roll(policy, conds, conds[0], [5, 6, 7], how).latents
        for i in range(3):
            alone = roll(policy, [conds[i]], conds[0], [5 + i], how).latents
            assert torch.allclose(together[i : i + 1], alone, rtol=1e-4, atol=1e-3 * float(alone.std()))


@pytest.fixture
def loras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    folder_paths.filename_list_cache.clear()
    return tmp_path


def lora(**more: Tensor) -> dict[str, Tensor]:
    layer = f"{PREFIX}{MODULE}.attn1.to_q"
    return {f"{layer}.lora_up.weight": torch.ones(32, 2), f"{layer}.lora_down.weight": torch.ones(2, 32), **more}


def test_what_of_a_lora_is_not_gone_on_with_is_named(loras: Path) -> None:
    """A text encoder's layer, a bias and a norm beside one layer of the network, which alone is taken."""
    more = {
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.ones(4, 2),
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(2, 4),
        f"{PREFIX}{MODULE}.ff.net.2.diff_b": torch.ones(32),
        f"{PREFIX}{MODULE}.norm1.diff": torch.ones(32),
    }
    save_file(lora(**more), loras / "mixed.safetensors")
    save_file(lora(), loras / "plain.safetensors")
    said: list[str] = []
    model = tiny_models.sd15()
    found = existing_lora.existing_lora(model, "mixed.safetensors", 4, said.append)
    assert found is not None and list(found) == [f"{MODULE}.attn1.to_q"]
    assert len(said) == 1 and "mixed.safetensors: 4 of its parts are left out" in said[0]
    assert "text encoder" in said[0] and MODULE in said[0]
    existing_lora.existing_lora(model, "plain.safetensors", 4, said.append)
    assert len(said) == 1


def test_a_file_of_norms_alone_is_refused_in_words(loras: Path) -> None:
    save_file({f"{PREFIX}{MODULE}.norm1.diff": torch.ones(32)}, loras / "norms.safetensors")
    with pytest.raises(LoraFileError, match="no linear or convolution layer.*norm1.*load it into the model"):
        existing_lora.existing_lora(tiny_models.sd15(), "norms.safetensors", 4)


def test_kohyas_and_diffusers_names_belong(loras: Path) -> None:
    """No part of a plain LoRA under others' names is called left out."""
    for up, down, name in (
        ("lora_up.weight", "lora_down.weight", f"lora_unet_{MODULE.replace('.', '_')}_attn1_to_q."),
        (
            "lora.up.weight",
            "lora.down.weight",
            f"{DIFFUSERS}.attn1.processor.to_q_",
        ),
    ):
        save_file({name + up: torch.ones(32, 2), name + down: torch.ones(2, 32)}, loras / "other.safetensors")
        said: list[str] = []
        found = existing_lora.existing_lora(tiny_models.sd15(), "other.safetensors", 4, said.append)
        assert found is not None and list(found) == [f"{MODULE}.attn1.to_q"] and said == []
