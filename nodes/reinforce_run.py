"""What FeedbackReinforceLora does: roll out, have it scored, train on it, and watch for a hacked reward."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ..feedback.rewards.base import Reward
from ..training.advantages import advantages
from ..training.alarm import Measured, below_first, best_epoch, over_optimised
from ..training.averages import Averages
from ..training.following import fingerprint
from ..training.objectives import Batch, Objective
from ..training.online import Epoch, OnlineSource, old_decay, prompts_of_epoch, seeds_of_epoch
from ..training.policy_gradient import Awm, Draft, Ppo, StepBatch
from ..training.sources import Example, ForwardSource
from ..training.validation import RatingFit
from .decoder import decoder_of
from .denoiser import WrongConnectionError, normal_reward, patchers_of
from .learning import measured
from .policy import Guided, Policy
from .rollouts import How, Rolled, check_plain_guidance, record_last, record_steps, roll, window_of
from .sampling import Conditioning, decode
from .training_run import Training

Scorer = Callable[[Tensor, Sequence[str], str], list[float]]
"""Pictures (N, 3, H, W), their prompts, and a mark of these very pictures -> a score each."""

REWARD_NAME = "reward"
"""What the scores that are trained for are called in an epoch's entry; of no watched score."""

LEVELS = 4
"""Noise levels at which a picture is seen in an update on the forward process."""

START = (
    "The LoRA is that of the start, with which the model draws as it did before: of no later epoch can it be said that "
    "the reward rose and nothing that is watched had begun to fall."
)


