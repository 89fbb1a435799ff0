"""A model's attention for one pass: recording what references show to it, or looking at that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..guidance.reference import AWAY, Layers, apart, beside, leaning, looking_at

INSIDE = "feedback_loop_reference_pass"
"""In the transformer_options of a pass that has a hook of ours, so that no second one is put into it."""


class Hook:
    """An attention override for one pass through the model.

    Self-attention of a U-Net is known by a patch that runs just before it; transformers of the supported kinds have no
    other attention than that of text and picture together.
    """

    def __init__(self, unet: bool) -> None:
        self._unet, self._own, self._before = unet, not unet, None

    def options(self, given: dict[str, Any]) -> dict[str, Any]:
        self._before = given.get("optimized_attention_override")
        options = {**given, "optimized_attention_override": self, INSIDE: True}
        if self._unet:
            patches = dict(options.get("patches", {}))
            patches["attn1_patch"] = [*patches.get("attn1_patch", []), self._mark]
            options["patches"] = patches
        return options

    def _mark(self, n: Tensor, context: Tensor, value: Tensor, _extra: Any) -> tuple[Tensor, Tensor, Tensor]:
        self._own = True
        return n, context, value

    def __call__(
        self, attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, *args: Any, **kw: Any
    ) -> Tensor:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if self._before is not None:
                return self._before(attention, q, k, v, *args, **kw)
            return attention(q, k, v, *args, **kw)

        own, self._own = self._own, not self._unet
        if v.ndim > k.ndim:  # SD3 hands over values that are split into heads already
            v = v.reshape(k.shape)
        return self.attend(attend, q, k, v) if own else attend(q, k, v)

    def attend(self, attend: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        raise NotImplementedError


class Recording(Hook):
    def __init__(self, layers: Layers, unet: bool) -> None:
        super().__init__(unet)
        self.layers = layers

    def attend(self, attend: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.layers.record(k, v)
        return attend(q, k, v)


class Looking(Hook):
    def __init__(
        self, likes: Sequence[Any], dislikes: Sequence[Any], liked_rows: Tensor, disliked_rows: Tensor, strength: float,
        unet: bool, apart: float = 0.0,
    ) -> None:  # fmt: skip
        """apart: how much what sets the two sides apart counts; see guidance/reference.py."""
        super().__init__(unet)
        self._apart = apart
        self._likes, self._dislikes = iter(likes), iter(dislikes)
        self._liked_rows, self._disliked_rows, self._strength = liked_rows, disliked_rows, strength

    def attend(self, attend: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        like, dislike = next(self._likes, None), next(self._dislikes, None)
        own, rows = (q, k, v), self._liked_rows.to(q.device)
        plain = attend(*own)
        liking = None if like is None or len(rows) == 0 else beside(attend, own, like, rows)
        liked = plain if liking is None else leaning(plain, liking, self._strength, rows)
        if dislike is None:
            return liked
        if len(self._disliked_rows) > 0:  # the negative prompt's prediction, which CFG moves away from, looks like them
            away = self._disliked_rows.to(q.device)
            result = _rows_together(liked, looking_at(attend, own, dislike, AWAY * self._strength, away), away)
        else:
            result = liked + (looking_at(attend, own, dislike, -AWAY * self._strength, rows) - plain)
        if self._apart and liking is not None:
            step = apart(liking, beside(attend, own, dislike, rows), self._apart)
            result = result.index_add(0, rows, step.to(result))
        return result


def _rows_together(liked: Tensor, disliked: Tensor, rows: Tensor) -> Tensor:
    result = liked.clone()
    result[rows] = disliked[rows]
    return result
