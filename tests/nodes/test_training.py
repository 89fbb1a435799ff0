"""FeedbackTrainLora on ComfyUI's own model classes, in the inference mode that ComfyUI runs prompts in."""

from __future__ import annotations

import math
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import numpy as np
import pytest
import torch
from nodes import LoraLoader, LoraLoaderModelOnly  # pyright: ignore[reportAttributeAccessIssue]  # ComfyUI's own
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from feedback_loop.feedback.records import Comparison, Generation, Rating
from feedback_loop.feedback.rewards.base import Reward
from feedback_loop.feedback.store import FeedbackStore
from feedback_loop.nodes import examples, training, training_inputs, training_run
from feedback_loop.nodes.denoiser import WrongConnectionError
from feedback_loop.tests.comfy_host import ComfyServer, error_of
from feedback_loop.tests.nodes import tiny_models
from feedback_loop.tests.nodes.own_store import own_store
from feedback_loop.training import runs
from feedback_loop.training.adapters import MovingAverage
from feedback_loop.training.loop import DivergedError, Plan
from feedback_loop.training.objectives import Batch, Sft
from feedback_loop.training.pictures import examples as examples_of
from feedback_loop.training.sources import ForwardSource, NoPreferenceError

SFT = {"objective": "SFT", "tau": 1.0}
NFT = {"objective": "NFT", "beta": 1.0, "kl": 1e-3}
DPO = {"objective": "DPO", "beta": 2000.0, "safe": True}
KTO = {"objective": "KTO", "beta": 1000.0}
ONLY_RATED = {"pictures": training_inputs.ONLY_RATED}
PROMPTS = ("a red circle", "a blue square", "two green stars, large")


class Brightness(Reward):
    name = "brightness"

    def score(self, images: Tensor, prompts: Any, embed: Any) -> Tensor:
        return images.mean(dim=(1, 2, 3))


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FeedbackStore]:
    """A store of its own for each test, and LoRAs and runs of its own folders."""
    opened = own_store(tmp_path, monkeypatch, training)
    yield opened
    opened.close()


def rate(kept: FeedbackStore, stars: list[int], sizes: tuple[tuple[int, int], ...] = ((64, 64),)) -> None:
    """One picture for each of `stars`, of the prompts and (height, width) in turn."""
    rng = np.random.default_rng(0)
    for index, star in enumerate(stars):
        pixels = rng.integers(0, 255, (*sizes[index % len(sizes)], 3), dtype=np.uint8)
        generation = Generation(prompt=PROMPTS[index % len(PROMPTS)], seed=str(index))
        image = kept.add_image(pixels, generation, "tests")
        kept.add_rating(Rating(image, star, "ann"))


def run(kept: FeedbackStore, model: Any, **changes: Any) -> Any:
    settings = {"objective": SFT, "pictures": ONLY_RATED, "steps": 3, "learning_rate": 1e-3, "batch": 4, "rank": 4}
    settings |= {"seed": 1, "name": "mine", "clip": tiny_models.clip(), "vae": tiny_models.vae()} | changes
    with torch.inference_mode():
        return training.FeedbackTrainLora.execute(model=model, feedback=kept.feedback(), **settings)


def weights(model: Any) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.model.state_dict().items()}


def test_ratings_become_a_lora_file_that_the_stock_loader_takes(kept: FeedbackStore, caplog: Any) -> None:
    """Five pictures, three steps; the file on disk, the LORA_MODEL output and the MODEL output are the same LoRA."""
    rate(kept, [1, 5, 2, 4, 3])
    model = tiny_models.sd15()
    before = weights(model)
    lora, losses, trained = run(kept, model).args
    with torch.inference_mode():
        loaded = LoraLoaderModelOnly().load_lora_model_only(model, "mine_00001.safetensors", 1.0)[0]
    assert not [r for r in caplog.records if "NOT LOADED" in r.message or "not loaded" in r.message]
    assert len(losses["loss"]) == 3
    assert loaded.patches.keys() == trained.patches.keys()
    assert any(bool(value.any()) for key, value in lora.items() if key.endswith("lora_up.weight"))
    after = weights(model)
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert comfy.model_management.in_training is False


