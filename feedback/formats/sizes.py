"""How large the pictures of a bundle are."""

from __future__ import annotations

from ..media import BadPicture, decode
from .bundle import BadData, Picture


def size_of(picture: Picture) -> tuple[int, int]:
    """(width, height) in pixels, from the file where they are not known. Raises BadData."""
    if picture.width is not None and picture.height is not None:
        return picture.width, picture.height
    if picture.read is None:
        raise BadData(f"The picture {picture.key!r} has no file, so that its size is not known.")
    try:
        height, width = decode(picture.read()).shape[:2]
    except BadPicture as error:
        raise BadData(f"The picture {picture.key!r} can't be read: {error}") from error
    return width, height
