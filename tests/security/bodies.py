"""A body that each route takes, for attacks that change one thing in it."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from feedback_loop.tests.comfy_host import JSON
from feedback_loop.tests.nodes.http_calls import NO_ID

from .target import Target

FIRST, SECOND = "FIRST", "SECOND"
"""Stand for the ids of pictures that there are."""

BODIES: dict[tuple[str, str], JSON] = {
    ("POST", "ratings"): {
        **{"image_id": FIRST, "value": 4, "scale": {"min": 1, "max": 5}, "axis": "overall", "rater": "r"},
        **{"comment": "c", "lead_time": 1.5},
    },
    ("POST", "comparisons"): {
        **{"left": FIRST, "right": SECOND, "winner": "left", "axis": "overall", "rater": "r", "strength": 0.5},
        **{"policy": "learn", "propensity": 0.5, "lead_time": 1.5},
    },
    ("POST", "rankings"): {"image_ids": [FIRST, SECOND], "axis": "overall", "rater": "r", "lead_time": 1.5},
    ("POST", "regions"): {
        **{"image_id": FIRST, "shape": "rect", "geometry": [[0.1, 0.1], [0.5, 0.5]], "label": "artifact"},
        **{"rater": "r", "severity": 0.5, "comment": "c"},
    },
    ("POST", "word_marks"): {"image_id": FIRST, "word_index": 0, "word": "a", "label": "good", "rater": "r"},
    ("POST", "tags"): {"image_id": FIRST, "tag": "high quality", "rater": "r"},
    ("POST", "comments"): {"image_id": FIRST, "text": "c", "rater": "r"},
    ("POST", "interactions"): {"kind": "saved", "image_id": FIRST, "result_id": SECOND, "rater": "r"},
    ("PUT", "settings"): {"interactions": True},
    ("POST", "history/scan"): {"collection": "attacked"},
    ("POST", "gates/{key}"): {"action": "choose", "images": [FIRST], "mask_of": FIRST, "comment": "c", "rater": "r"},
    ("POST", "watermarks/scan"): {},
    ("POST", "rounds/{id}/choice"): {"image_id": FIRST, "rater": "r"},
    ("POST", "auto_train/{name}/use"): {"version": 1},
    ("POST", "auto_train/{name}/drop"): {},
    ("POST", "prune"): {},
    ("POST", "backup"): {},
}
WITHOUT_BODY = (("DELETE", "images/{id}"), ("DELETE", "judgements/{id}"))
UPLOADS = (("POST", "import"),)

WRONG: dict[str, Any] = {
    "an object": {"$ne": 1},
    "a list in a list": [[]],
    "NUL": "a\0b",
    "half a surrogate pair": "\ud800",
    "text without end": "x" * 120_001,
    "a number below all": -1e308,
    "400 digits": 10**400,
}
"""Right for no field of any body."""


NO_GATE = f"{NO_ID}.1.0"
"""Has the form of a run that waits."""


def body_of(target: Target, route: tuple[str, str]) -> JSON:
    return json.loads(json.dumps(BODIES[route]).replace(FIRST, target.images[0]).replace(SECOND, target.images[1]))


def spoiled(body: JSON, field: str, value: Any) -> JSON:
    """The body with another value at `field`, whose dots lead into objects."""
    changed = copy.deepcopy(body)
    *path, last = field.split(".")
    inner = changed
    for name in path:
        inner = inner[name]
    inner[last] = value
    return changed


def fields(body: JSON, before: str = "") -> Iterator[str]:
    for name, value in body.items():
        yield before + name
        if isinstance(value, dict):
            yield from fields(value, f"{before}{name}.")
