"""The part of the store that takes what people say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from . import (
    full_records,
    judging,
    said,
)
from .database import DatabaseUnreachable
from .judging import Stamp
from .marks import Interaction, Ranking, Region, Tag, WordMark
from .records import (
    Comment,
    Comparison,
    Rating,
    RequestKey,
)
from .said import Record, Said, Undo
from .store_pictures import StoredPictures


class StoredJudgements(StoredPictures):
    """What was said of pictures; every `add_...` and `undo` returns once it is on disk."""

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

    def _judge(self, record: Record, key: RequestKey | None = None) -> str:
        return self._say(Said(record, Stamp.new(), key))

    def _say(self, *what: Said) -> str:
        """Appends what one person said in one click, which is kept here while a server does not answer."""
        if self._outbox is not None:
            return self._outbox.write(*what)
        return self._database.write(lambda c: said.insert(c, *what))
