"""The losses of PPO and DPO against the same done by diffusers: its UNet with the same weights, and its DDIMScheduler.

A tiny SD1.5 of ComfyUI's classes is trained on, and its twin is diffusers' own UNet2DConditionModel with the same
weights in another layout. The right sides are what TRL's DDPOTrainer (0.23.1, its last release) and the training
scripts of Diffusion-DPO compute, in x of variance one and of the predicted noise, not in our x and D.
"""

from __future__ import annotations

import math
from typing import Any

import comfy.utils
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from feedback_loop.diffusion.stochastic import ancestral_step
from feedback_loop.nodes.policy import Guided, Policy, trainable
from feedback_loop.tests.nodes import tiny_models
from feedback_loop.training.loop import estimates
from feedback_loop.training.low_rank import LowRank
from feedback_loop.training.objectives import Batch
from feedback_loop.training.policy_gradient import Ppo, StepBatch, step_log_prob
from feedback_loop.training.preferences import Dpo

from .test_export_lora import diffusers_unet
from .test_policy import push

STEPS, CFG, PICTURES = 10, 3.0, 4
CLIP = 1e-4


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def twin(model: Any, added: dict[str, Any] | None = None) -> Any:
    """diffusers' UNet with the MODEL's weights, and what a LoRA adds to them."""
    weights = {name: value.clone() for name, value in model.model.diffusion_model.state_dict().items()}
    for path, part in (added or {}).items():
        weights[f"{path}.weight"] += part.added()
    names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    network = diffusers_unet(sdxl=False)
    theirs = {theirs: weights[ours] for theirs, ours in names.items() if ours in weights}
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    network.load_state_dict({name: value.reshape(shapes[name]) for name, value in theirs.items() if name in shapes})
    return network.eval()


def scheduler() -> Any:
    """As a stock SD1.5 pipeline has it, with the steps of a run of STEPS."""
    from diffusers import DDIMScheduler

    made = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    made.set_timesteps(STEPS)
    return made


def guided_noise(network: Any, x: Tensor, t: Tensor, conds: list[Any], negative: Any) -> Tensor:
    """What DDPOTrainer predicts: text and empty text in one batch, then CFG."""
    words = torch.cat([negative[0][0]] * len(conds) + [cond[0][0] for cond in conds])
    without, with_text = network(torch.cat([x, x]), t, words, return_dict=False)[0].chunk(2)
    return without + CFG * (with_text - without)


class TheirStep:
    """One step of TRL: its draw, and the log-probability of it, the mean over dimensions."""

    def __init__(self, made: Any, index: int) -> None:
        self.scheduler, self.t = made, made.timesteps[index]
        before = self.t - made.config.num_train_timesteps // STEPS
        self.spread = made._get_variance(self.t, before).sqrt()
        self.scale, self.scale_after = (made.alphas_cumprod[t].sqrt() for t in (self.t, before))
        self.sigma, self.sigma_after = ((1 - s**2).sqrt() / s for s in (self.scale, self.scale_after))

    def take(self, noise: Tensor, x: Tensor, drawn: Tensor) -> Tensor:
        return self.scheduler.step(noise, self.t, x, eta=1.0, variance_noise=drawn).prev_sample

    def log_prob(self, noise: Tensor, x: Tensor, after: Tensor) -> Tensor:
        off = after - self.take(noise, x, torch.zeros_like(x))
        density = -off.square() / (2 * self.spread**2) - self.spread.log() - math.log(math.sqrt(2 * math.pi))
        return density.mean(tuple(range(1, density.ndim)))


def our_step(policy: Policy, step: TheirStep, x: Tensor, after: Tensor, conds: list[Any], negative: Any) -> StepBatch:
    """The same step as ours records it: x with the picture's own scale, by the weights as they are."""
    ones = torch.ones(len(x))
    own = ancestral_step(policy.process, step.sigma, step.sigma_after, eta=1.0)
    numbers = [value * ones for value in (own.keep, own.pull, own.noise)]
    guided = [Guided(cond, negative, CFG) for cond in conds]
    x, after = x / step.scale, after / step.scale_after
    draft = StepBatch(x, x, step.sigma * ones, ones, ones, guided, after, *numbers, ones)
    with torch.no_grad():
        log_prob = step_log_prob(policy.denoise(x, draft.sigma, guided), draft)
    return StepBatch(**draft.__dict__ | {"log_prob": log_prob})


@pytest.fixture(scope="module")
def negative() -> Any:
    return tiny_models.conditioning("sd15", 9)


