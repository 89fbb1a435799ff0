"""A picture with everything that was said of it in one row: Hugging Face's imagefolder, a ZIP with `metadata.jsonl`,
and the same rows in a Parquet file with the Image feature.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..marks import Ranking, Region, Tag, WordMark
from ..records import Comment, Comparison, Generation, InvalidRecord, Lora, Rating
from . import masks, parquet
from .archive import Sink
from .bundle import BadData, Bundle, Picture, Report, leave_kinds
from .guards import MAX_JSON, PICTURES, Archive, is_url, key_of, number, parsed_json, rows_of, text

SETTINGS = ("prompt", "negative", "seed", "steps", "cfg", "sampler", "scheduler", "denoise", "checkpoint", "loras")
SAID = {"ratings": Rating, "tags": Tag, "comments": Comment, "regions": Region, "word_marks": WordMark}
CAPTIONS = ("prompt", "text", "caption")
OF_TWO = "a row holds one picture; take Pick-a-Pic, HPDv2 or ImageReward for these"


# --- out -------------------------------------------------------------------------------------------------------------


def _row(picture: Picture, said: list[tuple[Any, datetime | None]]) -> dict[str, Any]:
    made = picture.generation
    row: dict[str, Any] = {name: getattr(made, name) for name in SETTINGS if name != "loras"}
    row["loras"] = None if made.loras is None else [asdict(lora) for lora in made.loras]
    row |= {name: [] for name in SAID}
    for record, at in said:
        name = next(name for name, kind in SAID.items() if isinstance(record, kind))
        row[name].append(_cell(record) | {"at": None if at is None else at.astimezone(timezone.utc).isoformat()})
    return row


def _cell(record: Any) -> dict[str, Any]:
    cell = asdict(record)
    del cell["image_id"]
    if isinstance(record, Region):
        cell["geometry"] = [list(point) for point in record.geometry]
        cell["mask"] = None if record.mask is None else masks.to_text(record.mask)
    return cell


def _rows(bundle: Bundle, report: Report) -> Iterator[tuple[Picture, dict[str, Any]]]:
    said: dict[str, list[tuple[Any, datetime | None]]] = {}
    for kind in SAID.values():
        for record, at in bundle.of(kind):
            said.setdefault(record.image_id, []).append((record, at))
    leave_kinds(report, bundle, (Comparison, Ranking), OF_TWO)
    for key, picture in bundle.pictures.items():
        row = _row(picture, said.get(key, []))
        report.held["pictures"] += 1
        for name in SAID:
            report.held[name.replace("_", " ")] += len(row[name])
        yield picture, row


def write_folder(bundle: Bundle, path: Path) -> Report:
    """A ZIP with the pictures and `metadata.jsonl`."""
    report, lines = Report(), []
    with Sink(path) as sink:
        for picture, row in _rows(bundle, report):
            lines.append(json.dumps({"file_name": sink.picture(picture)} | row, ensure_ascii=False, allow_nan=False))
        sink.put("metadata.jsonl", "\n".join(lines) + "\n")
    return report


def write_parquet(bundle: Bundle, path: Path) -> Report:
    """One Parquet file, the pictures inside it."""
    report = Report()

    def rows() -> Iterator[tuple[dict[str, Any], int]]:
        for picture, row in _rows(bundle, report):
            if picture.read is None:
                raise BadData(f"The picture {picture.key!r} has no file to export.")
            data = picture.read()
            row["regions"] = [json.dumps(region) for region in row["regions"]]
            yield {"image": parquet.image_cell(data, picture.key)} | row, len(data)

    parquet.write(path, _columns(), rows(), {})
    return report


def _columns() -> dict[str, tuple[Any, dict[str, Any] | None]]:
    pa, _ = parquet.arrow()
    types = {"float64": pa.float64(), "int64": pa.int64(), "string": pa.string()}

    def struct(**fields: str) -> tuple[Any, dict[str, Any]]:
        kind = pa.struct([(name, types[dtype]) for name, dtype in fields.items()])
        feature = {name: parquet.value(dtype) for name, dtype in fields.items()}
        return pa.list_(kind), {"feature": feature, "_type": "List"}

    plain = {name: "string" for name in SETTINGS} | {"steps": "int64", "cfg": "float64", "denoise": "float64"}
    columns: dict[str, tuple[Any, dict[str, Any] | None]] = {"image": (parquet.image_type(), parquet.IMAGE)}
    columns |= {name: (types[dtype], parquet.value(dtype)) for name, dtype in plain.items()}
    columns["loras"] = struct(name="string", strength_model="float64", strength_clip="float64")
    columns["ratings"] = struct(
        raw="float64", rater="string", axis="string", scale_min="float64", scale_max="float64", lead_time="float64",
        comment="string", at="string",
    )  # fmt: skip
    columns["tags"] = struct(tag="string", rater="string", at="string")
    columns["comments"] = struct(text="string", rater="string", at="string")
    columns["regions"] = (pa.list_(pa.string()), {"feature": parquet.value("string"), "_type": "List"})
    columns["word_marks"] = struct(word_index="int64", word="string", label="string", rater="string", at="string")
    return columns


# --- in --------------------------------------------------------------------------------------------------------------


def recognises_folder(archive: Archive) -> bool:
    """Whether the ZIP has a metadata file of an imagefolder, or pictures and no documents at all."""
    names = [name.lower() for name in archive.names]
    if any(name.endswith(("metadata.jsonl", "metadata.csv")) for name in names):
        return True
    return any(name.endswith(PICTURES) for name in names) and not any(name.endswith(".json") for name in names)


def read_folder(archive: Archive) -> Bundle:
    """The pictures of a ZIP and what its metadata says of them. Raises BadData."""
    bundle = Bundle()
    tables = [name for name in archive.names if name.lower().endswith(("metadata.jsonl", "metadata.csv"))]
    for table in tables:
        for line, row in _table(archive, table):
            where = f"{table[:100]}, line {line}"
            named = text(row, "file_name", where)
            if named is None:
                raise BadData(f"{where}: file_name is missing; each line says of which picture it speaks.")
            member = None if is_url(named) else archive.find(named, table)
            if member is None:
                bundle.report.leave("pictures: named in the metadata, but not in the ZIP, and URLs are never fetched")
                continue
            _take(bundle, key_of(member), _reader(archive, member), row, where, {"file_name"})
    for name in archive.names:
        if name.lower().endswith(PICTURES) and (not tables or key_of(name) not in bundle.pictures):
            bundle.picture(Picture(key_of(name), _reader(archive, name)))
    return bundle


def _reader(archive: Archive, member: str) -> Callable[[], bytes]:
    return lambda: archive.read(member)


def _table(archive: Archive, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    data = archive.read(name, MAX_JSON)
    if name.lower().endswith(".csv"):
        try:
            lines = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
            yield from ((n, {k: v for k, v in row.items() if k is not None}) for n, row in enumerate(lines, 2))
        except (csv.Error, UnicodeDecodeError) as error:
            raise BadData(f"{name[:100]} is no valid CSV: {error}.") from error
        return
    for n, line in enumerate(data.splitlines(), 1):
        if line.strip():
            row = parsed_json(line, f"{name[:100]}, line {n}")
            if not isinstance(row, dict):
                raise BadData(f"{name[:100]}, line {n} must be an object.")
            yield n, row


def recognises_parquet(table: parquet.Table) -> bool:
    """Whether there is one column of pictures, called image."""
    return "image" in table and not {"chosen", "rejected"} <= set(table.schema.names)


def read_parquet(table: parquet.Table) -> Bundle:
    """The pictures of a Parquet file with the Image feature, and what its rows say of them. Raises BadData."""
    table.need("image", "picture")
    bundle, lacks, paths = Bundle(), table.lacking("image"), table.paths("image")
    for row in table.read([name for name in table.schema.names if table.kind(name) != "picture"]):
        if row[""] in lacks:
            bundle.report.leave("pictures: not in the file, and URLs and paths are never followed")
            continue
        where = f"Row {row['']}"
        if isinstance(regions := row.get("regions"), list) and all(isinstance(one, str) for one in regions):
            row["regions"] = [parsed_json(one.encode(), where) for one in regions]
        key = key_of(paths[row[""]] or f"row {row['']}")
        key = key if key not in bundle.pictures else f"row {row['']}"
        _take(bundle, key, table.picture(row[""], "image"), row, where, {""})
    return bundle


def _take(bundle: Bundle, key: str, read: Callable[[], bytes], row: dict[str, Any], where: str, done: set[str]) -> None:
    bundle.picture(Picture(key, read, _generation(row, where)))
    for name, make in _MAKERS.items():
        for cell in rows_of(row.get(name), f"{where}: {name}"):
            bundle.say(lambda cell=cell, make=make: make(key, cell, where), where, _time(cell, where))
    known = {*SETTINGS, *SAID, *CAPTIONS, *done}
    for name in row:
        if name not in known and row[name] is not None:
            bundle.report.leave(f"values of the column {name[:60]!r}: not one that is known here")


def _generation(row: dict[str, Any], where: str) -> Generation:
    prompt = next((found for name in CAPTIONS if (found := text(row, name, where)) is not None), None)
    texts: dict[str, Any] = {
        name: text(row, name, where) for name in ("negative", "sampler", "scheduler", "checkpoint")
    }
    seed, steps = row.get("seed"), number(row, "steps", where)
    seed = str(seed) if isinstance(seed, int) and not isinstance(seed, bool) else text(row, "seed", where)
    numbers: dict[str, Any] = {name: number(row, name, where) for name in ("cfg", "denoise")}
    loras = None if row.get("loras") is None else tuple(_lora(one, where) for one in rows_of(row["loras"], where))
    return Generation(
        prompt=prompt, seed=seed or None, steps=None if steps is None else int(steps), loras=loras, **texts, **numbers
    )  # type: ignore[arg-type]


def _lora(cell: dict[str, Any], where: str) -> Lora:
    return Lora(
        text(cell, "name", where, "") or "",
        number(cell, "strength_model", where),
        number(cell, "strength_clip", where),
    )


def _time(cell: dict[str, Any], where: str) -> datetime | None:
    if (at := text(cell, "at", where)) is None:
        return None
    try:
        found = datetime.fromisoformat(at)
    except ValueError as error:
        raise BadData(f"{where}: {at[:40]!r} is no time such as 2025-01-31T12:00:00+00:00.") from error
    return found if found.tzinfo else found.replace(tzinfo=timezone.utc)


def _rating(key: str, cell: dict[str, Any], where: str) -> Rating:
    low, high = number(cell, "scale_min", where, 1.0), number(cell, "scale_max", where, 5.0)
    raw, who = number(cell, "raw", where), text(cell, "rater", where)
    if raw is None or who is None or low is None or high is None:
        raise BadData(f"{where}: a rating needs raw and rater.")
    lead, comment = number(cell, "lead_time", where), text(cell, "comment", where)
    return Rating(key, raw, who, text(cell, "axis", where) or "overall", low, high, lead, comment)


def _region(key: str, cell: dict[str, Any], where: str) -> Region:
    points, mask = cell.get("geometry"), text_of_mask(cell, where)
    if not isinstance(points, list) or not all(isinstance(p, list) and len(p) == 2 for p in points):
        raise BadData(f"{where}: geometry must be a list of points [x, y].")
    given = {name: text(cell, name, where) for name in ("shape", "label", "rater", "comment")}
    shape, label, who = (given[name] or "" for name in ("shape", "label", "rater"))
    geometry = tuple((x, y) for x, y in points)
    severity = number(cell, "severity", where)
    return Region(key, shape, geometry, label, who, severity, given["comment"], mask)  # type: ignore[arg-type]


def text_of_mask(cell: dict[str, Any], where: str) -> bytes | None:
    """The PNG of a mask that stands as base64 in the cell."""
    mask = cell.get("mask")
    if mask is None:
        return None
    if not isinstance(mask, str):
        raise BadData(f"{where}: mask must be text, a PNG as base64.")
    return masks.from_text(mask, where)


def _word_mark(key: str, cell: dict[str, Any], where: str) -> WordMark:
    index = cell.get("word_index")
    if isinstance(index, bool) or not isinstance(index, int):
        raise BadData(f"{where}: word_index must be a whole number.")
    word, label, who = (text(cell, name, where) or "" for name in ("word", "label", "rater"))
    return WordMark(key, index, word, label, who)  # type: ignore[arg-type]


def _named(cell: dict[str, Any], *names: str, where: str) -> list[str]:
    found = [text(cell, name, where) for name in names]
    if any(one is None for one in found):
        raise InvalidRecord(f"{' and '.join(names)} must be there.")
    return [one for one in found if one is not None]


_MAKERS: dict[str, Callable[[str, dict[str, Any], str], Any]] = {
    "ratings": _rating,
    "tags": lambda key, cell, where: Tag(key, *_named(cell, "tag", "rater", where=where)),
    "comments": lambda key, cell, where: Comment(key, *_named(cell, "text", "rater", where=where)),
    "regions": _region,
    "word_marks": _word_mark,
}