def lora_files_of(kept_in: Path) -> list[str]:
    return sorted(path.name for path in (kept_in / "loras").iterdir())


def cancel_after(step: int) -> Any:
    """A progress hook that does what the Cancel button does once `step` is shown."""

    def hook(value: int, total: int, preview: Any = None, **rest: Any) -> None:
        if value == step:
            comfy.model_management.interrupt_current_processing(True)

    return hook


def test_cancelling_keeps_what_the_finished_steps_learned(kept: FeedbackStore, tmp_path: Path) -> None:
    """Cancelled while step 1 is shown, the one that a progress bar always shows: the LoRA of that step is on disk."""
    rate(kept, [1, 5, 2, 4])
    model = tiny_models.sd15()
    comfy.utils.set_progress_bar_global_hook(cancel_after(1))
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            run(kept, model, steps=50)
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
        comfy.model_management.interrupt_current_processing(False)
    assert lora_files_of(tmp_path) == ["mine_00001_stopped_at_1.safetensors"]
    with torch.inference_mode():
        loaded = LoraLoaderModelOnly().load_lora_model_only(model, "mine_00001_stopped_at_1.safetensors", 1.0)[0]
    assert loaded.patches
    assert not comfy.model_management.in_training


@pytest.mark.usefixtures("every_step_shown")
def test_a_cancelled_run_goes_on_where_it_was_and_ends_as_if_it_had_not_been_cancelled(
    kept: FeedbackStore, tmp_path: Path
) -> None:
    """Cancelled at step 2 of 5, then executed again: bit for bit the LoRA and the losses of a run left alone, under the
    name that the first one had. Other settings begin anew, under the next name."""
    rate(kept, [1, 5, 2, 4])
    comfy.utils.set_progress_bar_global_hook(cancel_after(2))
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            run(kept, tiny_models.sd15(), steps=5, show={"show": "curves"})
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
        comfy.model_management.interrupt_current_processing(False)
    other = run(kept, tiny_models.sd15(), steps=4)
    assert other.ui["lora"] == ("mine_00002.safetensors",)
    resumed = run(kept, tiny_models.sd15(), steps=5)
    assert resumed.ui["lora"] == ("mine_00001.safetensors",) and "gone on from step 2" in resumed.ui["text"][0]
    alone = run(kept, tiny_models.sd15(), steps=5, name="alone")
    assert alone.args[1] == resumed.args[1]
    assert all(torch.equal(value, resumed.args[0][key]) for key, value in alone.args[0].items())


