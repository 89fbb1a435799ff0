"""Words to conditioning: what a comment asks for, and text encodings moved towards it or away from it.

The direction of a wish is a difference of two encodings: in the prompt, `E(prompt, wish) - E(prompt)`, token by token
(`moved`); or by itself, `E(wish) - E()`, its mean over tokens added to every token of the prompt (`shifted`).
Directions between text encodings steer diffusion models without training: Brack et al. 2023 (SEGA, arXiv:2301.12247)
take them between predictions, Baumann et al. 2024 (arXiv:2403.17064) between the tokens themselves, as is done here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, cat

from ..feedback.wish_words import wishes

Conditioning = Sequence[Any]
"""What a text encoder gives: entries of [tokens (B, T, W), settings], the settings maybe with a `pooled_output`."""

EDGE = 1e-5  # the sampler's intervals include both ends, and one encoding is to hold at a time


class TextFeedbackError(ValueError):
    """A comment or an encoding that cannot steer; the message says what to do."""


# What is asked for


@dataclass(frozen=True)
class Said:
    """What was said in one round, and how much it still counts."""

    text: str
    weight: float = 1.0

    def phrase(self, wanted: bool) -> str:
        """The wanted things of it, or the unwanted ones, as one text; empty if there are none."""
        return ", ".join(wish.text for wish in wishes(self.text) if wish.wanted == wanted)


def rounds(comment: str, earlier: str, decay: float) -> list[Said]:
    """This round's comment and those of earlier rounds, one on each line, the latest last; what weighs nothing is gone.

    A comment of k rounds ago weighs `decay ** k`, or the number that its line begins with: "0.3: less clutter".
    Oldest first. Raises TextFeedbackError for a weight that is none.
    """
    lines = [line.strip() for line in earlier.splitlines() if line.strip()]
    said = [_line(line, decay ** (len(lines) - i)) for i, line in enumerate(lines)]
    if comment.strip():
        said.append(Said(comment.strip()))
    return [one for one in said if one.weight > 0]


def _line(line: str, weight: float) -> Said:
    number = re.match(r"^([\d.]+)\s*:\s*(.+)$", line)
    if number is None:
        return Said(line, weight)
    try:
        weight = float(number[1])
    except ValueError:
        weight = -1.0
    if not 0 <= weight <= 10:
        raise TextFeedbackError(
            f"The earlier comment '{line[:60]}' begins with a weight that is none: write a number from 0 to 10, as in "
            "0.5: less clutter."
        )
    return Said(number[2], weight)


def listed(said: Sequence[Said]) -> str:
    """The comments as the next round's list of earlier ones."""
    return "\n".join(one.text.replace("\n", ", ") for one in said)


def told(prompt: str, *more: str) -> str:
    """A prompt with more said after it, as captions list things."""
    return ", ".join(text.strip().rstrip(",.") for text in (prompt, *more) if text.strip())


# What it changes


def moved(base: Conditioning, to: Conditioning, without: Conditioning, strength: float) -> list[Any]:
    """`base + strength * (to - without)`, in every entry of base; strength 0 gives its very tensors.

    to, without: what a text encoder makes of the prompt with and without the wish; their first entry counts. Lengths
    may differ. Tokens that the wish leaves alone stay bit-equal, those that it moves keep their length, which runs from
    the base's to the wish's. A negative strength moves away.
    """
    if strength == 0:
        return list(base)
    return [_moved_entry(entry, to[0], without[0], strength) for entry in base]


def shifted(base: Conditioning, to: Conditioning, without: Conditioning, strength: float) -> list[Any]:
    """base with the mean of `to - without` over tokens added, `strength` times, to every token, in every entry.

    to, without: the wish alone and nothing, encoded; lengths may differ from base's. Tokens before the first that the
    wish changes (the start of the text) stay bit-equal, all others keep their length. Strength 0 gives base's tensors.
    """
    if strength == 0:
        return list(base)
    return [_shifted_entry(entry, to[0], without[0], strength) for entry in base]


def _shifted_entry(entry: Any, to: Any, without: Any, strength: float) -> list[Any]:
    settings = dict(entry[1])
    pooled, wish, nothing = (one[1].get("pooled_output") for one in (entry, to, without))
    if pooled is not None and wish is not None and nothing is not None:
        settings["pooled_output"] = everywhere(pooled[:, None], wish[:, None], nothing[:, None], strength)[:, 0]
    return [everywhere(entry[0], to[0], without[0], strength), settings]


