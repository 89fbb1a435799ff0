"""Rules look at each picture by itself; a threshold is met or not, a step is in range or not."""

from __future__ import annotations

import pytest
import torch

from feedback_loop.guidance.rules import ACTIONS, MOST_BOOST, Course, Rule, earlier

SCORES = torch.tensor([-1.0, 0.5, 2.0])


@pytest.mark.parametrize(
    "compare, threshold, met",
    [("below", 0.5, [0]), ("above", 0.5, [2]), ("below", -5.0, []), ("above", -5.0, [0, 1, 2])],
)
def test_a_rule_fires_on_its_side_of_the_threshold_alone(compare, threshold, met):
    course = Course(3, [Rule(compare, threshold, "stop")])
    assert course.look(0, SCORES, 0.5) == met
    assert course.stopped.nonzero().flatten().tolist() == met


@pytest.mark.parametrize("percent, fires", [(0.29, False), (0.3, True), (0.9, True), (0.91, False)])
def test_a_rule_looks_at_its_share_of_the_run_alone(percent, fires):
    course = Course(3, [Rule("above", -5.0, "stop", start=0.3, end=0.9)])
    assert bool(course.look(0, SCORES, percent)) is fires


def test_a_rule_fires_so_often_for_each_picture_and_boosts_multiply():
    course = Course(3, [Rule("above", 0.0, "boost guidance", amount=3.0, times=2)])
    fired = [course.look(0, SCORES, 0.5) for _ in range(3)]
    assert fired == [[1, 2], [1, 2], []]
    assert course.factor.tolist() == [1.0, 9.0, 9.0]


def test_boosts_that_fire_again_and_again_had_no_ceiling():
    """Three to the fifth is 243; ten is the most, and from there a weakening counts in full."""
    course = Course(
        3, [Rule("above", 0.0, "boost guidance", amount=3.0, times=5), Rule("above", 1.0, "boost guidance", amount=0.5)]
    )
    for _ in range(5):
        course.look(0, SCORES, 0.5)
    assert course.factor.tolist() == [1.0, MOST_BOOST, MOST_BOOST] and MOST_BOOST == 10
    course.look(1, SCORES, 0.5)
    assert course.factor.tolist() == [1.0, 10.0, 5.0]


def test_a_picture_that_was_stopped_is_looked_at_no_more():
    course = Course(3, [Rule("below", 0.0, "stop"), Rule("below", 1.0, "boost guidance", amount=2.0)])
    course.look(0, SCORES, 0.5)
    assert course.look(1, SCORES, 0.5) == [1]
    assert course.factor.tolist() == [1.0, 2.0, 1.0]


def test_a_picture_that_was_sent_back_is_looked_at_no_more_until_it_runs_again():
    """What the rest of its pass would show is never seen; in its second run the others are the ones left alone."""
    course = Course(3, [Rule("above", 1.0, "step back"), Rule("above", -5.0, "stop", times=2)])
    assert course.look(0, SCORES, 0.4) == [2]
    assert course.look(1, SCORES, 0.6) == [0, 1]
    course.running = torch.tensor([False, False, True])
    assert course.look(1, SCORES, 0.6) == [2]


def test_what_was_done_is_told_of_each_picture_in_order():
    course = Course(3, [Rule("above", 1.0, "step back", amount=3.4, name="taste"), Rule("above", 1.0, "stop")])
    course.look(0, SCORES, 0.25)
    course.running[:] = True
    course.look(1, SCORES, 0.5)
    assert course.texts() == {2: ["stepped back at 25%: taste 2 above 1", "stopped at 50%: reward 2 above 1"]}
    assert course.backwards == {2: 3}


def test_going_back_ends_at_the_first_step():
    assert [earlier(5, 3), earlier(2, 3)] == [2, 0]


def test_every_action_can_be_told_in_a_tag():
    for action in ACTIONS:
        text = Rule("below", -123456.789, action, name="no watermark").told(-999999.5, 1.0)
        assert len(text) <= 100 and text.isprintable()
