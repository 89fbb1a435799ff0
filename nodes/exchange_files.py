"""Data sets in ComfyUI's folders: files of the input folder by name, and new files of the output folder."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import folder_paths

from ..feedback.formats import FORMATS, BadData, Bundle, Report, reading, write
from ..feedback.formats.exchange import Taken, from_store, into_store
from ..feedback.records import Feedback

if TYPE_CHECKING:
    from ..feedback.store import FeedbackStore

ENDINGS = (".parquet", ".zip", ".json")
FIND_OUT = "find out"
LONGEST = 80
DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}
NOBODY = "imported"
"""Who judged, where neither the file nor the user says it."""

Progress = Callable[[int, int], None]


def input_folder() -> Path:
    return Path(folder_paths.get_input_directory())


def input_files() -> list[str]:
    """Names of the data sets in the input folder itself. Links are left out: they can lead anywhere."""
    if not (folder := input_folder()).is_dir():
        return []
    with os.scandir(folder) as entries:
        found = [e.name for e in entries if e.name.lower().endswith(ENDINGS) and e.is_file(follow_symlinks=False)]
    return sorted(found)


def input_file(name: str) -> Path:
    """The file of that name. Raises BadData for a name that the list does not have, such as a path."""
    if name not in input_files():
        raise BadData(
            f"There is no data set {str(name)[:80]!r} in ComfyUI's input folder. Put a .parquet, .zip or .json file "
            "there and choose it by its name."
        )
    return input_folder() / name


def state_of(name: str) -> str:
    """Changes whenever the file does."""
    found = input_file(name).stat()
    return f"{found.st_mtime_ns} {found.st_size}"


def file_name(name: str) -> str:
    """The name as a file name without its ending: letters, digits, blank, dot, dash and underscore remain.

    Raises BadData when nothing is left of it, and for names that Windows keeps for devices.
    """
    bare = name.strip()
    bare = next((bare[: -len(ending)] for ending in ENDINGS if bare.lower().endswith(ending)), bare)
    safe = re.sub(r"[^\w .-]", "_", bare, flags=re.ASCII).strip(" .")[:LONGEST].rstrip(" .")
    if not safe.strip("_") or safe.split(".")[0].lower() in DEVICES:
        raise BadData(f"'{name[:40]}' is no name for a file: use letters or digits, such as 'my feedback'.")
    return safe


def new_output(name: str, suffix: str) -> Path:
    """An empty new file in the output folder; a number is added to a name that is taken, nothing is overwritten."""
    folder = Path(folder_paths.get_output_directory())
    folder.mkdir(parents=True, exist_ok=True)
    safe, number = file_name(name), 1
    while True:
        path = folder / (safe + (f"_{number}" if number > 1 else "") + suffix)
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, stat.S_IRUSR | stat.S_IWUSR | 0o044))
        except FileExistsError:
            number += 1
        else:
            return path


def take_in(
    kept: FeedbackStore, path: Path, form: str, collection: str, rater: str, prefix: str, on_progress: Progress
) -> Taken:
    """Adds what the file holds to the store. Raises BadData, parquet.MissingPackage."""
    if not (collection := collection.strip()):
        raise BadData("collection is empty. Give it a name, such as that of the data set.")
    with reading(path, rater.strip() or NOBODY, None if form == FIND_OUT else form) as bundle:
        return into_store(kept, bundle, collection, prefix, on_progress)


def bundle_of(kept: FeedbackStore, feedback: Feedback, axes: tuple[str, ...], pairs: bool, names: bool) -> Bundle:
    """What goes out. Raises BadData if there is nothing."""
    bundle = from_store(kept, feedback, axes, pairs)
    if not bundle.said:
        raise BadData("There is no feedback to export. Rate some pictures, or ask for another collection or rater.")
    return bundle if names else bundle.without_names()


def export(bundle: Bundle, form: str, name: str) -> tuple[Path, Report]:
    """Writes a new file in the output folder; a file that did not become whole is removed."""
    if form not in FORMATS:
        raise BadData(f"There is no format {form[:40]!r}; there are {', '.join(FORMATS)}.")
    path = new_output(name, FORMATS[form].suffix)
    with ExitStack() as broken_off:
        broken_off.callback(path.unlink, missing_ok=True)
        report = write(form, bundle, path)
        if not any(report.held.values()):
            raise BadData(f"{FORMATS[form].title} can hold nothing of this feedback.\n{report.text()}")
        broken_off.pop_all()
    return path, report
