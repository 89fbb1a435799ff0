"""What FeedbackReinforceLora only looks at: second rewards, and ratings that the reward was not learned from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ..feedback.records import Feedback
from ..feedback.rewards.base import Reward
from ..training.pictures import Pictures
from ..training.sources import Example, ForwardSource
from ..training.validation import LikedFit, RatingFit
from .compat import store
from .examples import encode_pictures, rated_pictures
from .learning import prepared
from .policy import Policy
from .reinforce_inputs import AUTO, NO_ALARM, STOP
from .reinforce_run import REWARD_NAME, Scorer, by_reward
from .training import digest

FIT = "fit to held-out ratings"
LIKED = "fit to what was liked in them"
SEEN = 64
"""Held-out ratings that are looked at in each epoch, at most."""


@dataclass(frozen=True)
class Watch:
    """rewards, ratings: what is looked at; stops: whether the alarm ends the run, or is only told."""

    rewards: tuple[Reward, ...] = ()
    ratings: Feedback | None = None
    stops: bool = True


def watch_of(given: dict[str, Any]) -> Watch:
    """What is connected to the node itself or to the alarm's own choice; nothing where the alarm is off."""
    chosen: dict[str, Any] = given.get("alarm") or {"alarm": AUTO}
    if chosen["alarm"] == NO_ALARM:
        return Watch()
    rewards = [one for one in (chosen.get("second_reward"), given.get("second_reward")) if one is not None]
    ratings = [one for one in (chosen.get("ratings"), given.get("ratings")) if isinstance(one, Feedback)]
    return Watch(tuple(rewards), ratings[0] if ratings else None, chosen["alarm"] in (AUTO, STOP))


def watched_by(watch: Watch) -> dict[str, Scorer]:
    """Each second reward under a name of its own, which is not that of the reward that is trained for."""
    found: dict[str, Scorer] = {}
    for reward in watch.rewards:
        second = prepared(reward)
        found[own_name(second.name, found)] = partial(by_reward, second)
    return found


def own_name(name: str, taken: Any) -> str:
    """The name, or the same with a number, where the reward itself, an epoch's own entries or another are called so."""
    reserved = {REWARD_NAME, "number", "step", "why", FIT, LIKED, *taken}
    names = [name, *(f"{name} ({count})" for count in range(2, len(reserved) + 3))]
    return next(one for one in names if one not in reserved)


def held_out(watch: Watch) -> Pictures | None:
    """The first of the ratings that are only looked at, where some are connected."""
    if watch.ratings is None:
        return None
    rated = rated_pictures(store(), watch.ratings)
    return Pictures(rated.images[:SEEN], rated.prompts[:SEEN], rated.scores[:SEEN])


def watching(given: dict[str, Any], held: Pictures | None) -> dict[str, Any]:
    """The alarm's settings with the ratings themselves: what else people say meanwhile makes no other run of it."""
    if held is None:
        return {}
    watch: dict[str, Any] = given.get("alarm") or {}
    own = {"ratings": digest([held])} if given.get("ratings") is not None else {}
    return {"alarm": watch | {"ratings": digest([held])}} | own


def fits_of(policy: Policy, vae: Any, conds: Any, held: Pictures | None, seed: int) -> dict[str, RatingFit]:
    if held is None:
        return {}
    with torch.no_grad():
        latents = encode_pictures(policy.model, vae, held.images)
    u = held.utilities().tolist()
    examples = [Example(*row) for row in zip(latents, held.prompts, u, strict=True)]
    source = ForwardSource(examples, conds, policy.process, policy.sigma_at, 8, seed)
    return {FIT: RatingFit(policy, source), LIKED: LikedFit(policy, source)}