@pytest.mark.parametrize("index", [2, 7])
def test_ppos_step_density_and_ratio_are_those_of_ddpo(index: int, negative: Any) -> None:
    """The step from the same noise, its log-probability but for the change of scale, and the ratio of the trained to
    the old weights, far from 1 at a step whose clip it crosses on either side."""
    model, step = tiny_models.sd15(), TheirStep(scheduler(), index)
    conds = [tiny_models.conditioning("sd15", seed) for seed in range(PICTURES)]
    x, drawn = (random(PICTURES, 4, 8, 8, seed=seed) for seed in (1, 2))
    with trainable(model, rank=4, seed=0) as policy, torch.no_grad():
        before = guided_noise(twin(model), x, step.t, conds, negative)
        after = step.take(before, x, drawn)
        batch = our_step(policy, step, x, after, conds, negative)
        own = ancestral_step(policy.process, step.sigma, step.sigma_after, eta=1.0)
        taken = own.take(batch.x, policy.denoise(batch.x, batch.sigma, batch.cond), drawn)
        assert torch.allclose(taken * step.scale_after, after, atol=2e-5)
        old = step.log_prob(before, x, after)
        assert torch.allclose(batch.log_prob - step.scale_after.log(), old, atol=1e-5)
        push(policy)
        now = step.log_prob(guided_noise(twin(model, policy.adapters.low_rank()), x, step.t, conds, negative), x, after)
        theirs = (now - old).exp()
        seen = step_log_prob(policy.denoise(batch.x, batch.sigma, batch.cond), batch)
        assert torch.allclose((seen - batch.log_prob).exp(), theirs, rtol=2e-5)
        assert ((theirs - 1).abs() > 10 * CLIP).all()
        advantage = torch.tensor([1.5, -0.5, 2.0, -1.0])
        unclipped, clipped = -advantage * theirs, -advantage * theirs.clamp(1 - CLIP, 1 + CLIP)
        ours = Ppo(CLIP, kl=0.0).losses(estimates(policy, Ppo(kl=0.0), batch), _labelled(batch, advantage))
        assert torch.allclose(ours, torch.maximum(unclipped, clipped), rtol=2e-5)


def _labelled(batch: StepBatch, advantage: Tensor) -> StepBatch:
    return StepBatch(**batch.__dict__ | {"label": advantage})


def published_dpo(network: Any, base: Any, x0: Tensor, noise: Tensor, t: Tensor, words: Tensor, beta: float) -> Tensor:
    """Diffusion-DPO's training script: the chosen before the rejected, the errors of the predicted noise; its mean."""
    from diffusers import DDPMScheduler

    made: Any = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    noisy, target = made.add_noise(x0, noise, t), noise

    def difference(one: Any) -> Tensor:
        error = F.mse_loss(one(noisy, t, words, return_dict=False)[0], target, reduction="none").mean((1, 2, 3))
        chosen, rejected = error.chunk(2)
        return chosen - rejected

    with torch.no_grad():
        reference = difference(base)
    return -F.logsigmoid(-beta * (difference(network) - reference)).mean()


def test_dpos_loss_and_gradient_are_those_of_the_published_script(negative: Any) -> None:
    """Its beta of 2500 without the half is our 5000. The gradient of our LoRA's `up` is that of the whole weight in
    diffusers' network, G, times `down`: scale * G @ down^T."""
    model, pairs = tiny_models.sd15(), PICTURES // 2
    chosen, rejected = (random(pairs, 4, 8, 8, seed=seed) for seed in (3, 4))
    noise, t = random(pairs, 4, 8, 8, seed=5), torch.tensor([120, 700])
    conds = [tiny_models.conditioning("sd15", seed) for seed in range(pairs)]
    with trainable(model, rank=4, seed=0) as policy:
        push(policy)
        layers = policy.adapters.low_rank()
        network = twin(model, layers)
        words = torch.cat([cond[0][0] for cond in conds] * 2)
        theirs = published_dpo(
            network, twin(model), torch.cat([chosen, rejected]), noise.repeat(2, 1, 1, 1), t.repeat(2), words, 2500.0
        )
        sigma = policy.inner.model_sampling.sigmas[t].repeat_interleave(2)
        x0 = torch.stack([chosen, rejected], 1).flatten(0, 1)
        x = policy.process.noise(x0, noise.repeat_interleave(2, 0), sigma)
        label, told = torch.tensor([1.0, -1.0] * pairs), [cond for cond in conds for _ in range(2)]
        batch = Batch(x0, x, sigma, policy.process.kappa(sigma), label, told)
        objective = Dpo(5000.0, safe=False)
        ours = objective.losses(estimates(policy, objective, batch), batch).mean()
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-4) and abs(ours.item() - math.log(2)) > 0.05
        theirs.backward()
        ours.backward()
        check_gradients(policy, model, network, layers)


def check_gradients(policy: Policy, model: Any, network: Any, layers: dict[str, Any]) -> None:
    """Of every linear layer's `up`, all together: some are 0 but for rounding, since a norm follows."""
    names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    names = {ours.removesuffix(".weight"): theirs.removesuffix(".weight") for theirs, ours in names.items()}
    found, expected = [], []
    for path, layer in zip(layers, policy.adapters.layers, strict=True):
        part = layers[path]
        if not isinstance(part, LowRank) or part.up.ndim != 2:
            continue
        whole = network.get_submodule(names[path]).weight.grad.flatten(1)
        expected.append((part.alpha / part.down.shape[0] * whole @ part.down.flatten(1).T).flatten())
        found.append(layer.lora_B["theta"].weight.grad.flatten())
    assert len(found) > 60
    off = torch.cat(found) - torch.cat(expected)
    assert off.norm() < 1e-3 * torch.cat(expected).norm()
