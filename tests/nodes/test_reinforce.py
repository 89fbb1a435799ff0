"""FeedbackReinforceLora on ComfyUI's own model classes: every objective, what is recorded, people, alarm and resume."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.samplers
import comfy.utils
import folder_paths
import numpy as np
import pytest
import torch
from nodes import LoraLoaderModelOnly  # pyright: ignore[reportAttributeAccessIssue]  # ComfyUI's own
from safetensors.torch import load_file
from torch import Tensor

from feedback_loop.feedback.records import Generation, Rating
from feedback_loop.feedback.rewards.base import Reward
from feedback_loop.feedback.store import FeedbackStore
from feedback_loop.nodes import people, prompt_lists, reinforce, reinforce_run, reinforce_watch, training_run
from feedback_loop.nodes.denoiser import WrongConnectionError
from feedback_loop.nodes.live import Live
from feedback_loop.nodes.policy import trainable
from feedback_loop.nodes.reinforce_run import Online
from feedback_loop.nodes.rollouts import How, how_to_sample, record_last, record_steps, roll, window_of
from feedback_loop.nodes.sampling import sample
from feedback_loop.tests.nodes import tiny_models
from feedback_loop.tests.nodes.own_store import own_store
from feedback_loop.training import lora_files
from feedback_loop.training.online import Epoch
from feedback_loop.training.policy_gradient import StepBatch, step_log_prob

NFT = {"objective": "NFT", "beta": 1.0, "kl": 1e-3}
AWM = {"objective": "AWM", "clip": 0.05, "kl_old": 0.5, "kl": 3e-3}
PPO = {"objective": "PPO", "clip": 1e-4, "kl": 0.01, "eta": 1.0, "window": 2}
DRAFT = {"objective": "DRaFT", "kl": 1e-3}
PROMPTS = {"prompts": prompt_lists.LIST, "text": "a red circle\n\na blue square\n"}


class Brightness(Reward):
    name = "brightness"

    def __init__(self, sign: float = 1.0) -> None:
        self.sign = sign
        self.asked: list[list[str]] = []

    def score(self, images: Tensor, prompts: Any, embed: Any) -> Tensor:
        self.asked.append(list(prompts))
        return self.sign * images.mean(dim=(1, 2, 3))


class Constant(Reward):
    name, differentiable = "constant", False

    def score(self, images: Tensor, prompts: Any, embed: Any) -> Tensor:
        return torch.full((len(images),), 0.3)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FeedbackStore]:
    opened = own_store(tmp_path, monkeypatch, reinforce, reinforce_watch, prompt_lists)
    monkeypatch.setattr(people, "SECONDS", 0.05)
    yield opened
    opened.close()


def run(model: Any, reward: Reward | None = None, **changes: Any) -> Any:
    settings = {"prompts": PROMPTS, "scored_by": {"scored_by": "a reward", "reward": reward or Brightness()}}
    settings |= {"objective": NFT, "epochs": 2, "updates": 2, "prompts_per_epoch": 2, "group_size": 2, "batch": 2}
    settings |= {"learning_rate": 1e-3, "rank": 4, "seed": 1, "name": "mine", "width": 64, "height": 64}
    settings |= {"sampling_steps": 4, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal", "layers": "attention"}
    with torch.inference_mode():  # as loader nodes make them: weights that no graph may hold
        settings |= {"clip": tiny_models.clip(), "vae": tiny_models.vae()} | changes
        return reinforce.FeedbackReinforceLora.execute(model=model, **settings)


def moved(lora: dict[str, Tensor]) -> bool:
    return any(bool(value.any()) for key, value in lora.items() if key.endswith("lora_up.weight"))


@pytest.mark.parametrize("objective", [NFT, AWM, PPO, DRAFT], ids=lambda o: o["objective"])
def test_every_objective_trains_and_its_file_loads(kept: FeedbackStore, objective: dict[str, Any]) -> None:
    model, reward = tiny_models.sd15(), Brightness()
    before = {key: value.clone() for key, value in model.model.state_dict().items()}
    lora, losses, trained, report = run(model, reward, objective=objective).args
    assert moved(lora) and len(losses["loss"]) == 4 and "brightness" not in report
    assert "reward: " in report and "in the last" in report
    assert {prompt for asked in reward.asked for prompt in asked} == {"a red circle", "a blue square"}
    with torch.inference_mode():
        loaded = LoraLoaderModelOnly().load_lora_model_only(model, "mine_00001.safetensors", 1.0)[0]
    assert loaded.patches.keys() == trained.patches.keys()
    after = model.model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert comfy.model_management.in_training is False


@pytest.mark.parametrize("objective", [NFT, PPO | {"eta": 0.7}], ids=lambda o: o["objective"])
def test_flow_models_are_reinforced_as_well(kept: FeedbackStore, objective: dict[str, Any]) -> None:
    """SD3 in small with text as its own encoders would make it: two epochs of two updates move its adapter."""
    reward = Brightness()
    with torch.inference_mode(), trainable(tiny_models.sd3(), rank=4, seed=0) as policy:
        conds = {prompt: tiny_models.conditioning("sd3", seed) for seed, prompt in enumerate(("a", "b", ""))}
        vae = tiny_models.vae(channels=16)
        run_of_it = training_run.Training.begin(policy, "flow", {}, resume=False)
        how = how_to_sample(policy.model, 2.0, 4, "euler", "normal", (64, 64))
        score = partial(reinforce_run.by_reward, reward)
        online = Online(run_of_it, vae, conds, ["a", "b"], how, score, 2, 2, 2, seed=1, eta=0.7)
        goal = reinforce.goal_of(objective, policy, vae, {})
        lora = reinforce.reinforce(online, goal, {"epochs": 2, "updates": 2, "learning_rate": 1e-3}, Live("flow", 4))
    assert moved(lora_files.to_tensors(lora)) and len(run_of_it.history.losses) == 4
    assert [sorted(asked) for asked in reward.asked] == [["a", "a", "b", "b"]] * 2


@pytest.mark.parametrize("objective", [NFT, AWM, PPO, DRAFT], ids=lambda o: o["objective"])
def test_a_constant_reward_changes_no_bit(kept: FeedbackStore, objective: dict[str, Any]) -> None:
    """The up matrices stay exactly 0 and the down ones as the seed made them, after four updates as after one."""
    reward = Constant()
    reward.differentiable = objective is DRAFT
    if objective is DRAFT:
        reward.score = lambda images, prompts, embed: 0.0 * images.sum((1, 2, 3)) + 0.3  # type: ignore[method-assign]
    lora = run(tiny_models.sd15(), reward, objective=objective).args[0]
    assert not moved(lora)
    again = run(tiny_models.sd15(), reward, objective=objective, epochs=1, updates=1, name="again").args[0]
    assert all(torch.equal(value, again[key]) for key, value in lora.items())


def check_ratio(policy: Any, taken: dict[str, Tensor], conds: list[Any], cfg: float) -> None:
    """The log-probabilities of the rollout are those that the policy in training gives the same steps."""
    from feedback_loop.nodes.policy import Guided

    for step in range(taken["sigma"].shape[1]):
        now = {name: value[:, step] for name, value in taken.items()}
        ones = torch.ones_like(now["sigma"])
        guided = [Guided(cond, conds[0], cfg) for cond in conds]
        batch = StepBatch(
            now["x"], now["x"], now["sigma"], ones, ones, guided, now["after"], now["keep"], now["drift"],
            now["spread"], now["log_prob"],
        )  # fmt: skip
        with torch.no_grad():
            d = policy.denoise(batch.x, batch.sigma, batch.cond)
        ratio = (step_log_prob(d, batch) - batch.log_prob).exp()
        assert torch.allclose(ratio, torch.ones_like(ratio), atol=2e-6)


@pytest.mark.parametrize("kind", ["sd15", "sd3", "flux"])
def test_ppos_ratio_is_one_on_what_the_sampler_took(kind: str) -> None:
    """CFG 3 of two prompts in one batch, through ComfyUI's sampling code and through the policy: far inside the clip
    of 1e-4."""
    with torch.inference_mode(), trainable(tiny_models.MODELS[kind](), rank=4, seed=0) as policy:
        conds = [tiny_models.conditioning(kind, seed) for seed in range(2)]
        how = how_to_sample(policy.model, 3.0, 4, "euler", "normal", (64, 64))
        rolled = roll(policy, conds, conds[0], [1, 2], how, record_steps(policy.process, range(0, 2), 1.0))
        assert rolled.taken["x"].shape[:2] == (2, 2)
        assert torch.equal(rolled.taken["after"][:, 0], rolled.taken["x"][:, 1])
        check_ratio(policy, rolled.taken, conds, 3.0)


def test_the_packs_step_is_comfyuis_ancestral_sampler_inside_the_window() -> None:
    """All steps in the window at eta 1: the latents of the stock euler_ancestral, picture by picture."""
    with torch.inference_mode(), trainable(tiny_models.sd15(), rank=4, seed=0) as policy:
        conds = [tiny_models.conditioning("sd15", seed) for seed in range(2)]
        how = how_to_sample(policy.model, 2.0, 5, "euler_ancestral", "normal", (64, 64))
        stock = sample(policy.model, conds, conds[0], [3, 4], 5, 2.0, "euler_ancestral", "normal", 64, 64)
        ours = roll(policy, conds, conds[0], [3, 4], how, record_steps(policy.process, range(0, 4), 1.0))
    assert torch.allclose(ours.latents, stock, atol=1e-4)


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "euler_ancestral", "dpmpp_sde"])
def test_any_sampler_rolls_out_and_tells_its_last_step(name: str) -> None:
    """Recording changes no picture; the last step's x at its sigma is what the sampler saw there."""
    with torch.inference_mode(), trainable(tiny_models.sd15(), rank=4, seed=0) as policy:
        conds = [tiny_models.conditioning("sd15", seed) for seed in range(2)]
        how = how_to_sample(policy.model, 2.0, 4, name, "normal", (64, 64))
        plain = roll(policy, conds, conds[0], [3, 4], how)
        recorded = roll(policy, conds, conds[0], [3, 4], how, record_last)
        assert torch.equal(recorded.latents, plain.latents)
        assert recorded.taken["sigma"].tolist() == pytest.approx([float(how.sigmas[-2])] * 2)
        if name == "euler":  # whose last step goes to D itself
            from feedback_loop.nodes.policy import Guided

            guided = [Guided(cond, conds[0], 2.0) for cond in conds]
            d = policy.denoise(recorded.taken["x"], recorded.taken["sigma"], guided)
            assert torch.allclose(policy.model.model.process_latent_out(d), plain.latents, atol=1e-4)