def test_a_run_that_diverges_says_so_and_keeps_the_last_good_lora(
    kept: FeedbackStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At learning rate 1e30 the weights are no numbers any more within a few steps, at half and at a quarter of it
    neither. Where a checkpoint of a good step is there, its LoRA is saved, and loads; else there is none."""
    rate(kept, [1, 5, 2, 4])
    with pytest.raises(DivergedError, match="lower learning rate"):
        run(kept, tiny_models.sd15(), steps=50, learning_rate=1e30)
    for name in lora_files_of(tmp_path):
        with safe_open(tmp_path / "loras" / name, "pt") as opened:
            assert all(opened.get_tensor(key).isfinite().all() for key in opened.keys())  # noqa: SIM118
    monkeypatch.setattr(runs.Run, "due", lambda self, step: step == 2)
    monkeypatch.setattr(Plan, "lr_at", lambda self, step: 1e-3 if step < 2 else 1e36)
    with pytest.raises(DivergedError, match="lower learning rate"):
        run(kept, tiny_models.sd15(), steps=50, name="good")
    assert [name for name in lora_files_of(tmp_path) if name.startswith("good")] == [
        "good_00001_stopped_at_2.safetensors"
    ]
    alone = run(kept, tiny_models.sd15(), steps=2, name="alone").args[0]
    with safe_open(tmp_path / "loras" / "good_00001_stopped_at_2.safetensors", "pt") as opened:
        assert all(torch.equal(opened.get_tensor(key), alone[key]) for key in opened.keys())  # noqa: SIM118


def test_what_ended_a_run_is_said_also_where_its_lora_cannot_be_saved(
    kept: FeedbackStore, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """Cancelled on a full disk: ComfyUI is told of Cancel, the log of the disk."""

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    rate(kept, [1, 5, 2, 4])
    monkeypatch.setattr(training_run.lora_files, "save", full)
    comfy.utils.set_progress_bar_global_hook(cancel_after(1))
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            run(kept, tiny_models.sd15(), steps=50)
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
        comfy.model_management.interrupt_current_processing(False)
    assert [r.message for r in caplog.records if "No space left on device" in r.message]


def test_checkpoints_are_kept_in_long_runs(kept: FeedbackStore, tmp_path: Path, monkeypatch: Any) -> None:
    """Every two steps of five, and the end: of 2, 4 and 5 the last two stay, each a LoRA that is whole."""
    rate(kept, [1, 5, 2, 4])
    monkeypatch.setattr(runs.Run, "due", lambda self, step: step % 2 == 0)
    run(kept, tiny_models.sd15(), steps=5)
    checkpoints = runs.Run(tmp_path / "runs" / "mine_00001").checkpoints()
    assert [path.name for path in checkpoints] == ["step-000004", "step-000005"]
    _, tensors, about = runs.load(checkpoints[-1])
    assert {"theta", "average", "adam_m", "adam_v"} == set(tensors) and about["settings"]["objective"] == "SFT"  # type: ignore[index]


def test_the_same_seed_gives_the_same_lora_and_another_gives_another(kept: FeedbackStore, tmp_path: Path) -> None:
    rate(kept, [1, 5, 2, 4])
    loras = [run(kept, tiny_models.sd15(), seed=seed).args[0] for seed in (1, 1, 2)]
    assert all(torch.equal(loras[0][key], loras[1][key]) for key in loras[0])
    assert not all(torch.equal(loras[0][key], loras[2][key]) for key in loras[0])
    assert lora_files_of(tmp_path) == [f"mine_0000{n}.safetensors" for n in (1, 2, 3)]


def compare(kept: FeedbackStore, pairs: int) -> list[str]:
    """Two pictures of each prompt, of which the first was preferred; their ids."""
    rng = np.random.default_rng(1)
    ids = []
    for index in range(2 * pairs):
        pixels = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        ids.append(kept.add_image(pixels, Generation(prompt=PROMPTS[index // 2 % 3], seed=str(index)), "tests"))
    for left, right in zip(ids[::2], ids[1::2], strict=True):
        kept.add_comparison(Comparison(left, right, "left", "ann"))
    return ids


@pytest.mark.parametrize(
    ("objective", "what"),
    [(SFT, "both"), (NFT, "pairs"), (DPO, "stars"), (DPO | {"beta": 0.0}, "pairs"), (KTO, "both"), (KTO, "stars")],
    ids=lambda value: value if isinstance(value, str) else value["objective"],
)
def test_stars_and_comparisons_train_with_any_objective(
    kept: FeedbackStore, objective: dict[str, Any], what: str
) -> None:
    """Six pictures of three prompts; DPO starts at log 2 = .693 and KTO at 1/2, whatever the feedback is."""
    if what != "pairs":
        rate(kept, [1, 5, 2, 4, 3, 1])
    if what != "stars":
        compare(kept, 3)
    output = run(kept, tiny_models.sd15(), objective=objective, steps=2, learning_rate=1e-4)
    first = output.args[1]["loss"][0]
    known = {"DPO": math.log(2), "KTO": 0.5}.get(objective["objective"])
    assert any(bool(v.any()) for key, v in output.args[0].items() if key.endswith("lora_up.weight"))
    # gaps and weights have the mean 1 over all pictures, not over the four of this batch
    assert known is None or first == pytest.approx(known, rel=0.5)


def test_dpo_without_two_pictures_of_one_prompt_says_what_to_do(kept: FeedbackStore) -> None:
    rate(kept, [1, 5, 2])
    with pytest.raises(NoPreferenceError, match="no two pictures of one prompt.*choose SFT or KTO"):
        run(kept, tiny_models.sd15(), objective=DPO)


def test_held_out_pictures_are_not_trained_on_and_choose_the_lora(kept: FeedbackStore, monkeypatch: Any) -> None:
    """12 pictures of 3 prompts: a fourth of the pictures is held out; a check at 2 and at 4 of 5 steps. No picture that
    a gradient sees is seen by a check, and the LoRA is the moving average of the better check."""
    rate(kept, [1, 5, 2, 4] * 3)
    seen: dict[str, set[float]] = {"steps": set(), "checks": set()}
    checking: list[bool] = []
    batch_at, averages = ForwardSource.batch_at, []

    def batch(self: Any, step: int) -> Batch:
        made = batch_at(self, step)
        seen["checks" if checking else "steps"] |= {float(x.double().sum()) for x in made.x0}
        return made

    def average(self: Any) -> None:
        update(self)
        averages.append([value.clone() for value in self.values])

    def check(self: Any) -> float:
        checking.append(True)
        loss = held_out_loss(self)
        checking.clear()
        return loss

    update, held_out_loss = MovingAverage.update, training.Validation.__call__
    monkeypatch.setattr(training.Validation, "__call__", check)
    monkeypatch.setattr(ForwardSource, "batch_at", batch)
    monkeypatch.setattr(MovingAverage, "update", average)
    held_out = {"held_out": training_inputs.CHECKS, "share": 0.25, "every": 2, "patience": 3}
    output = run(kept, tiny_models.sd15(), steps=5, held_out=held_out)
    noted = kept.latest_run("lora")
    assert noted is not None and [step for step, _ in noted.metrics["held_out"]] == [2, 4]
    assert len(output.args[1]["loss"]) == 5
    assert len(seen["checks"]) == 3 and len(seen["steps"]) == 9 and not seen["steps"] & seen["checks"]
    best = min(noted.metrics["held_out"], key=lambda check: check[1])[0]
    ups = [v for key, v in output.args[0].items() if key.endswith("lora_up.weight")]
    assert all(any(torch.equal(up, value) for value in averages[best - 1]) for up in ups)
    assert not all(any(torch.equal(up, value) for value in averages[-1]) for up in ups)


def test_samples_are_shown_while_it_trains_and_at_the_end(kept: FeedbackStore) -> None:
    """Every 2 of 4 steps and once at the end: below the curve stand four samples of the start and four of now, the
    latter by the LoRA that is handed out."""
    rate(kept, [1, 5, 2, 4])
    show = {"show": training_inputs.SAMPLES, "every": 2, "sampling_steps": 2, "cfg": 1.0}
    show |= {"sampler_name": "euler", "scheduler": "normal"}
    seen: list[Any] = []
    comfy.utils.set_progress_bar_global_hook(lambda value, total, preview=None, **_: seen.append((value, preview)))
    try:
        curves = run(kept, tiny_models.sd15(), steps=4)
        shown = run(kept, tiny_models.sd15(), steps=4, show=show)
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    assert [value for value, _ in seen][-1] == 4
    kind, picture, _ = next(preview for _, preview in seen if preview is not None)
    assert kind == "JPEG" and picture.size[0] >= 768
    plain, more = (saved_picture(output) for output in (curves, shown))
    assert more.size[1] >= plain.size[1] + 2 * 64


def saved_picture(output: Any) -> Image.Image:
    told = output.ui["images"][0]
    return Image.open(Path(folder_paths.get_directory_by_type(told["type"])) / told["subfolder"] / told["filename"])


def test_the_last_samples_are_of_the_lora_that_is_handed_out(kept: FeedbackStore, monkeypatch: Any) -> None:
    """Held-out losses that rise: the best is the first check, and the last samples are by its weights."""
    rate(kept, [1, 5, 2, 4] * 3)
    losses, shown = iter([1.0, 2.0, 3.0]), []
    monkeypatch.setattr(training.Validation, "__call__", lambda self: next(losses))
    make = training.rollout

    def noted(model: Any, *given: Any) -> Any:
        shown.append([p.detach().clone() for p in now[0].parameters()])
        return make(model, *given)

    now: list[Any] = []
    follow = training.Training.follow

    def following(self: Any, *given: Any) -> Any:
        now.append(self.policy)
        return follow(self, *given)

    monkeypatch.setattr(training, "rollout", noted)
    monkeypatch.setattr(training.Training, "follow", following)
    show = {"show": training_inputs.SAMPLES, "every": 50, "sampling_steps": 2, "cfg": 1.0}
    show |= {"sampler_name": "euler", "scheduler": "normal"}
    held_out = {"held_out": training_inputs.CHECKS, "share": 0.25, "every": 1, "patience": 3}
    output = run(kept, tiny_models.sd15(), steps=3, held_out=held_out, show=show)
    ups = [v for key, v in output.args[0].items() if key.endswith("lora_up.weight")]
    assert all(any(torch.equal(up, value) for value in shown[-1]) for up in ups)


@pytest.mark.parametrize("adapter", ["rsLoRA", "DoRA", "LoKr"])
def test_the_node_trains_every_kind_of_adapter_from_an_older_graph_s_inputs_on(
    kept: FeedbackStore, adapter: str
) -> None:
    rate(kept, [1, 5, 2, 4])
    more = {"gradient_checkpointing": True, "accumulation": 2, "layer_patterns": "*attn1*", "precision": "fp32"}
    output = run(kept, tiny_models.sd15(), adapter=adapter, **more)
    assert {key.split(".attn1")[1].split(".")[1] for key in output.args[0]} == {"to_q", "to_k", "to_v", "to_out"}
    assert output.args[2].patches


def test_accumulation_has_the_losses_of_the_whole_batch(kept: FeedbackStore) -> None:
    """Of the first step, and of the second, which sees what the first one's gradient did."""
    rate(kept, [1, 5, 2, 4])
    whole, parts = (run(kept, tiny_models.sd15(), steps=2, accumulation=n, name=f"n{n}").args[1] for n in (1, 4))
    assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-4)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_both_objectives_train_on_pictures_of_several_sizes(kept: FeedbackStore, kind: str) -> None:
    """SDXL with its own two text encoders: each prompt brings its pooled text, each picture its size."""
    rate(kept, [1, 5, 2, 4, 3, 5], sizes=((64, 64), (64, 96), (128, 64)))
    clip = {"sd15": tiny_models.clip, "sdxl": tiny_models.sdxl_clip}[kind]()
    for objective in (SFT, NFT):
        output = run(kept, tiny_models.MODELS[kind](), clip=clip, objective=objective)
        assert len(output.args[1]["loss"]) == 3
        assert any(bool(v.any()) for key, v in output.args[0].items() if key.endswith("lora_up.weight"))


