"""Recurring edits: counted by what was asked for, in how many pictures, by whom; suggested only when often enough."""

from __future__ import annotations

import numpy as np
import pytest

from feedback_loop.feedback import refinements
from feedback_loop.feedback.marks import Interaction, Region
from feedback_loop.feedback.records import Comment, Generation
from feedback_loop.feedback.refinements import Candidate, Round
from feedback_loop.feedback.store import FeedbackStore
from feedback_loop.feedback.suggestions import recurring, suggestions


@pytest.fixture
def pictures(store: FeedbackStore) -> list[str]:
    return [store.add_image(np.full((8, 8, 3), 20 * i, np.uint8), Generation(), f"c{i // 5}") for i in range(10)]


def found(store: FeedbackStore, collection: str | None = None):
    return store.ask(lambda c: recurring(c, collection))


def names(store: FeedbackStore, minimum: int = 3) -> list[str]:
    return [one.name for one in suggestions(found(store), minimum)]


def test_a_wish_is_counted_once_for_each_picture_whoever_says_it(store, pictures):
    for rater, text in (("ann", "brighter background"), ("ann", "make the background brighter"), ("bob", "no text")):
        store.add_comment(Comment(pictures[0], text, rater))
    store.add_comment(Comment(pictures[1], "the background should be brighter!", "bob"))
    words = found(store).words
    assert words[True, "bright background"].pictures == 2 and words[True, "bright background"].raters == 2
    assert words[False, "text"].pictures == 1
    assert words[True, "bright background"].examples == (pictures[1], pictures[0])


def test_something_is_suggested_from_the_minimum_on(store, pictures):
    for i in range(2):
        store.add_comment(Comment(pictures[i], "less clutter", "ann"))
    assert names(store) == []
    last = store.add_comment(Comment(pictures[2], "less clutter", "ann"))
    assert names(store) == ["less: clutter"]
    store.undo(last)
    assert names(store) == [] and names(store, 2) == ["less: clutter"]


def test_a_wish_and_its_opposite_suggest_nothing(store, pictures):
    for i in range(3):
        store.add_comment(Comment(pictures[i], "dark", "ann"))
        store.add_comment(Comment(pictures[i], "too dark", "bob"))
        store.add_comment(Comment(pictures[i], "larger", "bob"))
    assert names(store) == ["more: large"]


def test_marks_are_counted_by_label_and_by_place(store, pictures):
    for i in range(3):
        store.add_region(Region(pictures[i], "point", ((0.9, 0.95),), "Watermark", "ann", comment="remove the logo"))
    store.add_region(Region(pictures[3], "rect", ((0.4, 0.4), (0.6, 0.6)), "good", "ann"))
    store.add_region(Region(pictures[4], "rect", ((0.4, 0.4), (0.6, 0.6)), "artifact", "ann"))
    seen = found(store)
    assert {label: one.pictures for label, one in seen.labels.items()} == {"watermark": 3, "artifact": 1}
    assert seen.places == {"bottom right": 3, "middle": 1}
    assert names(store) == ["less: logo", "penalty: watermark"]


def test_accepted_rounds_count_what_was_asked_for_and_suggest_a_training(store, pictures):
    for i in range(3):
        for j in range(7):
            made = Round(pictures[i], "no stripes", (Candidate(pictures[3 + j]),))
            round_id = store.note(lambda c, made=made: refinements.add(c, made))
            if j < 6 or i < 2:
                store.note(lambda c, r=round_id, k=pictures[3 + j]: refinements.accept(c, r, k, "ann"))
    seen = found(store)
    assert (seen.rounds, seen.accepted) == (21, 20)
    assert seen.words[False, "stripes"].pictures == 3
    assert names(store) == ["train: a LoRA on what was accepted", "less: stripes"]


def test_a_round_that_a_reward_alone_decided_says_nothing_of_people(store, pictures):
    round_id = store.note(lambda c: refinements.add(c, Round(pictures[0], "no text", (Candidate(pictures[1]),))))
    store.note(lambda c: refinements.accept(c, round_id, pictures[1], "reward", "best"))
    assert found(store).accepted == 0 and found(store).words == {}


def test_interactions_are_counted_and_a_collection_is_looked_at_alone(store, pictures):
    store.add_interaction(Interaction("inpainted", pictures[0], "ann"))
    store.add_interaction(Interaction("inpainted", pictures[9], "ann"))
    store.add_interaction(Interaction("deleted", pictures[9], "ann"))
    store.add_comment(Comment(pictures[9], "larger", "ann"))
    assert found(store).interactions == {"inpainted": 2, "deleted": 1}
    assert found(store, "c0").interactions == {"inpainted": 1} and found(store, "c0").words == {}


def test_an_empty_store_has_nothing_to_suggest(store):
    seen = found(store)
    assert (seen.words, seen.labels, seen.rounds) == ({}, {}, 0) and suggestions(seen) == []
