"""What is written, statement by statement. Every function runs in the one writing transaction."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import numpy as np
from sqlalchemy import delete, insert, select, update

from . import documents, media, tables
from .derived import add_to_tally
from .derived_tables import watermark_score
from .graph import upstream
from .pairs import prompt_key
from .prompt_words import insert_words
from .records import (
    MAX_NAME,
    Conflict,
    Generation,
    InvalidRecord,
    ModelRun,
    NotFound,
    RequestKey,
    checked_number,
    checked_text,
)

if TYPE_CHECKING:
    from sqlalchemy import Connection

TEXTS = ("prompt", "negative", "sampler", "scheduler", "checkpoint", "checkpoint_hash", "prompt_id", "node_id")
NUMBERS = ("steps", "cfg", "denoise", "batch_index")


@dataclass(frozen=True)
class NewImage:
    """A picture about to be recorded: its rows, and the documents that they refer to."""

    image: dict[str, Any]
    generation: dict[str, Any]
    documents: dict[str, bytes]


def new_image(
    pixels: np.ndarray, generation: Generation, collection: str, file_hash: str, size: int, source_hash: str | None
) -> NewImage:
    """Prepares the rows outside the transaction, so that hashing and compressing hold up nobody."""
    made_by = _generation_row(generation)
    hidden = documents.secrets(generation.api_prompt) | documents.secrets(generation.workflow)
    bodies: dict[str, bytes] = {}
    for name in ("api_prompt", "workflow"):
        if (graph := getattr(generation, name)) is not None:
            made_by[f"{name}_hash"], body = documents.packed(documents.redacted(graph, hidden))
            bodies[made_by[f"{name}_hash"]] = body
    pixel_hash = media.pixel_hash(pixels)
    image = {
        "collection": collection,
        "identity": _identity(pixel_hash, collection, generation, made_by),
        "file_hash": file_hash,
        "pixel_hash": pixel_hash,
        "source_hash": source_hash,
        "height": pixels.shape[0],
        "width": pixels.shape[1],
        "mime": "image/png",
        "bytes": size,
        "prompt_key": None if generation.prompt is None else prompt_key(generation.prompt),
    }
    return NewImage(image, made_by, bodies)


def _generation_row(generation: Generation) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(generation, name) for name in (*TEXTS, *NUMBERS)}
    for name in TEXTS:
        if row[name] is not None:
            checked_text(row[name], f"The {name.replace('_', ' ')} of the picture")
    row["seed"] = _checked_seed(generation.seed)
    row["loras"] = None if generation.loras is None else json.dumps([asdict(lora) for lora in generation.loras])
    row["versions"] = json.dumps(generation.versions, sort_keys=True)
    return row


def _checked_seed(seed: str | None) -> str | None:
    if seed is not None and not (seed.isascii() and seed.isdigit() and int(seed[:21]) < 2**64):
        raise InvalidRecord(f"The seed {seed[:40]!r} is no whole number from 0 to 2^64 - 1, written as text.")
    return seed


def _identity(pixel_hash: str, collection: str, generation: Generation, row: dict[str, Any]) -> str:
    """What stays the same when a run is repeated: pixels, collection, and the part of the graph that made them."""
    graph, node_id = generation.api_prompt, generation.node_id
    if graph is not None and node_id is not None and node_id in graph:
        inputs = documents.redacted(upstream(graph, node_id))
        made_by: Any = [documents.packed(inputs)[0], node_id, generation.batch_index]
    else:
        made_by = {name: value for name, value in row.items() if name not in ("prompt_id", "workflow_hash", "versions")}
    return media.content_hash(json.dumps([pixel_hash, collection, made_by], sort_keys=True).encode())


def next_revision(connection: Connection) -> int:
    """Raises the revision number by one; the row's lock keeps the numbers of concurrent writers apart."""
    counter = tables.counter
    mine = counter.c.name == "revision"
    connection.execute(update(counter).where(mine).values(value=counter.c.value + 1))
    return connection.execute(select(counter.c.value).where(mine)).scalar_one()


