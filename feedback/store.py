"""The store: append a judgement and get its id back once it is on disk; everything else is a query at a revision."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from . import (
    asked,
    backups,
    counts,
    deletions,
    derived,
    full_records,
    judging,
    latents,
    listing,
    lookups,
    mark_queries,
    media,
    picking,
    queries,
    said,
    tokens,
    writes,
)
from .database import Database, DatabaseUnreachable
from .engines import folder_of, is_file
from .judging import Stamp
from .marks import Interaction, Marks, Ranking, Region, Tag, WordMark
from .outbox import Outbox
from .records import (
    MAX_NAME,
    Comment,
    ComparedImages,
    Comparison,
    Feedback,
    Generation,
    ModelRun,
    NotFound,
    Page,
    RatedImage,
    Rating,
    RequestKey,
    Stats,
    StoredImage,
    checked_number,
    checked_text,
)
from .results import Freed, ImageFilter, Pair, Policy, RaterReliability, Sort
from .said import Record, Said, Undo

if TYPE_CHECKING:
    from sqlalchemy import Connection

T = TypeVar("T")


class FeedbackStore:
    """Pictures, and what was said of them. Safe to use from many threads and from several processes at once.

    url: `sqlite:///` and a file; media_dir: a folder for the pictures. Every `add_...` and `undo` returns only once its
    row is on disk, and raises database.DatabaseUnusable if it could not be written, for example on a full disk.
    """

    def __init__(self, url: str, media_dir: Path) -> None:
        self._database = database = Database(url)
        self._media = media.Media(media_dir)
        self._latents = latents.Latents(Path(media_dir) / "latents")
        if self.read_only is None and not self._database.read(derived.is_current):
            self.rebuild()
        outbox = Path(media_dir).parent / "outbox"
        self._outbox = None if is_file(database.url) else Outbox(outbox / folder_of(database.url), database)

    @property
    def waiting(self) -> int:
        """How many judgements wait on this machine's disk for a database server to come back."""
        return 0 if self._outbox is None else self._outbox.waiting

    @property
    def read_only(self) -> str | None:
        """Why nothing can be written, or None."""
        return self._database.read_only

    def close(self) -> None:
        """Finishes what was asked to be written and lets go of the files."""
        if self._outbox is not None:
            self._outbox.close()
        self._database.close()

    # Pictures

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

    # Judgements

    def add_rating(self, rating: Rating, key: RequestKey | None = None) -> str:
        """Appends a rating; the rater's latest that is not undone counts. Raises NotFound for an unknown picture."""
        return self._judge(rating, key)

    def add_ratings(self, ratings: Sequence[Rating]) -> list[str]:
        """Appends many ratings, all or none, in one transaction."""
        return self._database.write(lambda c: [judging.insert_rating(c, r) for r in ratings])

    def add_comparison(self, comparison: Comparison, key: RequestKey | None = None) -> str:
        """Appends a comparison of two pictures. Raises NotFound for an unknown picture."""
        return self._judge(comparison, key)

    def add_ranking(self, ranking: Ranking, key: RequestKey | None = None) -> str:
        """Appends an order of pictures. Raises NotFound for an unknown picture."""
        return self._judge(ranking, key)

    def add_region(self, region: Region, key: RequestKey | None = None) -> str:
        """Appends a marked place. Raises NotFound for an unknown picture, InvalidRecord for a mask that doesn't fit."""
        return self._judge(self._fitting(region), key)

    def _fitting(self, region: Region) -> Region:
        """With the mask as it is kept; while the database does not answer that is seen to later."""
        try:
            image = self.image(region.image_id)
        except DatabaseUnreachable:
            return region
        return replace(region, mask=judging.clean_mask(region, image.width, image.height))

    def add_word_mark(self, mark: WordMark, key: RequestKey | None = None) -> str:
        """Appends a marked word. Raises NotFound for an unknown picture, InvalidRecord for a word not in its prompt."""
        return self._judge(mark, key)

    def add_tag(self, tag: Tag, key: RequestKey | None = None) -> str:
        """Appends a tag; the same tag by the same rater stays one. Raises NotFound for an unknown picture."""
        return self._judge(tag, key)

    def add_interaction(self, interaction: Interaction, key: RequestKey | None = None) -> str:
        """Appends what somebody did with a picture. Raises NotFound for an unknown picture."""
        return self._judge(interaction, key)

    def add_comment(self, comment: Comment, key: RequestKey | None = None) -> str:
        """Appends a comment on a picture. Raises NotFound for an unknown picture."""
        return self._judge(comment, key)

    def add_judged(self, judged: Sequence[full_records.Dated], key: RequestKey | None = None) -> str:
        """Appends judgements of any kind with their times, all or none, in one transaction; returns the last one's id.

        Raises NotFound for an unknown picture, InvalidRecord for a mark that doesn't fit its picture.
        """
        return self._write(lambda c: full_records.insert(c, judged), key)

    def add_said(self, records: Sequence[Record], key: RequestKey | None = None) -> list[str]:
        """Appends what one person said of several pictures in one click, all or none; returns the ids.

        Raises NotFound for an unknown picture, InvalidRecord for a mark that doesn't fit its picture.
        """
        fitting = [self._fitting(one) if isinstance(one, Region) else one for one in records]
        what = [Said(one, Stamp.new()) for one in fitting]
        if what:
            self._say(*what[:-1], replace(what[-1], key=key))
        return [one.stamp.id for one in what]

    def undo(self, judgement_id: str, rater: str | None = None, clear: bool = False) -> str:
        """Takes a judgement back by a row that supersedes it; returns that row's id, the same one when asked again.

        rater: if given, must be the one who judged, else NotYours. clear: also takes back that rater's earlier ratings
        of the same picture on the same axis, which would count again otherwise. Raises NotFound; Conflict for an undo.
        """
        return self._judge(Undo(judgement_id, rater, clear))

    # What follows from them

    def revision(self) -> int:
        """A number that rises with every write."""
        return self._database.read(queries.revision)

    def feedback(
        self, collection: str | None = None, raters: Sequence[str] = (), axis: str = "overall", **more: Any
    ) -> Feedback:
        """The query that a FEEDBACK socket carries, at the revision of the last judgement. more: its other fields.

        New pictures don't change it, so that a graph which captures and learns in one run does not learn again and
        again from the same ratings.
        """
        return Feedback(self._database.read(queries.judgement_revision), collection, tuple(raters), axis, **more)

    def rated(self, feedback: Feedback) -> list[RatedImage]:
        """What counted at the revision of `feedback` of single pictures, one for each picture and rater, oldest first.

        These are ratings; with a tag, who has it and who not; and, if asked for, what interactions say of pictures that
        the rater did not rate.
        """
        return self._database.read(lambda c: asked.rated(c, feedback))

    def compared(self, feedback: Feedback) -> list[ComparedImages]:
        """The comparisons that counted at the revision of `feedback` and the pairs out of rankings, oldest first."""
        return self._database.read(lambda c: asked.compared(c, feedback))

    def embeddings(self, image_ids: Sequence[str], encoder_id: str) -> dict[str, np.ndarray]:
        """Stored embeddings (F,) float32 by picture; pictures that have none are missing."""
        return self._database.read(lambda c: queries.embeddings(c, image_ids, encoder_id))

    def embedding(self, image_id: str, encoder_id: str) -> np.ndarray | None:
        """The stored embedding (F,) float32 of a picture, or None."""
        return self.embeddings([image_id], encoder_id).get(image_id)

    def add_embeddings(self, vectors: Mapping[str, np.ndarray], encoder_id: str) -> None:
        """Keeps embeddings (F,) by picture; one that is there already stays. Raises InvalidRecord if not finite."""
        self._database.write(lambda c: writes.insert_embeddings(c, vectors, encoder_id))

    def add_embedding(self, image_id: str, encoder_id: str, vector: np.ndarray) -> None:
        """Keeps the embedding (F,) of one picture."""
        self.add_embeddings({image_id: vector}, encoder_id)

    def add_model_run(self, run: ModelRun) -> str:
        """Records that a model was fitted."""
        return self._write(lambda c: writes.insert_model_run(c, run))

    def latest_run(self, kind: str) -> ModelRun | None:
        """The fit of this kind that was noted last, or None."""
        return self._database.read(lambda c: lookups.latest_run(c, kind))

    def sources(self, collection: str) -> set[str]:
        """The hashes of the files that came into a collection as files."""
        return self._database.read(lambda c: lookups.sources(c, collection))

    def shows(self, pixel_hash: str, collection: str) -> bool:
        """Whether a picture of the collection has these pixels."""
        return self._database.read(lambda c: lookups.shows(c, pixel_hash, collection))

    def ids_of(self, collection: str | None = None) -> list[str]:
        """The pictures of a collection, or all, oldest first."""
        return self._database.read(lambda c: full_records.ids_of(c, collection))

    def judged(self, image_ids: Sequence[str], revision: int) -> list[full_records.Dated]:
        """Everything that counted at the revision of these pictures and of no others, with its time, oldest first."""
        return self._database.read(lambda c: full_records.judged(c, image_ids, revision))

    def marks(self, image_ids: Sequence[str]) -> dict[str, Marks]:
        """What counts of the marks on each picture; an unknown picture has none."""
        return self._database.read(lambda c: mark_queries.marks(c, image_ids))

    def next_pair(
        self,
        policy: Policy = "learn",
        collection: str | None = None,
        axis: str = "overall",
        rater: str | None = None,
        seed: int | None = None,
    ) -> Pair | None:
        """Two pictures to compare next, None if there are no two; see `picking`. seed: for the same lot again."""
        chance = np.random.default_rng(seed)
        return self._database.read(lambda c: picking.next_pair(c, policy, collection, axis, rater, chance))

    def stats(self) -> Stats:
        """What the store holds. Counts are kept with every write, so this takes no longer in a large store."""
        return self._database.read(lambda c: counts.stats(c, self.read_only))

    def reliability(self) -> list[RaterReliability]:
        """How steadily everybody judges who did, by name."""
        return self._database.read(counts.reliability)

    def ask(self, question: Callable[[Connection], T]) -> T:
        """The answer to a question of a module of its own (wishes, refinements, suggestions), on one snapshot."""
        return self._database.read(question)

    def note(self, change: Callable[[Connection], T]) -> T:
        """What such a module writes, wholly or not at all; returns once it is on disk."""
        return self._database.write(change)

    # Team mode

    def add_token(self, rater: str) -> str:
        """A new token that makes a request this rater's. Only a hash is kept, so it can't be shown again."""
        checked_text(rater, "The rater's name", MAX_NAME, empty=False)
        token = tokens.new_token()
        self._database.write(lambda c: tokens.insert_token(c, rater, token))
        return token

    def revoke_tokens(self, rater: str) -> int:
        """Ends all tokens of a rater and returns how many there were. Raises NotFound for an unknown rater."""
        return self._database.write(lambda c: tokens.revoke_tokens(c, rater))

    def rater_of_token(self, token: str) -> str | None:
        """Whose token it is, or None."""
        return self._database.read(lambda c: tokens.rater_of_token(c, token))

    def backup(self, target: Path) -> None:
        """Makes a folder with the database and every picture as they are now, also while they are written to.

        Raises FileExistsError if it is there, DatabaseUnusable on a server, which has means of its own.
        """
        backups.write(Path(target), self._media.root, self._database.back_up)

    def rebuild(self) -> None:
        """Counts anew what lists and counts are quick by; for a database that was written to by other means."""
        self._database.write(derived.rebuild)

    def _write(self, insert: Callable[[Connection], str], key: RequestKey | None = None) -> str:
        return self._database.write(lambda c: writes.once(c, key, insert))

    def _judge(self, record: Record, key: RequestKey | None = None) -> str:
        return self._say(Said(record, Stamp.new(), key))

    def _say(self, *what: Said) -> str:
        """Appends what one person said in one click, which is kept here while a server does not answer."""
        if self._outbox is not None:
            return self._outbox.write(*what)
        return self._database.write(lambda c: said.insert(c, *what))