def everywhere(base: Tensor, to: Tensor, without: Tensor, strength: float) -> Tensor:
    """base (B, T, W) moved as `shifted` says. Raises TextFeedbackError for another width."""
    _check_width(base, to)
    length = max(to.shape[-2], without.shape[-2])
    step = _padded(to, length).to(base) - _padded(without, length).to(base)
    changed = (step != 0).any(dim=-1)[0].nonzero()[:, 0]
    if len(changed) == 0:
        return base
    first = int(changed[0])
    result = base + strength * step[:, changed].mean(dim=1, keepdim=True)
    own, size = (one.norm(dim=-1, keepdim=True) for one in (base, result))
    turned = result * (own / size.clamp(min=1e-12))
    return cat([base[:, :first], turned[:, first:]], dim=1)


def _check_width(base: Tensor, to: Tensor) -> None:
    if base.shape[-1] != to.shape[-1]:
        raise TextFeedbackError(
            f"The conditioning is {base.shape[-1]} numbers wide, but this CLIP's are {to.shape[-1]}: connect the CLIP "
            "that the conditioning was made with."
        )


def _moved_entry(entry: Any, to: Any, without: Any, strength: float) -> list[Any]:
    tokens = directed(entry[0], to[0], without[0], strength)
    settings = dict(entry[1])
    for name, value in entry[1].items():
        new, old = to[1].get(name), without[1].get(name)
        if isinstance(value, Tensor) and isinstance(new, Tensor) and isinstance(old, Tensor):
            settings[name] = _moved_setting(value, new, old, strength)
    _mask_again(settings, to[1], tokens)
    return [tokens, settings]


def _moved_setting(base: Tensor, to: Tensor, without: Tensor, strength: float) -> Tensor:
    if not base.is_floating_point() or base.ndim < 2:
        return base
    if base.ndim == 2:  # pooled: one vector for the whole text
        return directed(base[:, None], to[:, None], without[:, None], strength)[:, 0]
    return directed(base, to, without, strength)


def _mask_again(settings: dict[str, Any], to: Mapping[str, Any], tokens: Tensor) -> None:
    """The attention mask of a text that grew is that of the longer one."""
    name = "attention_mask"
    mask, new = settings.get(name), to.get(name)
    if isinstance(mask, Tensor) and isinstance(new, Tensor) and new.shape[-1] == tokens.shape[-2]:
        longest = _padded(mask[..., None], new.shape[-1])[..., 0]
        settings[name] = longest.maximum(new.to(mask))


def directed(base: Tensor, to: Tensor, without: Tensor, strength: float) -> Tensor:
    """base (B, T, W) + strength * (to - without), with the norms described in `moved`. Raises TextFeedbackError."""
    _check_width(base, to)
    length = max(one.shape[-2] for one in (base, to, without))
    base, to, without = (_padded(one, length) for one in (base, to.to(base), without.to(base)))
    step = to - without
    changed = (step != 0).any(dim=-1, keepdim=True)
    target = base + step
    own, full = (one.norm(dim=-1, keepdim=True) for one in (base, target if strength > 0 else base))
    result = base + strength * step
    size = result.norm(dim=-1, keepdim=True)
    kept = own.lerp(full, min(abs(strength), 1.0))
    tiny = 1e-12
    return base.where(~changed, result * (kept / size.clamp(min=tiny)))


def _padded(tokens: Tensor, length: int) -> Tensor:
    """With its last token, which ends or pads the text, again and again."""
    missing = length - tokens.shape[-2]
    if missing <= 0:
        return tokens
    return cat([tokens, tokens[..., -1:, :].expand(*tokens.shape[:-2], missing, tokens.shape[-1])], dim=-2)


def appended(base: Conditioning, wish: Conditioning, strength: float) -> list[Any]:
    """base and beside it the wish as a conditioning of its own; the model averages the two by their strengths.

    The wish takes over what base says beside the text (areas, control, guidance).
    """
    if strength == 0 or not base:
        return list(base)
    beside = {k: v for k, v in base[0][1].items() if not isinstance(v, Tensor)}
    weight = strength * float(beside.get("strength", 1.0))
    return [*base, [wish[0][0], beside | dict(wish[0][1]) | {"strength": weight}]]


def during(plain: Conditioning, changed: Conditioning, start: float, end: float) -> list[Any]:
    """`changed` from start to end, shares of the run, and `plain` before and after."""
    if start <= 0 and end >= 1:
        return list(changed)
    outside = [(0.0, start - EDGE), (end + EDGE, 1.0)]
    parts = [entry for low, high in outside for entry in _limited(plain, low, high)]
    return [*parts, *_limited(changed, start, end)]


def _limited(entries: Conditioning, start: float, end: float) -> list[Any]:
    """The entries within an interval, which may be narrower for those that have one already."""
    limited: list[Any] = []
    for tokens, settings in entries:
        low = max(start, float(settings.get("start_percent", 0.0)))
        high = min(end, float(settings.get("end_percent", 1.0)))
        if low < high:
            limited.append([tokens, {**settings, "start_percent": low, "end_percent": high}])
    return limited
