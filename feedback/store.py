"""The store: append a judgement and get its id back once it is on disk; everything else is a query at a revision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import (
    asked,
    backups,
    counts,
    full_records,
    lookups,
    mark_queries,
    picking,
    queries,
    tokens,
    writes,
)
from .marks import Marks
from .records import (
    MAX_NAME,
    ComparedImages,
    Feedback,
    ModelRun,
    RatedImage,
    Stats,
    checked_text,
)
from .results import Pair, Policy, RaterReliability
from .store_judgements import StoredJudgements


class FeedbackStore(StoredJudgements):
    """Pictures, and what was said of them. Safe to use from many threads and from several processes at once.

    url: `sqlite:///` and a file; media_dir: a folder for the pictures. Every `add_...` and `undo` returns only once its
    row is on disk, and raises database.DatabaseUnusable if it could not be written, for example on a full disk.
    """

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