def test_more_pictures_of_the_same_prompts_are_made_and_scored(kept: FeedbackStore) -> None:
    """Five pictures of the three prompts in turn at the size of the rated ones, with different seeds."""
    rate(kept, [1, 5, 2, 4])
    model, vae, clip = tiny_models.sd15(), tiny_models.vae(), tiny_models.clip()
    with torch.inference_mode():
        like = examples.rated_pictures(kept, kept.feedback())
        conds = examples.encode_prompts(clip, like.prompts)
        how = examples.Sampling(2, 2.0, "euler", "normal", seed=3)
        more = examples.scored_pictures(model, vae, conds, like, Brightness(), 5, how)
    assert more.prompts == [*PROMPTS, *PROMPTS[:2]]
    assert [tuple(image.shape) for image in more.images] == [(64, 64, 3)] * 5
    assert more.scores == pytest.approx([image.mean().item() for image in more.images], rel=1e-5)
    assert not torch.equal(more.images[0], more.images[3])


def test_the_node_trains_on_rated_and_scored_pictures_together(kept: FeedbackStore) -> None:
    rate(kept, [1, 5, 2, 4])
    more = {"pictures": training_inputs.MORE, "reward": Brightness(), "count": 6, "sampling_steps": 2, "cfg": 2.0}
    more |= {"sampler_name": "euler", "scheduler": "normal"}
    output = run(kept, tiny_models.sd15(), pictures=more)
    assert "on 10 pictures" in output.ui["text"][0]


