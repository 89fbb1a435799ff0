"""How the second watermark detector (feedback/rewards/auditor.py) is trained: apart from the first in what counts."""

from __future__ import annotations

from . import overlays
from .watermark import Recipe

HELD_OUT: dict[str, overlays.Family] = {
    f.__name__: f for f in (overlays.strip, overlays.plate, overlays.net, overlays.corner_logo)
}
"""Never shown to the auditor; the first detector was trained on these, and never on those that it holds out."""

TRAINED: dict[str, overlays.Family] = {
    name: family for name, family in (overlays.TRAINED | overlays.HELD_OUT).items() if name not in HELD_OUT
}

RECIPE = Recipe(steps=3000, lr=2e-3, seed=71)