@dataclass
class Online:
    """One run. prompts: to choose from; score: by a reward or by people; watched: scores that are only looked at, each
    of the pictures or, in `fits`, of the weights."""

    training: Training
    vae: Any
    conds: Mapping[str, Conditioning]
    prompts: Sequence[str]
    how: How
    score: Scorer
    prompts_per_epoch: int
    group_size: int
    batch: int
    seed: int
    win_rate: bool = False
    eta: float = 1.0
    window: int = 2
    patience: int = 0
    stop_at_alarm: bool = True
    watched: Mapping[str, Scorer] = field(default_factory=dict)
    fits: Mapping[str, RatingFit] = field(default_factory=dict)

    @property
    def policy(self) -> Policy:
        return self.training.policy

    def source(self, objective: Objective, updates: int) -> OnlineSource:
        """Raises WrongConnectionError for a MODEL that the objective cannot learn from."""
        if isinstance(objective, (Ppo, Draft)):
            check_plain_guidance(self.policy.model)
        follower = self.training.follower
        # the last epoch's weights, whose scores nobody has seen, unless there is cause to distrust them: the best of
        # many epochs is the luckiest one as well
        follower.prefer_best = False
        return OnlineSource(
            updates, lambda number: self.roll(number, objective), self.advantages_of(objective),
            lambda epoch, advantage: self.build(objective, epoch, advantage), follower.run.folder / "rollouts",
            lambda step: self.follow_old(objective, step), self.judge, lambda: follower.progress.setbacks, self.scored,
            fingerprint(follower.settings),
        )  # fmt: skip

    @torch.no_grad()
    def roll(self, number: int, objective: Objective) -> Epoch:
        """The pictures of an epoch, without scores: by the old view where the objective compares with it, as NFT does,
        whose optimum is derived for pictures of that view; else by the weights as they are."""
        prompts = prompts_of_epoch(self.prompts, number, self.prompts_per_epoch, self.group_size, self.seed)
        seeds = seeds_of_epoch(number, len(prompts), self.seed)
        rolled = self._rolled(prompts, seeds, number, objective)
        latents = self.policy.model.model.process_latent_in(rolled.latents.float())
        return Epoch(number, prompts, [], {"latents": latents} | rolled.taken)

    @torch.no_grad()
    def scored(self, epoch: Epoch) -> Epoch:
        """The epoch with everybody's scores."""
        latents = epoch.tensors["latents"].cpu()
        images = decode(self.vae, self.policy.model.model.process_latent_out(latents))
        comfy.model_management.throw_exception_if_processing_interrupted()
        drawn = f"{epoch.number:05}-{mark_of(latents)}"
        watched = {name: score(images, epoch.prompts, drawn) for name, score in self.watched.items()}
        watched |= {name: fit() for name, fit in self.fits.items()}
        return replace(epoch, rewards=self.score(images, epoch.prompts, drawn), watched=watched)

    def _rolled(self, prompts: Sequence[str], seeds: Sequence[int], number: int, objective: Objective) -> Rolled:
        recorder = None
        if isinstance(objective, Ppo):
            steps = window_of(len(self.how.sigmas) - 1, number, self.window, self.seed)
            recorder = record_steps(self.policy.process, steps, self.eta)
        elif isinstance(objective, Draft):
            recorder = record_last
        with self.policy.view("old" if "old" in objective.views else "theta"):
            return roll(self.policy, [self.conds[p] for p in prompts], self.conds[""], seeds, self.how, recorder)

    def advantages_of(self, objective: Objective) -> Callable[[Epoch], Tensor]:
        if isinstance(objective, Draft):  # follows the reward itself, whatever the others get
            return lambda epoch: torch.ones(len(epoch.rewards))
        return lambda epoch: advantages(torch.tensor(epoch.rewards), epoch.prompts, self.win_rate)

    def follow_old(self, objective: Objective, step: int) -> None:
        """The view that makes the next pictures: a lagging one for NFT, the model as it is for AWM."""
        if "old" in objective.views:
            self.policy.adapters.follow(0.0 if isinstance(objective, Awm) else old_decay(step), step)

    def build(self, objective: Objective, epoch: Epoch, advantage: Tensor) -> Callable[[int], Batch]:
        """The updates of an epoch; pictures whose advantage is 0 are left out."""
        rows = advantage.nonzero().flatten()
        kept = rows.tolist()
        labels = objective.labels(advantage)
        if isinstance(objective, Ppo):
            return self._steps(epoch, labels, kept)
        if isinstance(objective, Draft):
            return self._last_steps(epoch)
        latents, prompts = epoch.tensors["latents"], list(epoch.prompts)
        examples = [Example(self._on(latents[i]), prompts[i], float(labels[i])) for i in kept]
        size, seed = min(self.batch, len(examples)), self.seed + 7919 * (epoch.number + 1)
        policy = self.policy
        return ForwardSource(
            examples, self.conds, policy.process, policy.sigma_at, size, seed, dropout=0.0, levels=LEVELS
        ).batch_at

    def _steps(self, epoch: Epoch, labels: Tensor, rows: Sequence[int]) -> Callable[[int], StepBatch]:
        """Every step of the window of every picture once, in random order, before any comes twice."""
        width = epoch.tensors["sigma"].shape[1]
        places = [(row, step) for row in rows for step in range(width)]
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch.number) % 2**63)
        order = torch.randperm(len(places), generator=generator).tolist()

        def batch_at(update: int) -> StepBatch:
            size = min(self.batch, len(places))
            chosen = [places[order[(update * size + k) % len(places)]] for k in range(size)]
            row, step = (torch.tensor(column) for column in zip(*chosen, strict=True))
            taken = {name: self._on(value[row, step]) for name, value in epoch.tensors.items() if name != "latents"}
            conds = self._guided(epoch, row)
            return StepBatch(
                x0=self._on(epoch.tensors["latents"][row]), x=taken["x"], sigma=taken["sigma"],
                weight=self.policy.process.kappa(taken["sigma"]), label=self._on(labels[row]), cond=conds,
                after=taken["after"], keep=taken["keep"], drift=taken["drift"], spread=taken["spread"],
                log_prob=taken["log_prob"],
            )  # fmt: skip

        return batch_at

    def _last_steps(self, epoch: Epoch) -> Callable[[int], Batch]:
        count = len(epoch.prompts)
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch.number) % 2**63)
        order = torch.randperm(count, generator=generator).tolist()

        def batch_at(update: int) -> Batch:
            size = min(self.batch, count)
            rows = torch.tensor([order[(update * size + k) % count] for k in range(size)])
            x, sigma = (self._on(epoch.tensors[name][rows]) for name in ("x", "sigma"))
            conds, weight = self._guided(epoch, rows), self.policy.process.kappa(sigma)
            return Batch(self._on(epoch.tensors["latents"][rows]), x, sigma, weight, torch.ones_like(sigma), conds)

        return batch_at

    def _guided(self, epoch: Epoch, rows: Tensor) -> list[Guided]:
        prompts = [epoch.prompts[int(i)] for i in rows]
        return [Guided(self.conds[prompt], self.conds[""], self.how.cfg, prompt) for prompt in prompts]

    def _on(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.policy.device)

    def judge(self, step: int, epoch: Epoch) -> str:
        """Notes an epoch once, with the weights as they are; says why the run has to end.

        Pictures of NFT are by the view that lags, up to half of the way behind the weights that are kept.
        """
        follower, history = self.training.follower, self.training.history
        if seen := next((one for one in history.epochs if one["number"] == epoch.number), None):
            return self._ended_by(seen.get("why", ""))
        if self._looks_back():
            self.averages().keep(epoch.number, self.training.progress.average.values)
        told = {REWARD_NAME: epoch.rewards} | dict(epoch.watched)
        means = {n: self._measured(n, values, epoch.prompts) for n, values in told.items()}
        entry: dict[str, Any] = {"number": epoch.number, "step": step}
        history.epochs.append(entry | {name: [m.mean, m.error] for name, m in means.items()})
        why = self._alarm(epoch.number)
        if follower.judge(step, self._badness(), self.patience):
            history.events.append(f"epoch {epoch.number}: stopped, the reward did not rise any more")
            why = why or self._noted("the reward did not rise any more")
        return self._ended_by(why)

    def _measured(self, name: str, values: Sequence[float], prompts: Sequence[str]) -> Measured:
        if name not in self.fits:
            return Measured.of(values, prompts)
        found = Measured.of(values)
        return Measured(found.mean, max(found.error, self.fits[name].least_error))

    def averages(self) -> Averages:
        follower = self.training.follower
        return Averages(follower.run.folder / "averages", fingerprint(follower.settings))

    def _looks_back(self) -> bool:
        """Whether the weights of an earlier epoch may be handed out for what else was known of its pictures."""
        return bool(self.watched or self.fits) and (self.stop_at_alarm or self.patience > 0)

    def _series(self) -> tuple[list[Measured], dict[str, list[Measured]]]:
        """(rewards, the watched scores by name) of all epochs so far."""
        epochs = self.training.history.epochs
        watched = {name: [Measured(*one[name]) for one in epochs] for name in (*self.watched, *self.fits)}
        return [Measured(*one[REWARD_NAME]) for one in epochs], watched

    def _alarm(self, number: int) -> str:
        alarm = over_optimised(*self._series())
        if alarm:
            self.training.history.events.append(f"epoch {number}: {alarm}")
        return self._noted(alarm) if self.stop_at_alarm else ""

    def _noted(self, why: str) -> str:
        """Why the run ends, kept for one that is put down before its LoRA is saved: it has to end when it goes on."""
        if why:
            self.training.history.epochs[-1]["why"] = why
        return why

    def _ended_by(self, why: str) -> str:
        self.training.follower.prefer_best = bool(why)
        if why and self._looks_back():
            self._go_back()
        return why

    def _go_back(self) -> None:
        """Hands out the weights with which the best epoch began that no watched score speaks against."""
        found = self.averages().last_until(best_epoch(*self._series()))
        if found is None:  # somebody has deleted them: then those with the best reward that was believed
            return
        number, values = found
        self.training.follower.chosen = [value.to(self.policy.device) for value in values]
        self.training.tell(START if number == 0 else f"The LoRA is that of the beginning of epoch {number}.")

    def _badness(self) -> float:
        """Minus the reward, where nothing that is watched lies surely below where it began; else very bad."""
        rewards, watched = self._series()
        fallen = any(below_first(values, len(values) - 1) for values in watched.values())
        return 1e9 if fallen else -rewards[-1].mean


def by_reward(reward: Reward, images: Tensor, prompts: Sequence[str], drawn: str) -> list[float]:
    return measured(reward, images, prompts)


def mark_of(latents: Tensor) -> str:
    """The same for the same latents, bit for bit."""
    return hashlib.sha256(latents.float().contiguous().numpy().tobytes()).hexdigest()[:16]


def differentiable_score(policy: Policy, vae: Any, reward: Reward) -> Callable[[Tensor, Batch], Tensor]:
    """The reward of the decoded estimates, for DRaFT. Raises WrongConnectionError for one without a gradient."""
    if not reward.differentiable:
        raise WrongConnectionError(
            f"The reward '{reward.name}' has no gradient, which DRaFT follows: choose NFT, AWM or PPO."
        )
    decoder, normal = decoder_of(vae, policy.model, "full"), normal_reward(reward)

    def score(denoised: Tensor, batch: Batch) -> Tensor:
        decoder.load(denoised.shape)
        comfy.model_management.load_models_gpu(patchers_of(reward))
        images = decoder(denoised).to(comfy.model_management.vae_device())
        return normal()(images, [cond.prompt for cond in batch.cond]).to(denoised.device)

    return score
