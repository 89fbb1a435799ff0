"""Rounds of refinement in the store: kept, chosen from, shown as a family, and forgotten with their pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from feedback_loop.feedback import refinements
from feedback_loop.feedback.marks import Region
from feedback_loop.feedback.records import Generation, InvalidRecord, NotFound
from feedback_loop.feedback.refinements import Candidate, Round
from feedback_loop.feedback.store import FeedbackStore


def picture(store: FeedbackStore, value: int) -> str:
    return store.add_image(np.full((8, 8, 3), value, np.uint8), Generation(prompt="two stars"), "rounds")


@pytest.fixture
def pictures(store: FeedbackStore) -> list[str]:
    return [picture(store, 10 * i) for i in range(8)]


def add(store: FeedbackStore, parent: str, *candidates: str, comment: str = "no text") -> str:
    made = Round(parent, comment, tuple(Candidate(one, float(-i)) for i, one in enumerate(candidates)), ("watermark",))
    return store.note(lambda c: refinements.add(c, made, "ann"))


def accept(store: FeedbackStore, round_id: str, image_id: str | None, rater: str = "ann") -> str:
    return store.note(lambda c: refinements.accept(c, round_id, image_id, rater))


def pairs(store: FeedbackStore) -> set[tuple[str, str]]:
    return {(one.left, one.right) for one in store.compared(store.feedback("rounds")) if one.winner == "left"}


def test_a_round_is_read_back_as_it_was_recorded(store, pictures):
    round_id = add(store, *pictures[:3])
    found = store.ask(lambda c: refinements.round_by_id(c, round_id))
    assert (found.parent, found.comment, found.labels) == (pictures[0], "no text", ("watermark",))
    assert [(one.image_id, one.score) for one in found.candidates] == [(pictures[1], 0.0), (pictures[2], -1.0)]
    assert not found.decided and found.accepted is None


def test_what_a_person_accepts_is_preferred_to_the_rest_and_to_the_parent(store, pictures):
    """Two candidates and the parent: accepted over both, two pairs."""
    parent, good, bad = pictures[:3]
    accept(store, add(store, parent, good, bad), good)
    assert pairs(store) == {(good, bad), (good, parent)}


def test_where_nothing_was_good_the_parent_is_preferred(store, pictures):
    parent, first, second = pictures[:3]
    round_id = add(store, parent, first, second)
    accept(store, round_id, None)
    assert pairs(store) == {(parent, first), (parent, second)}
    found = store.ask(lambda c: refinements.round_by_id(c, round_id))
    assert found.decided and found.accepted is None


def test_choosing_again_takes_the_earlier_choice_back(store, pictures):
    parent, first, second = pictures[:3]
    round_id = add(store, parent, first, second)
    accept(store, round_id, first)
    accept(store, round_id, second)
    assert pairs(store) == {(second, first), (second, parent)}
    assert store.ask(lambda c: refinements.round_by_id(c, round_id)).accepted == second
    accept(store, round_id, first, "bob")
    assert (second, first) in pairs(store) and (first, second) in pairs(store)


def test_the_order_of_a_reward_is_no_judgement_of_a_person(store, pictures):
    round_id = add(store, *pictures[:3])
    store.note(lambda c: refinements.accept(c, round_id, pictures[1], "reward", "best"))
    assert pairs(store) == set()
    assert store.ask(lambda c: refinements.round_by_id(c, round_id)).how == "best"


def test_refining_a_candidate_further_chooses_it(store, pictures):
    first = add(store, *pictures[:3])
    store.note(lambda c: refinements.accept(c, first, pictures[1], "reward", "best"))
    add(store, pictures[2], pictures[3])
    found = store.ask(lambda c: refinements.round_by_id(c, first))
    assert found.accepted == pictures[2] and found.how == "went on"
    accept(store, first, pictures[1])
    add(store, pictures[2], pictures[4])
    assert store.ask(lambda c: refinements.round_by_id(c, first)).accepted == pictures[1]


def test_a_family_holds_every_branch_from_whichever_of_its_pictures_it_is_asked(store, pictures):
    """0 -> (1, 2); 1 -> 3; 2 -> 4; 3 -> 5: four rounds, the root is 0 from every picture, also after a restart."""
    rounds = [
        add(store, pictures[0], pictures[1], pictures[2]),
        add(store, pictures[1], pictures[3]),
        add(store, pictures[2], pictures[4]),
        add(store, pictures[3], pictures[5]),
    ]
    for image_id in pictures[:6]:
        family = store.ask(lambda c, image_id=image_id: refinements.family(c, image_id))
        assert family.root == pictures[0] and [one.id for one in family.rounds] == rounds
    alone = store.ask(lambda c: refinements.family(c, pictures[7]))
    assert alone.root == pictures[7] and alone.rounds == ()


def test_a_family_survives_the_store(database_url: str, tmp_path: Path):
    store = FeedbackStore(database_url, tmp_path / "media")
    ids = [picture(store, i) for i in range(11)]
    for parent, child in zip(ids, ids[1:], strict=False):
        add(store, parent, child)
    before = store.ask(lambda c: refinements.family(c, ids[-1]))
    store.close()
    again = FeedbackStore(database_url, tmp_path / "media")
    assert again.ask(lambda c: refinements.family(c, ids[-1])) == before and len(before.rounds) == 10
    again.close()


def test_pictures_that_are_each_others_outcome_end_the_way_up(store, pictures):
    add(store, pictures[0], pictures[1])
    add(store, pictures[1], pictures[0])
    assert len(store.ask(lambda c: refinements.family(c, pictures[0])).rounds) == 2


def test_deleting_a_picture_takes_it_out_of_its_rounds(store, pictures):
    first, second = add(store, *pictures[:3]), add(store, pictures[1], pictures[3])
    accept(store, first, pictures[1])
    store.delete_image(pictures[1])
    found = store.ask(lambda c: refinements.round_by_id(c, first))
    assert [one.image_id for one in found.candidates] == [pictures[2]] and found.accepted is None
    with pytest.raises(NotFound):
        store.ask(lambda c: refinements.round_by_id(c, second))
    store.delete_image(pictures[2])
    with pytest.raises(NotFound):
        store.ask(lambda c: refinements.round_by_id(c, first))


def test_pictures_of_a_round_are_not_pruned(store, pictures):
    add(store, *pictures[:3])
    assert store.prune().images == 5
    assert set(store.ids_of("rounds")) == set(pictures[:3])


def test_a_picture_is_found_by_its_pixels(store, pictures):
    image = store.image(pictures[3])
    assert store.ask(lambda c: refinements.with_pixels(c, image.pixel_hash)) == [pictures[3]]
    assert store.ask(lambda c: refinements.with_pixels(c, image.pixel_hash, "elsewhere")) == []


def test_of_pictures_recorded_twice_the_one_to_go_on_from_is_in_a_round_or_marked_or_the_first(store, pictures):
    def again(value: int) -> str:
        return store.add_image(np.full((8, 8, 3), value, np.uint8), Generation(), "elsewhere")

    def known(image_id: str) -> str | None:
        return store.ask(lambda c: refinements.known_as(c, store.image(image_id).pixel_hash))

    copy = again(10)
    assert known(copy) == pictures[1]
    store.add_region(Region(copy, "point", ((0.5, 0.5),), "artifact", "ann"))
    assert known(pictures[1]) == copy
    add(store, pictures[0], pictures[1])
    assert known(copy) == pictures[1]
    assert store.ask(lambda c: refinements.known_as(c, "blake3:none")) is None
    family = store.ask(lambda c: refinements.family(c, copy))
    assert family.root == pictures[0] and len(family.rounds) == 1


def test_what_cannot_be_a_round_is_refused(store, pictures):
    with pytest.raises(InvalidRecord, match="1 to 64 candidates"):
        Round(pictures[0], "", ())
    with pytest.raises(InvalidRecord):
        Round(pictures[0], "", (Candidate(pictures[1], float("nan")),))
    with pytest.raises(NotFound):
        add(store, pictures[0], "nothing")
    round_id = add(store, *pictures[:2])
    with pytest.raises(InvalidRecord, match="none of this round's candidates"):
        accept(store, round_id, pictures[5])
    with pytest.raises(NotFound):
        accept(store, "nothing", None)
