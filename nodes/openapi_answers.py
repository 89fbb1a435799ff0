"""The shapes of what our routes answer, as JSON Schema."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
MAYBE_NUMBER: Schema = {"type": ["number", "null"]}
MAYBE_TEXT: Schema = {"type": ["string", "null"]}
WHEN: Schema = {"type": "string", "format": "date-time"}
UUID_TEXT: Schema = {"type": "string", "format": "uuid"}
ANY_OBJECT: Schema = {"type": "object"}


def reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def listed(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def shape(**properties: Schema) -> Schema:
    """An object with these properties, all of them there."""
    return {"type": "object", "required": list(properties), "properties": properties}


MARK = {"id": UUID_TEXT, "rater": TEXT, "created_at": WHEN}
PICTURE = {
    "id": UUID_TEXT,
    "collection": TEXT,
    "prompt": MAYBE_TEXT,
    "seed": {"type": ["string", "null"], "description": "a whole number below 2^64, as text"},
    "width": WHOLE,
    "height": WHOLE,
    "created_at": WHEN,
    "watermark": MAYBE_NUMBER,
    "ratings": listed(reference("Rating")),
}
RELIABILITY = {
    "rater": TEXT,
    "judgements": WHOLE,
    "left_share": MAYBE_NUMBER,
    "left_interval": {"type": ["array", "null"], "items": NUMBER},
    "self_agreement": MAYBE_NUMBER,
    "repeats": WHOLE,
    "median_seconds": MAYBE_NUMBER,
}
EVIDENCE = {"pictures": WHOLE, "raters": WHOLE, "examples": listed(UUID_TEXT)}
COUNTS = {"type": "object", "additionalProperties": WHOLE}
ROUND = {
    "id": UUID_TEXT,
    "parent": UUID_TEXT,
    "comment": TEXT,
    "labels": listed(TEXT),
    "candidates": listed(shape(image_id=UUID_TEXT, score=MAYBE_NUMBER)),
    "accepted": MAYBE_TEXT,
    "decided": {"type": "boolean"},
    "how": MAYBE_TEXT,
    "created_at": WHEN,
}
VERSION = {
    **{name: WHOLE for name in ("number", "ratings")},
    **{name: TEXT for name in ("file", "outcome", "why")},
    "made_at": WHEN,
}
ANSWERS: dict[str, Schema] = {
    "AutoTrain": shape(
        name=TEXT,
        in_use=WHOLE,
        back={"type": ["integer", "null"]},
        round={"anyOf": [shape(stage=TEXT, candidate=WHOLE, votes=WHOLE), {"type": "null"}]},
        versions=listed(shape(**VERSION)),
    ),
    "Family": shape(root=UUID_TEXT, rounds=listed(shape(**ROUND))),
    "Recurring": shape(
        words=listed(shape(wanted={"type": "boolean"}, text=TEXT, **EVIDENCE)),
        labels=listed(shape(label=TEXT, **EVIDENCE)),
        places=COUNTS,
        interactions=COUNTS,
        rounds=WHOLE,
        accepted=WHOLE,
        suggestions=listed(shape(name=TEXT, kind=TEXT, **EVIDENCE)),
    ),
    "Id": shape(id=UUID_TEXT),
    "Error": shape(error=TEXT),
    "Rating": shape(**MARK, axis=TEXT, value=NUMBER, scale=reference("Scale")),
    "Image": shape(**PICTURE),
    "Images": shape(items=listed(reference("Image")), next=MAYBE_TEXT),
    "Marks": shape(
        regions=listed(
            shape(
                **MARK,
                shape=TEXT,
                geometry=listed(listed(NUMBER)),
                label=TEXT,
                severity=MAYBE_NUMBER,
                comment=MAYBE_TEXT,
                mask={"type": ["string", "null"], "description": "an 8-bit grey PNG in base64"},
            )
        ),
        word_marks=listed(shape(**MARK, word_index=WHOLE, word=TEXT, label=TEXT)),
        tags=listed(shape(**MARK, tag=TEXT)),
        comments=listed(shape(**MARK, text=TEXT)),
        comparisons=listed(shape(**MARK, left=UUID_TEXT, right=UUID_TEXT, winner=TEXT, axis=TEXT, policy=MAYBE_TEXT)),
        rankings=listed(shape(**MARK, image_ids=listed(UUID_TEXT), axis=TEXT)),
    ),
    "Pair": {
        **shape(left=UUID_TEXT, right=UUID_TEXT, policy=TEXT, propensity=NUMBER, repeat_of=MAYBE_TEXT),
        "type": ["object", "null"],
        "description": "null when there is no pair left to ask about",
    },
    "Freed": shape(images=WHOLE, bytes=WHOLE),
    "Looked": shape(done=WHOLE, left=WHOLE),
    "Backup": shape(name=TEXT, bytes=WHOLE),
    "Stats": {
        "type": "object",
        "properties": {
            **{name: WHOLE for name in ("revision", "images", "ratings", "comparisons", "comments", "raters")},
            **{name: WHOLE for name in ("media_bytes", "bytes", "waiting", "ratings_needed")},
            "disk": {"type": "object", "additionalProperties": WHOLE},
            "collections": {"type": "object", "additionalProperties": WHOLE},
            "read_only": MAYBE_TEXT,
            **{name: MAYBE_NUMBER for name in ("held_out_accuracy", "self_agreement", "bound")},
            "beats_chance": {"type": ["boolean", "null"]},
            "reliability": listed(shape(**RELIABILITY)),
        },
    },
    "Scan": shape(
        **{name: WHOLE for name in ("files", "done", "added", "known", "refused")},
        collection=TEXT,
        reasons=listed(shape(file=TEXT, reason=TEXT)),
    ),
    "Settings": shape(interactions={"type": "boolean"}),
    "Answered": shape(key=TEXT, judgements=listed(UUID_TEXT)),
    "Gates": shape(
        gates=listed(
            shape(
                **{name: TEXT for name in ("key", "prompt_id", "node_id", "mode", "collection", "on_timeout")},
                list_index=WHOLE,
                images=listed(UUID_TEXT),
                seconds_left={**MAYBE_NUMBER, "description": "null: waits without end"},
                workflow_id=MAYBE_TEXT,
            )
        )
    ),
    "Me": shape(team={"type": "boolean"}, rater=MAYBE_TEXT),
}
