"""The part of the store that is about pictures: recording, finding, showing and deleting them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import (
    deletions,
    listing,
    media,
    queries,
    writes,
)
from .records import (
    MAX_NAME,
    Generation,
    NotFound,
    Page,
    RequestKey,
    StoredImage,
    checked_number,
    checked_text,
)
from .results import Freed, ImageFilter, Sort
from .store_open import OpenStore

if TYPE_CHECKING:
    from sqlalchemy import Connection


class StoredPictures(OpenStore):
    """Pictures, and how they were made."""

    def add_image(
        self, picture: bytes | np.ndarray, generation: Generation, collection: str, key: RequestKey | None = None
    ) -> str:
        """Records a picture and how it was made; returns its id.

        picture: the bytes of a PNG, JPEG or WebP, or uint8 (H, W, 3 or 4). A picture with the same pixels that came
        from the same node of the same graph (or, without a graph, the same settings) in the same collection is there
        already, and its id is returned. Raises media.BadPicture, records.InvalidRecord.
        """
        return self._add_images([(picture, generation)], collection, key)[0]

    def add_images(self, made: Iterable[tuple[bytes | np.ndarray, Generation]], collection: str) -> list[str]:
        """Records the pictures of a batch, all or none, in one transaction; see `add_image`."""
        return self._add_images(made, collection)

    def _add_images(
        self, made: Iterable[tuple[bytes | np.ndarray, Generation]], collection: str, key: RequestKey | None = None
    ) -> list[str]:
        """Files come before the rows that speak of them, and again where a deletion came between the two."""
        checked_text(collection, "The collection", MAX_NAME, empty=False)
        new = [self._kept(picture, generation, collection) for picture, generation in made]
        rows = [row for _, row in new]
        ids = self._database.write(
            lambda c: [writes.once(c, key, partial(writes.insert_image, new=row)) for row in rows]
        )
        for pixels, row in new:
            if not self._media.path(row.image["file_hash"]).exists():
                self._media.put(pixels)
        return ids

    def _kept(
        self, picture: bytes | np.ndarray, generation: Generation, collection: str
    ) -> tuple[np.ndarray, writes.NewImage]:
        """The pixels, whose file is on disk now, and the rows to write."""
        pixels = media.decode(picture) if isinstance(picture, bytes) else media.checked(picture)
        source_hash = media.content_hash(picture) if isinstance(picture, bytes) else None
        file_hash = self._media.put(pixels)
        size = self._media.path(file_hash).stat().st_size
        return pixels, writes.new_image(pixels, generation, collection, file_hash, size, source_hash)

    def image(self, image_id: str) -> StoredImage:
        """One picture with the ratings that count. Raises NotFound."""
        found = self._database.read(lambda c: queries.images_by_id(c, [image_id]))
        if not found:
            raise NotFound(f"There is no picture {image_id!r} in the feedback database.")
        return found[0]

    def images(self, collection: str | None = None, cursor: str | None = None, limit: int = 50) -> Page:
        """Pictures with the ratings that count, newest first; see `search`."""
        return self.search(ImageFilter(collection), "newest", cursor, limit)

    def search(self, which: ImageFilter, sort: Sort = "newest", cursor: str | None = None, limit: int = 50) -> Page:
        """Pictures with the ratings that count. best, worst: those that were rated, by what min_value is asked of.

        watermark: those that were looked at, the most surely marked first. cursor: `next` of the page before, of the
        same order. limit: 1..500. Raises InvalidRecord for a cursor of something else.
        """
        limit = int(checked_number(limit, "The limit", 1, 500))
        return self._database.read(lambda c: listing.page(c, which, sort, cursor, limit))

    def image_pixels(self, image_id: str) -> np.ndarray:
        """Pixels (H, W, 3), uint8, as they were recorded, without transparency. Raises NotFound."""
        return np.ascontiguousarray(self._media.pixels(self.image(image_id).file_hash)[..., :3])

    def image_file(self, image_id: str) -> Path:
        """The PNG of the picture. Raises NotFound."""
        return self._media.path(self.image(image_id).file_hash)

    def thumbnail(self, image_id: str) -> bytes:
        """A JPEG of at most 256 pixels a side. Raises NotFound."""
        return self._media.thumbnail(self.image(image_id).file_hash)

    def graphs(self, image_id: str) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        """(API prompt, workflow) that made the picture, without secrets; None where none was recorded."""
        return self._database.read(lambda c: queries.graphs(c, image_id))

    def add_latent(self, image_id: str, samples: np.ndarray) -> None:
        """Keeps the latent (C, ...) that the picture was decoded from; one that is there already stays."""
        self._latents.put(image_id, samples)

    def latent(self, image_id: str) -> np.ndarray | None:
        """The latent (C, ...), float32, that was kept with the picture, or None."""
        return self._latents.get(image_id)

    def add_watermark_scores(self, scores: Mapping[str, float]) -> None:
        """Notes by picture how surely a detector sees a watermark; the latest number counts."""
        self._database.write(lambda c: writes.insert_watermark_scores(c, scores))

    def without_watermark_score(self, limit: int = 100) -> list[str]:
        """Ids of the newest pictures that no detector looked at."""
        return self._database.read(lambda c: queries.without_watermark_score(c, limit))

    def delete_image(self, image_id: str) -> Freed:
        """Removes a picture with all that was said of it, and its files. Raises NotFound.

        Rankings that it was part of lose it and keep the order of the others.
        """
        return self._delete(self._database.write(lambda c: deletions.delete_image(c, image_id)))

    def prune(self) -> Freed:
        """Removes the pictures of which nobody ever said anything, taken back or not."""
        images = size = 0
        while ids := self._database.read(deletions.unjudged):
            freed = self._delete(self._database.write(lambda c, ids=ids: deletions.delete_unjudged(c, ids)))
            images, size = images + freed.images, size + freed.bytes
        return Freed(images, size)

    def _delete(self, gone: deletions.Gone) -> Freed:
        """Removes the files of pictures that no row speaks of any more."""
        size = sum(self._database.write(lambda c, file=file: self._remove_file(c, file)) for file in gone.files)
        for image_id in gone.images:
            size += self._latents.remove(image_id)
        return Freed(len(gone.images), size)

    def _remove_file(self, connection: Connection, file_hash: str) -> int:
        """While nobody writes, because the same picture can come in again at any moment."""
        return self._media.remove(file_hash) if deletions.unused(connection, file_hash) else 0
