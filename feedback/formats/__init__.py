"""Data sets of preferences, in and out: one module for each format, all of them between a file and a `bundle.Bundle`.

`write` and `read` are the way in; `exchange` is between a bundle and the store. A round trip keeps what the format can
hold, and the report says what it could not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import coco, hpd, imagefolder, imagereward, label_studio, label_studio_in, parquet, pickapic, trl
from .archive import Documents
from .bundle import BadData, Bundle, Picture, Report, Said
from .guards import Archive, kind_of

__all__ = ["FORMATS", "BadData", "Bundle", "Format", "Picture", "Report", "Said", "reading", "write"]


@dataclass(frozen=True)
class Format:
    """What a format is called, the ending of its files, how it is written."""

    name: str
    title: str
    suffix: str
    write: Callable[[Bundle, Path], Report]


FORMATS = {
    one.name: one
    for one in (
        Format("imagefolder", "imagefolder (ZIP)", ".zip", imagefolder.write_folder),
        Format("parquet", "pictures (Parquet)", ".parquet", imagefolder.write_parquet),
        Format("pick-a-pic", "Pick-a-Pic (Parquet)", ".parquet", pickapic.write),
        Format("trl", "TRL preference (Parquet)", ".parquet", trl.write),
        Format("imagereward", "ImageReward (ZIP)", ".zip", imagereward.write),
        Format("hpdv2", "HPDv2 (ZIP)", ".zip", hpd.write),
        Format("label-studio", "Label Studio (ZIP)", ".zip", label_studio.write),
        Format("coco", "COCO and masks (ZIP)", ".zip", coco.write),
    )
}


def write(name: str, bundle: Bundle, path: Path) -> Report:
    """Writes the bundle in the format of that name, without keys and passwords; says what was left out. Raises BadData,
    parquet.MissingPackage."""
    if name not in FORMATS:
        raise BadData(f"There is no format {name[:40]!r}; there are {', '.join(FORMATS)}.")
    return FORMATS[name].write(bundle.without_secrets(), path)


@contextmanager
def reading(path: Path, rater: str, name: str | None = None) -> Iterator[Bundle]:
    """The bundle of a file, whose pictures can be read inside the context.

    rater: who judged, where the file does not say. name: the format, found out by content if None. Raises BadData,
    parquet.MissingPackage.
    """
    kind = kind_of(path)
    with ExitStack() as open_files:
        if kind == "parquet":
            yield _of_parquet(open_files.enter_context(parquet.Table(path)), rater, name)
            return
        archive = open_files.enter_context(Archive(path)) if kind == "zip" else None
        yield _of_documents(Documents(path, archive), archive, rater, name)


def _of_parquet(table: parquet.Table, rater: str, name: str | None) -> Bundle:
    if name == "pick-a-pic" or name is None and pickapic.recognises(table):
        return pickapic.read(table, rater)
    if name == "trl" or name is None and trl.recognises(table):
        return trl.read(table, rater)
    if name == "parquet" or name is None and imagefolder.recognises_parquet(table):
        return imagefolder.read_parquet(table)
    columns = ", ".join(table.schema.names)[:300]
    raise BadData(
        f"The Parquet file is none of {_wanted(name, '.parquet')}: it has the columns {columns}. Pick-a-Pic needs "
        "caption, jpg_0, jpg_1, label_0 and label_1; TRL prompt, chosen and rejected; pictures a column image."
    )


def _of_documents(documents: Documents, archive: Archive | None, rater: str, name: str | None) -> Bundle:
    if archive is not None and (name == "imagefolder" or name is None and imagefolder.recognises_folder(archive)):
        return imagefolder.read_folder(archive)
    for known, module in (("imagereward", imagereward), ("hpdv2", hpd), ("coco", coco)):
        if name == known or name is None and module.recognises(documents):
            return module.read(documents, rater)
    if name == "label-studio" or name is None and label_studio_in.recognises(documents):
        return label_studio_in.read(documents, rater)
    raise BadData(
        f"The file is none of {_wanted(name, '.zip')}: a ZIP needs metadata.jsonl or a JSON file with the fields of "
        "its format, a JSON file alone these fields."
    )


def _wanted(name: str | None, suffix: str) -> str:
    if name in FORMATS:
        return FORMATS[name].title
    return ", ".join(one.title for one in FORMATS.values() if one.suffix == suffix)
