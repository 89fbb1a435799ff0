"""What a guidance node sees of its run, told to the pages while the run goes on, and how it ended."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..feedback.rewards.base import Reward
from ..guidance.watch import Look, Watch, curve, statistics
from .compat import tell_pages
from .learning import measured
from .live import quietly

EVENT = "feedback_loop.guidance"
SIDE = 128  # pixels of the preview, at most


@dataclass(eq=False)
class Sight:
    """Belongs to one guidance node. node: its execution id. plain: unsteered pictures (N,3,H,W) in 0..1. judge: a
    second reward, which steers nothing and at the end judges both. vae: decodes what is compared with plain pictures,
    as these were decoded; a decoder of half the size would show other detail."""

    node: str = ""
    plain: Tensor | None = None
    judge: Reward | None = None
    vae: Any = None
    watch: Watch = field(default_factory=Watch)
    _scores: list[Tensor] = field(default_factory=list)
    _images: list[Tensor] = field(default_factory=list)
    _room: Tensor | None = None

    def begin(self) -> None:
        """A run starts: what was seen of the one before is forgotten."""
        self.watch = Watch(None if self.plain is None else statistics(self.plain))
        self.begin_step()

    def begin_step(self) -> None:
        """Also after a run: a step that was broken off has left its pictures, on the device."""
        self._scores, self._images, self._room = [], [], None

    def scored(self, images: Tensor, scores: Tensor) -> None:
        """Called whenever the reward is asked; of one step only the first answer for each picture counts."""
        self._scores.append(scores.detach().cpu())
        self._images.append(images.detach())

    def roomy(self, room: Tensor) -> None:
        self._room = room.detach().cpu()

    def end_step(self, share: float, stride: Tensor) -> None:
        """share: of the run, 0 its beginning. stride: how long each picture's step was, (B,), in standard deviations of
        x0 given x, over the reward's reach. Tells the pages."""
        count = len(stride)
        reward, images = torch.cat(self._scores)[:count], torch.cat(self._images)[:count]
        room = torch.full((count,), torch.inf) if self._room is None else self._room
        self.watch.see(Look(share, reward, room, stride.cpu()))
        self.begin_step()
        self._tell(preview=picture(images[0]))

    def end(self, latents: Tensor | None, decode: Callable[[Tensor], Tensor]) -> None:
        """The run has come to its end. latents: as the sampler hands them out; None where noise is left in them, so
        that they show nothing yet. decode: latents -> (B,3,H,W), where no plain pictures are to be compared with."""
        if latents is not None and self.watch.looks:
            images = decode(latents) if self.plain is None else self._as_plain(latents)
            self.watch.made = statistics(images)
            if self.judge is not None and self.plain is not None:
                with quietly():
                    ours, plain = (torch.tensor(measured(self.judge, shown)) for shown in (images, self.plain))
                self.watch.judged = ours, plain
        problems = self.watch.problems()
        for problem in problems:
            logging.warning("Reward guidance: %s", problem)
        self._tell(problems, done=True)

    def unjudged(self, error: Exception) -> None:
        """The run has come to its end, and what was to be said about it could not be found out."""
        problem = f"This run could not be judged: {error or type(error).__name__}"
        logging.warning("Reward guidance: %s", problem, exc_info=error)
        self._tell([problem], done=True)

    def _as_plain(self, latents: Tensor) -> Tensor:
        images = self.vae.decode(latents.clone())
        return images.reshape(-1, *images.shape[-3:])[..., :3].movedim(-1, 1).float()

    def _tell(self, problems: Sequence[str] = (), done: bool = False, **more: Any) -> None:
        """Problems are told at the end, once: on the way every estimate is blurred, and the rest not yet known."""
        if self.node:
            told = {"node": self.node, "curve": curve(self.watch.looks), "problems": list(problems), "done": done}
            tell_pages(EVENT, told | more)


def picture(image: Tensor) -> str:
    """(3, H, W) in 0..1 as the base64 text of a small JPEG."""
    from PIL import Image

    pixels = (image.float().clamp(0, 1) * 255).byte().permute(1, 2, 0).cpu().numpy()
    shown, out = Image.fromarray(np.ascontiguousarray(pixels)), io.BytesIO()
    shown.thumbnail((SIDE, SIDE))
    shown.save(out, "JPEG", quality=80)
    return base64.b64encode(out.getvalue()).decode("ascii")


def plain_pictures(images: Tensor | None) -> Tensor | None:
    """An IMAGE (N, H, W, C) as (N, 3, H, W), or None."""
    return None if images is None else images.clone()[..., :3].movedim(-1, 1).float()