class Shifts(Brightness):
    """Scores that never come out the same twice, as a GPU's do in their last digits."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def score(self, images: Tensor, prompts: Any, embed: Any) -> Tensor:
        self.asked.append(len(images))
        return super().score(images, prompts, embed) + 1e-6 * ASKED.pop()


ASKED = [1.0, 2.0, 3.0]


@pytest.mark.usefixtures("every_step_shown")
def test_a_run_goes_on_with_the_pictures_that_it_made(kept: FeedbackStore) -> None:
    """Cancelled, then executed again: the pictures and their scores are those of before, and the run goes on though
    they would not come out bit for bit the same."""
    rate(kept, [1, 5, 2, 4])
    more = {"pictures": training_inputs.MORE, "count": 6, "sampling_steps": 2, "cfg": 2.0}
    more |= {"sampler_name": "euler", "scheduler": "normal"}
    comfy.utils.set_progress_bar_global_hook(cancel_at(2, 4))
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            run(kept, tiny_models.sd15(), pictures=more | {"reward": Shifts()}, steps=4)
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
        comfy.model_management.interrupt_current_processing(False)
    again = Shifts()
    resumed = run(kept, tiny_models.sd15(), pictures=more | {"reward": again}, steps=4)
    assert resumed.ui["lora"] == ("mine_00001.safetensors",) and "gone on from step 2" in resumed.ui["text"][0]
    assert again.asked == [] and "on 10 pictures" in resumed.ui["text"][0]


def cancel_at(step: int, steps: int) -> Any:
    """Cancel once `step` is shown on the bar of a training of so many steps, not on that of a sampler."""

    def hook(value: int, total: int, preview: Any = None, **rest: Any) -> None:
        if (value, total) == (step, steps):
            comfy.model_management.interrupt_current_processing(True)

    return hook


def test_each_source_of_scores_is_standardised_by_itself() -> None:
    """Stars in 0..1 and a reward in thousands: each becomes -1, 1, so w = e^-1 and e."""
    stars = examples.Pictures([torch.zeros(8, 8, 3)] * 2, ["a", "b"], [0.2, 0.8])
    reward = examples.Pictures([torch.zeros(8, 8, 3)] * 2, ["a", "b"], [5000.0, 1000.0])
    made = examples_of([stars, reward], [torch.zeros(4, 1, 1)] * 4, Sft())
    assert [e.label for e in made] == pytest.approx([0.36788, 2.71828, 2.71828, 0.36788], rel=1e-4)


def test_several_raters_of_a_picture_count_as_their_mean(kept: FeedbackStore) -> None:
    """Stars 1 and 4 of five are 0 and .75 of the scale: .375."""
    rate(kept, [1, 5])
    first = kept.rated(kept.feedback())[0].image_id
    kept.add_rating(Rating(first, 4, "bob"))
    pictures = examples.rated_pictures(kept, kept.feedback())
    assert sorted(pictures.scores) == pytest.approx([0.375, 1.0])


def test_latents_are_the_vaes_in_the_models_own_scale_and_order(kept: FeedbackStore) -> None:
    """Sizes alternate, so that pictures are encoded in another order than they come back."""
    rate(kept, [1, 2, 3, 4], sizes=((64, 64), (64, 96)))
    model, vae = tiny_models.sd15(), tiny_models.vae()
    with torch.inference_mode():
        pictures = examples.rated_pictures(kept, kept.feedback())
        latents = examples.encode_pictures(model, vae, pictures.images)
        for image, latent in zip(pictures.images, latents, strict=True):
            expected = model.model.process_latent_in(vae.encode(image[None].float() / 255))[0]
            assert torch.allclose(latent, expected, atol=1e-5)
    assert not any(latent.is_inference() for latent in latents)


@pytest.mark.parametrize(
    ("changes", "stars", "error", "sentence"),
    [
        ({}, [3, 3, 3], NoPreferenceError, "All 3 ratings are the same"),
        ({}, [], NoPreferenceError, "There are 0 rated pictures with a known prompt"),
        ({"name": "../../evil"}, [1, 5], ValueError, "is no file name"),
        ({"name": ""}, [1, 5], ValueError, "is no file name"),
        ({"vae": "other"}, [1, 5], WrongConnectionError, "latents of 16 channels, but the model's have 4"),
        ({"clip": "other"}, [1, 5], WrongConnectionError, "64 numbers wide, but this MODEL reads 32"),
        ({"clip": None}, [1, 5], WrongConnectionError, "no text encoder"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(
    kept: FeedbackStore,
    tmp_path: Path,
    changes: dict[str, Any],
    stars: list[int],
    error: type[Exception],
    sentence: str,
) -> None:
    rate(kept, stars)
    other = {"vae": lambda: tiny_models.vae(channels=16), "clip": tiny_models.sdxl_clip}
    changes = {key: other[key]() if value == "other" else value for key, value in changes.items()}
    with pytest.raises(error, match=sentence):
        run(kept, tiny_models.sd15(), **changes)
    assert lora_files_of(tmp_path) == []


def test_pictures_whose_prompt_nobody_knows_are_left_out(kept: FeedbackStore) -> None:
    rate(kept, [1, 5])
    image = kept.add_image(np.zeros((64, 64, 3), dtype=np.uint8), Generation(), "tests")
    kept.add_rating(Rating(image, 3, "ann"))
    assert len(examples.rated_pictures(kept, kept.feedback()).images) == 2


def test_the_stock_loader_with_a_clip_takes_the_file_too(kept: FeedbackStore, caplog: Any) -> None:
    rate(kept, [1, 5, 2, 4])
    model, clip = tiny_models.sd15(), tiny_models.clip()
    run(kept, model)
    with torch.inference_mode():
        loaded, _ = LoraLoader().load_lora(model, clip, "mine_00001.safetensors", 1.0, 1.0)
    assert loaded.patches
    assert not [r.message for r in caplog.records if "not loaded" in r.message.lower()]


def test_the_file_says_how_it_was_trained(kept: FeedbackStore, tmp_path: Path) -> None:
    rate(kept, [1, 5, 2, 4])
    run(kept, tiny_models.sd15(), objective=NFT, seed=9)
    with safe_open(tmp_path / "loras" / "mine_00001.safetensors", "pt") as opened:
        about = opened.metadata()
    assert about["modelspec.architecture"] == "sd15/lora"
    assert (about["ss_network_dim"], about["ss_seed"], about["ss_steps"]) == ("4", "9", "3")
    assert '"objective": "NFT"' in about["ss_feedback_loop"]


def test_core_plots_the_loss_and_the_node_shows_a_curve(kept: FeedbackStore) -> None:
    from comfy_extras.nodes_train import LossGraphNode

    rate(kept, [1, 5, 2, 4])
    output = run(kept, tiny_models.sd15())
    assert LossGraphNode.execute(output.args[1], "loss").ui
    assert output.ui["images"][0]["filename"].endswith(".png")
    assert output.ui["lora"] == ("mine_00001.safetensors",)


def test_the_store_notes_from_which_ratings_a_lora_came(kept: FeedbackStore, tmp_path: Path) -> None:
    """The note raises the store's revision, but not that of its judgements: nothing downstream learns again."""
    rate(kept, [1, 5, 2, 4])
    asked = kept.feedback()
    run(kept, tiny_models.sd15())
    assert kept.feedback() == asked
    assert kept.revision() > asked.revision


