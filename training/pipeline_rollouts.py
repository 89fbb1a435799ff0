"""A pipeline that trains on what it draws itself: each prompt's pictures by one process, the scores known to all."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..feedback.rewards.base import Reward, RewardError
from .adapters import Adapters
from .advantages import advantages
from .alarm import Measured
from .following import Follower, fingerprint
from .objectives import Batch, Objective
from .online import Epoch, OnlineSource, old_decay, prompts_of_epoch, seeds_of_epoch
from .pipeline_policy import PipelinePolicy, Told
from .policy_gradient import Awm
from .sources import Example, ForwardSource
from .team import Team

LEVELS = 4
"""Noise levels at which a picture is seen in an update, as in FeedbackReinforceLora."""


@dataclass(frozen=True)
class Drawing:
    """How pictures are drawn: `count` of the prompts an epoch, `group` pictures of each; width, height in pixels."""

    prompts: Sequence[str]
    count: int
    group: int
    steps: int
    cfg: float
    width: int
    height: int


class Online:
    """What happens in an epoch of training online. conds: what `encode_text` gave for each prompt and for ""."""

    def __init__(
        self,
        team: Team,
        policy: PipelinePolicy,
        conds: Mapping[str, Told],
        drawing: Drawing,
        reward: Reward,
        batch: int,
        seed: int,
        follower: Follower,
        say: Callable[[str], None],
    ) -> None:
        self.team, self.policy, self.conds, self.drawing, self.reward = team, policy, conds, drawing, reward
        self.batch, self.seed, self.follower, self.say = batch, seed, follower, say

    def source(self, objective: Objective, updates: int) -> SharedOnlineSource:
        follower = self.follower
        made = SharedOnlineSource(
            updates, self.roll, lambda epoch: advantages(torch.tensor(epoch.rewards), epoch.prompts),
            lambda epoch, advantage: self.build(objective, epoch, advantage), follower.run.folder / "rollouts",
            lambda step: self.follow_old(objective, step), self.note, lambda: follower.progress.setbacks,
        )  # fmt: skip
        made.team, made.mark = self.team, fingerprint(follower.settings)
        return made

    def roll(self, number: int) -> Epoch:
        """The pictures of an epoch, scored. A prompt's group is one batch: who draws it changes no bit of it."""
        how = self.drawing
        prompts = prompts_of_epoch(how.prompts, number, how.count, how.group, self.seed)
        seeds = seeds_of_epoch(number, len(prompts), self.seed)

        trouble: list[str] = []

        def group(index: int) -> dict[str, Tensor] | None:
            rows = slice(index * how.group, (index + 1) * how.group)
            with self.policy.view("old"):  # which both objectives compare with
                latents = draw(self.policy, self.conds[prompts[rows.start]], self.conds[""], seeds[rows], how)
            images = self.policy.pipeline.decode(latents)
            try:
                scores = self._scores(images, prompts[rows])
            except RewardError as error:
                trouble.append(str(error))
                return None
            return {"latents": latents, "rewards": scores}

        made = [one for one in self.team.shared(how.count, ("latents", "rewards"), group) if one is not None]
        # one of them alone may have met it, and the others would wait for it for ever
        if why := self.team.told(trouble[0] if trouble else ""):
            raise RewardError(f"Drawing {number + 1}: {why}")
        rewards = torch.cat([one["rewards"] for one in made]).tolist()
        return Epoch(number, prompts, rewards, {"latents": torch.cat([one["latents"] for one in made])})

    @torch.no_grad()
    def _scores(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Raises RewardError for one that is no number, and says whose fault it is."""
        scores = self.reward(images, prompts)
        for image, prompt, score in zip(images, prompts, scores.tolist(), strict=True):
            if math.isfinite(score):
                continue
            if not bool(image.isfinite().all()):
                raise RewardError(
                    f"a picture of '{prompt[:80]}' came out with values that are no numbers, so that it can't be "
                    "scored. Draw with --precision fp32, or with a lower --cfg, under another --out."
                )
            raise RewardError(
                f"the reward '{self.reward.name}' gives {score:g} for a picture of '{prompt[:80]}', and nothing can be "
                "learned from that. Score such pictures with it in ComfyUI to see why, and give another --reward, or "
                "leave the prompt out of --prompts; under another --out."
            )
        return scores

    def build(self, objective: Objective, epoch: Epoch, advantage: Tensor) -> Callable[[int], Batch]:
        """The updates of an epoch; pictures whose advantage is 0 are left out."""
        policy, prompts, labels = self.policy, list(epoch.prompts), objective.labels(advantage).tolist()
        kept = advantage.nonzero().flatten().tolist()
        latents = epoch.tensors["latents"].to(policy.device)
        examples = [Example(latents[i], prompts[i], labels[i]) for i in kept]
        seed = self.seed + 7919 * (epoch.number + 1)
        return ForwardSource(
            examples, self.conds, policy.process, policy.sigma_at, min(self.batch, len(examples)), seed, dropout=0.0,
            levels=LEVELS,
        ).batch_at  # fmt: skip

    def follow_old(self, objective: Objective, step: int) -> None:
        adapters: Adapters = self.policy.adapters
        if "old" in objective.views:
            adapters.follow(0.0 if isinstance(objective, Awm) else old_decay(step), step)

    def note(self, step: int, epoch: Epoch) -> str:
        """Writes down an epoch's reward, once; never ends the run."""
        seen = self.follower.history.epochs
        if not any(one["number"] == epoch.number for one in seen):
            found = Measured.of(epoch.rewards)
            seen.append({"number": epoch.number, "step": step, "reward": [found.mean, found.error]})
            self.say(f"drawing {epoch.number + 1}: mean reward {found.mean:.4g} (standard error {found.error:.2g})")
        return ""


class SharedOnlineSource(OnlineSource):
    """An OnlineSource of several processes, of which the first one keeps the epochs."""

    team: Team

    def _epoch(self, number: int) -> Epoch:
        path = self.path(number)
        if self.team.agreed(self.team.first and self._kept(path) is not None):
            return Epoch.load(path)
        epoch = replace(self.roll(number), mark=self.mark)
        epoch.check()
        if self.team.first:
            epoch.save(path)
        return epoch


@torch.no_grad()
def draw(policy: PipelinePolicy, cond: Told, empty: Told, seeds: Sequence[int], how: Drawing) -> Tensor:
    """A latent (N, C, h, w) in model space for each seed of one prompt, by Euler's method with plain CFG.

    A seed gives the same noise on every device.
    """
    pipeline = policy.pipeline
    channels, factor = pipeline.network.config.in_channels, 2 ** (len(pipeline.pipe.vae.config.block_out_channels) - 1)
    shape = (channels, how.height // factor, how.width // factor)
    noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    sigmas = pipeline.noise.sigmas(how.steps).to(policy.device)
    x = noise.to(policy.device) * policy.process.s(sigmas[0])
    for sigma, after in zip(sigmas[:-1], sigmas[1:], strict=True):
        levels = sigma.expand(len(seeds))
        denoised = policy.denoise(x, levels, [cond] * len(seeds))
        if how.cfg != 1:
            plain = policy.denoise(x, levels, [empty] * len(seeds))
            denoised = plain + how.cfg * (denoised - plain)
        x = x + (x - denoised) / sigma * (after - sigma)
    return x
