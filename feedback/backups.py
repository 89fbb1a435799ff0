"""A backup: a folder with the database and the pictures as they are now."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

DATABASE = "feedback.sqlite3"
MEDIA = "media"
THUMBNAILS = "thumbnails"  # made anew when somebody looks


def write(target: Path, media: Path, copy_database: Callable[[Path], None]) -> None:
    """Makes the folder `target`, whole or not at all. Raises FileExistsError if it is there.

    Files are kept before and after the database: pictures may come and go meanwhile, and it must name none without one.
    """
    if target.exists():
        raise FileExistsError(f"There is a backup {target.name} already; take another name.")
    unfinished = target.with_name(f".{target.name}")
    try:
        keep_files(media, unfinished / MEDIA)
        copy_database(unfinished / DATABASE)
        keep_files(media, unfinished / MEDIA)
        os.rename(unfinished, target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def keep_files(source: Path, target: Path) -> None:
    """Keeps every picture and latent a second time.

    They never change, so on one disk a second name will do, which takes no time and no space and stays when the first
    is deleted; elsewhere they are copied.
    """
    for parent, folders, names in os.walk(source):
        place = target / Path(parent).relative_to(source)
        if Path(parent) == source:
            folders[:] = [name for name in folders if name != THUMBNAILS]
        place.mkdir(parents=True, exist_ok=True)
        for name in names:
            if not name.startswith("."):  # being written
                _keep(Path(parent, name), place / name)


def _keep(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except (FileNotFoundError, FileExistsError):
        return  # deleted while we looked, or kept already
    except OSError:
        try:
            shutil.copyfile(source, target)
        except FileNotFoundError:
            return