def test_a_connected_sampler_and_sigmas_stand_for_the_names() -> None:
    sampler, sigmas = comfy.samplers.sampler_object("heun"), torch.tensor([5.0, 2.0, 0.0])
    how = how_to_sample(tiny_models.sd15(), 1.0, 20, "euler", "normal", (64, 64), sampler, sigmas)
    assert how == How(1.0, sampler, sigmas, 64, 64)


def test_the_window_lies_in_the_first_half_and_moves() -> None:
    """20 steps: windows of 2 within 0..9; 2 steps leave one that has noise; a run of one step has none."""
    windows = {window_of(20, number, 2, seed=0) for number in range(200)}
    assert windows == {range(start, start + 2) for start in range(9)}
    assert window_of(2, 0, 2, seed=0) == range(0, 1)
    with pytest.raises(WrongConnectionError, match="two sampling steps"):
        window_of(1, 0, 2, seed=0)


@pytest.mark.usefixtures("every_step_shown")
def test_a_cancelled_run_goes_on_and_ends_as_an_undisturbed_one(kept: FeedbackStore, tmp_path: Path) -> None:
    """Cancelled in the middle of the second epoch of NFT, whose old view lags: bit for bit the same LoRA."""
    seen: list[int] = []

    def hook(value: int, total: int, preview: Any = None, **rest: Any) -> None:
        if total == 6:  # the bar of the training, not those of the rollouts
            seen.append(value)
            if value == 3:
                comfy.model_management.interrupt_current_processing(True)

    comfy.utils.set_progress_bar_global_hook(hook)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            run(tiny_models.sd15(), epochs=3)
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
        comfy.model_management.interrupt_current_processing(False)
    assert (tmp_path / "loras" / "mine_00001_stopped_at_3.safetensors").exists()
    reward = Brightness()
    resumed = run(tiny_models.sd15(), reward, epochs=3)
    assert len(reward.asked) == 1  # the third epoch alone: the second one's scores were kept
    alone = run(tiny_models.sd15(), epochs=3, name="alone")
    assert resumed.args[1] == alone.args[1]
    assert all(torch.equal(value, alone.args[0][key]) for key, value in resumed.args[0].items())