def test_in_a_real_comfyui_a_cancelled_run_leaves_a_lora_that_the_next_prompt_loads(comfy_server: ComfyServer) -> None:
    """Captured, rated over HTTP, trained on the demo model, cancelled by the button's own request while it trains."""
    name = f"cancelled {uuid.uuid4().hex}"
    queued = queue_training(comfy_server, name)
    wait_for_steps(comfy_server, queued, name)
    comfy_server.request("POST", "/interrupt", {})
    comfy_server.wait(queued)
    (left,) = (comfy_server.base_directory / "models" / "loras").glob(f"{name}*")
    assert left.name.startswith(f"{name}_00001_stopped_at_")
    load = {"model": ["1", 0], "lora_name": left.name, "strength_model": 1.0}
    load_only = {"1": DEMO, "6": {"class_type": "LoraLoaderModelOnly", "inputs": load}}
    shown = {"class_type": "PreviewAny", "inputs": {"source": ["6", 0]}}
    assert comfy_server.run(load_only | {"7": shown})
    assert "lora key not loaded" not in comfy_server.log()


@pytest.mark.long
def test_a_comfyui_that_is_asked_to_end_saves_the_step_first(own_comfy_server: ComfyServer) -> None:
    """SIGTERM's own exit code, and a whole checkpoint beside the one that is due every 200 steps."""
    queued = queue_training(own_comfy_server, "terminated")
    wait_for_steps(own_comfy_server, queued, "terminated")
    time.sleep(1)  # some steps on, so that the one it ends in is not the one that was saved anyway
    process = own_comfy_server.server.process
    process.terminate()
    assert process.wait(120) == -signal.SIGTERM
    run = runs.Run(own_comfy_server.base_directory / "user" / "__feedback_loop" / "runs" / "terminated_00001")
    steps = [int(path.name.removeprefix("step-")) for path in run.checkpoints() if runs.is_valid(path)]
    assert steps[0] == 200 and steps[-1] > 200