def once(connection: Connection, key: RequestKey | None, write: Callable[[Connection], str]) -> str:
    """The id that `write` gave when it was first asked for with this key. Raises Conflict if something else was."""
    if key is None:
        return write(connection)
    request = tables.request
    found = connection.execute(select(request).where(request.c.key == key.key)).first()
    if found is not None:
        if found.body_hash != key.body_hash:
            raise Conflict("This Idempotency-Key was used before with another request; take a new one.")
        return found.result
    result = write(connection)
    connection.execute(insert(request).values(key=key.key, body_hash=key.body_hash, result=result, created_at=now()))
    return result


def insert_image(connection: Connection, new: NewImage) -> str:
    """Records the picture unless it is there already; returns its id."""
    image = tables.image
    found = connection.execute(select(image.c.id).where(image.c.identity == new.image["identity"])).scalar()
    if found is not None:
        return found
    for hash_, body in new.documents.items():
        if connection.execute(select(tables.document.c.hash).where(tables.document.c.hash == hash_)).first() is None:
            connection.execute(insert(tables.document).values(hash=hash_, body=body))
    id_, revision = str(uuid.uuid4()), next_revision(connection)
    _count_image(connection, new.image)
    connection.execute(insert(image).values(id=id_, created_at=now(), revision=revision, rated=0, **new.image))
    connection.execute(insert(tables.generation).values(image_id=id_, **new.generation))
    insert_words(connection, [(revision, new.generation["prompt"])])
    return id_


def _count_image(connection: Connection, row: dict[str, Any]) -> None:
    add_to_tally(connection, "collection", row["collection"], 1)
    image = tables.image
    if connection.execute(select(image.c.id).where(image.c.file_hash == row["file_hash"]).limit(1)).first() is None:
        add_to_tally(connection, "store", "media_bytes", row["bytes"])


def insert_embeddings(connection: Connection, vectors: Mapping[str, np.ndarray], encoder_id: str) -> None:
    """Keeps the embeddings that are not there yet."""
    checked_text(encoder_id, "The encoder's id", MAX_NAME, empty=False)
    embedding = tables.embedding
    for image_id, vector in vectors.items():
        values = np.ascontiguousarray(vector, "<f4").reshape(-1)
        if not np.isfinite(values).all():
            raise InvalidRecord(f"The embedding of picture {image_id} holds NaN or infinity.")
        if connection.execute(select(tables.image.c.id).where(tables.image.c.id == image_id)).first() is None:
            raise NotFound(f"There is no picture {image_id!r} in the feedback database.")
        where = (embedding.c.image_id == image_id, embedding.c.encoder_id == encoder_id)
        if connection.execute(select(embedding.c.image_id).where(*where)).first() is None:
            row = {"image_id": image_id, "encoder_id": encoder_id, "vector": values.tobytes(), "created_at": now()}
            connection.execute(insert(embedding).values(**row))


def insert_watermark_scores(connection: Connection, scores: Mapping[str, float]) -> None:
    """Notes what a detector saw in pictures; the latest number counts."""
    image, watermark = tables.image, watermark_score
    for image_id, value in scores.items():
        checked_number(value, "The watermark score")
        found = connection.execute(select(image.c.collection, image.c.revision).where(image.c.id == image_id)).first()
        if found is None:
            raise NotFound(f"There is no picture {image_id!r} in the feedback database.")
        connection.execute(delete(watermark).where(watermark.c.image_id == image_id))
        row = {"value": float(value), "collection": found.collection, "image_revision": found.revision}
        connection.execute(insert(watermark).values(image_id=image_id, **row))


def insert_model_run(connection: Connection, run: ModelRun) -> str:
    """Records that a model was fitted."""
    id_ = str(uuid.uuid4())
    row = {"kind": run.kind, "name": run.name, "data_hash": run.data_hash, "file_hash": run.file_hash}
    for name in ("settings", "metrics"):
        row[name] = json.dumps(getattr(run, name), sort_keys=True, allow_nan=False, default=str)
    connection.execute(
        insert(tables.model_run).values(
            id=id_, data_revision=run.revision, created_at=now(), revision=next_revision(connection), **row
        )
    )
    return id_


def now() -> datetime:
    """The time as it is stored."""
    return datetime.now(timezone.utc)