class Falls(Brightness):
    """A second reward that falls with every epoch, whatever the pictures are."""

    name = "quality"

    def score(self, images: Tensor, prompts: Any, embed: Any) -> Tensor:
        self.asked.append(list(prompts))
        return torch.linspace(0, 0.01, len(images)) - len(self.asked)


class Rises(Falls):
    name = "hacked"

    def score(self, images: Tensor, prompts: Any, embed: Any) -> Tensor:
        return super().score(images, prompts, embed) + 2.0 * len(self.asked)


STOPS = {"alarm": {"alarm": "stop", "second_reward": Falls(), "ratings": None}}
WARNS = {"alarm": {"alarm": "warn", "second_reward": Falls(), "ratings": None}}


@pytest.mark.parametrize(
    ("watching", "steps"),
    [
        (STOPS, 2),
        ({"second_reward": Falls()}, 2),  # by default, wherever something is connected
        (WARNS, 4),
        ({"alarm": {"alarm": "off"}, "second_reward": Falls()}, 4),
    ],
    ids=["stop", "connected", "warn", "off"],
)
def test_the_alarm_ends_the_run_and_hands_out_the_weights_of_before(
    kept: FeedbackStore, watching: dict[str, Any], steps: int
) -> None:
    """A clear fall rings in the third epoch; the best is the first, before any step, whose LoRA adds nothing. Where it
    only warns, training goes on."""
    output = run(tiny_models.sd15(), Rises(), epochs=4, updates=1, **watching)
    report = output.args[3]
    told = watching.get("alarm", {}).get("alarm") != "off"
    assert ("Over-optimisation" in report) is told and ("quality: " in report) is told
    assert len(output.args[1]["loss"]) == steps
    assert moved(output.args[0]) is (steps == 4)