DEMO = {"class_type": "FeedbackDemoModel", "inputs": {}}


def queue_training(comfy_server: ComfyServer, name: str) -> str:
    """Four pictures, rated over HTTP, and a training that would take hours."""
    pictures = {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 4, "color": 255}}
    taken = {"images": ["2", 0], "collection": name, "positive": "a red circle"}
    captured = comfy_server.run({"2": pictures, "3": {"class_type": "FeedbackCapture", "inputs": taken}})
    for stars, image in enumerate(captured["3"]["feedback_images"], start=1):
        scale = {"min": 1, "max": 5}
        rating = {"image_id": image, "value": stars, "scale": scale, "axis": "overall", "rater": "ann"}
        comfy_server.post("/feedback_loop/v1/ratings", rating)
    which = {"collection": name, "raters": "", "axis": "overall", "min_ratings": 1}
    settings = {"objective": "SFT", "objective.tau": 1.0, "pictures": training_inputs.ONLY_RATED, "steps": 100_000}
    settings |= {"learning_rate": 1e-3, "batch": 1, "rank": 4, "seed": 0, "name": name, "layers": "attention"}
    links = {"model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "feedback": ["4", 0]}
    prompt = {
        "1": DEMO,
        "4": {"class_type": "FeedbackDataset", "inputs": which},
        "5": {"class_type": "FeedbackTrainLora", "inputs": links | settings},
    }
    return comfy_server.queue_prompt(prompt)


def wait_for_steps(server: ComfyServer, prompt_id: str, name: str) -> None:
    """Returns once training has begun: the first checkpoint comes after 200 steps, seconds at this size."""
    runs_folder = server.base_directory / "user" / "__feedback_loop" / "runs"
    end = time.monotonic() + 300
    while not list(runs_folder.glob(f"{name}*/step-*")):
        entry = server.get(f"/history/{prompt_id}").get(prompt_id)
        assert entry is None, error_of(entry)
        assert time.monotonic() < end, server.log()[-2000:]
        time.sleep(0.2)