def test_a_second_reward_of_the_same_name_has_one_of_its_own(kept: FeedbackStore, tmp_path: Path) -> None:
    """Called "reward", as the scores that are trained for are in an epoch's entry, it would stand in their place."""
    second = Falls()
    second.name = "reward"
    report = run(tiny_models.sd15(), Rises(), second_reward=second, **SHORT).args[3]
    epoch = Epoch.load(tmp_path / "runs" / "mine_00001" / "rollouts" / "epoch-00000-0.safetensors")
    assert max(epoch.watched["reward (2)"]) < 0 < min(epoch.rewards)
    assert "reward: 1" in report and "reward (2): -" in report
    assert reinforce_watch.own_name("reward", {"reward (2)": None}) == "reward (3)"


class FallsLater(Falls):
    """Level for three epochs."""

    def score(self, images: Tensor, prompts: Any, embed: Any) -> Tensor:
        return super().score(images, prompts, embed).clamp_max(-3.0)


@contextmanager
def dying_before_the_file(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs end as by Ctrl+C when they come to their LoRA's file, with all steps done and saved."""

    def dying(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training_run.Training, "save", dying)
        yield


SHORT = {"epochs": 1, "updates": 1}


def named(output: Any) -> str:
    return output.ui["lora"][0]


def test_a_run_goes_on_only_with_the_same_reward_and_sampler(
    kept: FeedbackStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another reward of the same name, and another option of the same sampler, begin new runs."""

    def sampler(noise: float) -> Any:
        return comfy.samplers.ksampler("euler", {"s_noise": noise})

    with dying_before_the_file(monkeypatch):
        run(tiny_models.sd15(), Brightness(), sampler=sampler(1.0), **SHORT)
    assert named(run(tiny_models.sd15(), Brightness(-1.0), sampler=sampler(1.0), **SHORT)) == "mine_00002.safetensors"
    assert named(run(tiny_models.sd15(), Brightness(), sampler=sampler(0.9), **SHORT)) == "mine_00003.safetensors"
    assert named(run(tiny_models.sd15(), Brightness(), sampler=sampler(1.0), **SHORT)) == "mine_00001.safetensors"


def test_a_run_goes_on_whatever_is_rated_elsewhere_meanwhile(
    kept: FeedbackStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ratings of another collection say nothing of those that are held out; one of theirs makes it another run."""
    rate(kept, (1, 5, 2, 4), "held out")
    with dying_before_the_file(monkeypatch):
        run(tiny_models.sd15(), alarm={"alarm": "stop", "ratings": kept.feedback("held out")}, **SHORT)
    rate(kept, (1, 5), "elsewhere")
    same = run(tiny_models.sd15(), alarm={"alarm": "stop", "ratings": kept.feedback("held out")}, **SHORT)
    assert named(same) == "mine_00001.safetensors"
    with dying_before_the_file(monkeypatch):
        run(tiny_models.sd15(), alarm={"alarm": "stop", "ratings": kept.feedback("held out")}, **SHORT)
    rate(kept, (3,), "held out")
    other = run(tiny_models.sd15(), alarm={"alarm": "stop", "ratings": kept.feedback("held out")}, **SHORT)
    assert named(other) == "mine_00003.safetensors"


def rate(kept: FeedbackStore, stars: Sequence[int], collection: str) -> None:
    """A picture of noise for each."""
    rng = np.random.default_rng(0)
    for star in stars:
        pixels = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        image = kept.add_image(pixels, Generation(prompt="a red circle"), collection)
        kept.add_rating(Rating(image, star, "ann"))


def test_a_run_that_the_alarm_ended_ends_again_when_it_goes_on(
    kept: FeedbackStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies between the alarm and the LoRA's file: run again, it takes no further step and hands out the
    weights of before, as it would have. Epochs 0 to 2 are level and each after lies lower, so that these are those with
    which epoch 2 began, after two steps of one an epoch."""
    alarm = {"alarm": "stop", "second_reward": FallsLater(), "ratings": None}
    with dying_before_the_file(monkeypatch):
        run(tiny_models.sd15(), Rises(), epochs=9, updates=1, alarm=alarm)
    steps = sorted((tmp_path / "runs" / "mine_00001").glob("step-*"))[-1]
    assert not list((tmp_path / "loras").iterdir())
    output = run(tiny_models.sd15(), Rises(), epochs=9, updates=1, alarm=alarm)
    assert output.ui["lora"] == ("mine_00001.safetensors",) and "Over-optimisation" in output.args[3]
    assert f"step-{len(output.args[1]['loss']):06}" == steps.name < "step-000008"
    assert "The LoRA is that of the beginning of epoch 2." in output.args[3]
    then = load_file(tmp_path / "runs" / "mine_00001" / "averages" / "epoch-00002.safetensors").values()
    weights = [v for key, v in output.args[0].items() if key.endswith((".lora_up.weight", ".lora_down.weight"))]
    assert len(weights) == len(then) and moved(output.args[0])
    assert all(any(v.shape == t.shape and torch.equal(v.cpu(), t) for t in then) for v in weights)


def test_a_run_that_patience_ended_ends_again_when_it_goes_on(
    kept: FeedbackStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dying_before_the_file(monkeypatch):
        run(tiny_models.sd15(), Falls(), epochs=8, updates=1, patience=2)
    output = run(tiny_models.sd15(), Falls(), epochs=8, updates=1, patience=2)
    assert len(output.args[1]["loss"]) == 2 and not moved(output.args[0])


def test_a_model_is_tried_also_where_the_first_epoch_teaches_nothing(kept: FeedbackStore, monkeypatch: Any) -> None:
    """Equal scores in the first epoch, other ones in the second: its batch, the first one, is the one that is tried."""
    tried: list[int] = []
    check = reinforce.check_gradients
    monkeypatch.setattr(
        reinforce, "check_gradients", lambda policy, batch: tried.append(len(batch)) or check(policy, batch)
    )

    class EqualAtFirst(Falls):
        def score(self, images: Tensor, prompts: Any, embed: Any) -> Tensor:
            return super().score(images, prompts, embed) * (len(self.asked) > 1)

    output = run(tiny_models.sd15(), EqualAtFirst())
    assert len(tried) == 1 and moved(output.args[0])


@pytest.mark.parametrize("objective", [NFT, AWM], ids=lambda o: o["objective"])
def test_objectives_with_an_old_view_train_in_half_precision(kept: FeedbackStore, objective: dict[str, Any]) -> None:
    output = run(tiny_models.sd15(), objective=objective, precision="bf16")
    assert moved(output.args[0]) and len(output.args[1]["loss"]) == 4


def test_the_old_view_draws_the_pictures_of_nft(
    kept: FeedbackStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An old view that never moves from the start draws the second epoch as if nothing had been learned meanwhile."""
    monkeypatch.setattr(reinforce_run, "old_decay", lambda step: 1.0)
    drawn = []
    for name, rate_ in (("fast", 1e-2), ("slow", 1e-7)):
        output = run(tiny_models.sd15(), name=name, learning_rate=rate_)
        drawn.append(Epoch.load(tmp_path / "runs" / f"{name}_00001" / "rollouts" / "epoch-00001-0.safetensors"))
        assert moved(output.args[0])
    assert torch.equal(drawn[0].tensors["latents"], drawn[1].tensors["latents"])


def test_patience_ends_a_run_that_gets_no_better(kept: FeedbackStore) -> None:
    """A reward that falls: the first epoch is the best, and after two more the run ends."""
    output = run(tiny_models.sd15(), Falls(), epochs=8, updates=1, patience=2)
    assert len(output.args[1]["loss"]) == 2
    assert "did not rise any more" in output.args[3]


def test_the_fit_to_ratings_is_watched(kept: FeedbackStore) -> None:
    rate(kept, (1, 5, 2, 4), "held out")
    alarm = {"alarm": "stop", "ratings": kept.feedback("held out")}
    report = run(tiny_models.sd15(), alarm=alarm, **SHORT).args[3]
    assert "fit to held-out ratings: 0 in the first epoch" in report
    assert "fit to what was liked in them: 0 in the first epoch" in report


def answer(kept: FeedbackStore, until: threading.Event) -> None:
    """A rater who gives every new picture its stars."""
    done: set[str] = set()
    while not until.is_set():
        for image_id in kept.ids_of("people"):
            if image_id not in done:
                kept.add_rating(Rating(image_id, 1 + len(done) % 5, "ann"))
                done.add(image_id)
        time.sleep(0.02)


def test_an_epoch_waits_for_people(kept: FeedbackStore) -> None:
    over = threading.Event()
    rater = threading.Thread(target=answer, args=(kept, over))
    rater.start()
    try:
        scored_by = {"scored_by": "people", "collection": "people", "hours": 1.0}
        output = run(tiny_models.sd15(), scored_by=scored_by)
    finally:
        over.set()
        rater.join()
    assert moved(output.args[0]) and len(kept.ids_of("people")) == 8


def test_pictures_that_nobody_rated_wait_for_the_next_run_and_are_not_made_twice(kept: FeedbackStore) -> None:
    scored_by = {"scored_by": "people", "collection": "people", "hours": 0.0}
    for _ in range(2):
        with pytest.raises(people.NobodyAnsweredError, match="0 of 4 pictures.*run this node again"):
            run(tiny_models.sd15(), scored_by=scored_by)
    assert len(kept.ids_of("people")) == 4


def never_alike(model: Any, x: Tensor, sigmas: Tensor, **options: Any) -> Tensor:
    """Euler's method with something added that no seed repeats, as rounding on a GPU is; counts its runs."""
    DRAWN.append(len(x))
    sample_euler = comfy.samplers.ksampler("euler").sampler_function
    return sample_euler(model, x, sigmas, **options) + 0.3 * torch.randn(
        x.shape, generator=torch.Generator().manual_seed(len(DRAWN))
    )


DRAWN: list[int] = []


def test_people_are_asked_the_same_pictures_again_though_the_sampler_would_draw_others(kept: FeedbackStore) -> None:
    """The process ends while an epoch waits for its ratings; they are given meanwhile, and are not lost."""
    sampler = comfy.samplers.KSAMPLER(never_alike)
    scored_by = {"scored_by": "people", "collection": "people", "hours": 0.0}
    DRAWN.clear()
    with pytest.raises(people.NobodyAnsweredError):
        run(tiny_models.sd15(), scored_by=scored_by, epochs=1, sampler=sampler)
    asked = kept.ids_of("people")
    for place, image_id in enumerate(asked):
        kept.add_rating(Rating(image_id, 1 + place, "ann"))
    before = len(DRAWN)
    output = run(tiny_models.sd15(), scored_by=scored_by, epochs=1, sampler=sampler)
    assert moved(output.args[0]) and kept.ids_of("people") == asked and len(DRAWN) == before


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"prompts": {"prompts": prompt_lists.LIST, "text": " \n"}}, "no prompts: write one a line"),
        ({"prompts": {"prompts": prompt_lists.FILE, "file": "../secret.txt"}}, "no ../secret.txt in the input"),
        ({"prompts": {"prompts": prompt_lists.RATED, "feedback": 1}}, "connect Collect feedback"),
        ({"name": "../evil"}, "is no file name"),
        ({"objective": DRAFT, "reward": Constant()}, "has no gradient.*choose NFT, AWM or PPO"),
        ({"objective": PPO, "sampling_steps": 1}, "two sampling steps"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(kept: FeedbackStore, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        run(tiny_models.sd15(), changes.pop("reward", None), **changes)


def test_ppo_refuses_a_model_whose_guidance_is_changed(kept: FeedbackStore) -> None:
    model = tiny_models.sd15()
    model.set_model_sampler_post_cfg_function(lambda args: args["denoised"])
    with pytest.raises(WrongConnectionError, match="connect the plain model, or choose NFT or AWM"):
        run(model, objective=PPO)


def test_prompts_come_from_a_file_in_the_input_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path))
    (tmp_path / "mine.txt").write_text("one\n\ntwo\none\n", encoding="utf-8")
    assert prompt_lists.text_files() == ["mine.txt"]
    assert prompt_lists.prompts_of({"prompts": prompt_lists.FILE, "file": "mine.txt"}) == ["one", "two"]
