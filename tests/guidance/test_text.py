"""Words taken apart and encodings moved, on tensors whose results can be worked out by hand."""

from __future__ import annotations

import pytest
import torch

from feedback_loop.feedback.wish_words import wishes
from feedback_loop.guidance.text import (
    Said,
    TextFeedbackError,
    appended,
    directed,
    during,
    everywhere,
    listed,
    moved,
    rounds,
    shifted,
    told,
)


@pytest.mark.parametrize(
    ("comment", "wanted", "unwanted"),
    [
        ("make the background brighter", ["bright background"], []),
        ("less cluttered, no text", [], ["cluttered", "text"]),
        ("make the star larger and remove the watermark", ["large star"], ["watermark"]),
        ("Get rid of the logo but keep the sky", ["sky"], ["logo"]),
        ("the background is too dark", [], ["dark background"]),
        ("make the background less busy", [], ["busy background"]),
        ("it's not bright enough", ["bright"], []),
        ("not so dark", [], ["dark"]),
        ("I would like two blue stars on the left", ["two blue stars on the left"], []),
        ("please make it a bit larger", ["large"], []),
        ("plain background please", ["plain background"], []),
        ("No text this time, please. A star instead, thank you!", ["star"], ["text"]),
        ("red and blue stars", ["red and blue stars"], []),
        ("a cat wearing a hat", ["cat wearing a hat"], []),
        ("fewer people. warmer light; 0.5 of the size", ["warm light", "0.5 of the size"], ["people"]),
        ("more red, without stripes", ["red"], ["stripes"]),
        ("plus clair, s'il vous plaît", ["plus clair", "s'il vous plaît"], []),
        ("", [], []),
        (" ,, no. not ", [], []),
    ],
)
def test_a_comment_is_taken_apart_into_what_is_wanted_and_what_is_not(comment, wanted, unwanted):
    found = wishes(comment)
    assert [wish.text for wish in found if wish.wanted] == wanted
    assert [wish.text for wish in found if not wish.wanted] == unwanted


def test_a_comment_without_end_is_read_in_time_and_cut():
    """Ten thousand parts, and a part of 200,000 letters that no pattern may take long over."""
    assert len(wishes(", ".join(f"thing {i}" for i in range(10_000)))) == 64
    assert wishes("very " * 20_000 + "a " * 20_000) == []
    assert len(wishes("x " * 20_000)) == 1


def test_comments_of_earlier_rounds_count_half_as_much_each_round():
    said = rounds("larger", "bright\ndark sky\n\n", 0.5)
    assert said == [Said("bright", 0.25), Said("dark sky", 0.5), Said("larger", 1.0)]
    assert listed(said) == "bright\ndark sky\nlarger"
    assert rounds("", listed(said), 1.0) == [Said("bright"), Said("dark sky"), Said("larger")]


def test_a_line_may_begin_with_its_own_weight_and_weightless_ones_are_gone():
    assert rounds("", "0.3: bright\n0: dark\nred: or blue", 0.5) == [Said("bright", 0.3), Said("red: or blue", 0.5)]
    assert rounds("larger", "bright", 0.0) == [Said("larger")]
    with pytest.raises(TextFeedbackError, match=r"1\.2\.3: much.*from 0 to 10"):
        rounds("", "1.2.3: much", 0.5)
    with pytest.raises(TextFeedbackError, match="from 0 to 10"):
        rounds("", "11: much", 0.5)


def test_what_was_said_has_a_wanted_and_an_unwanted_phrase():
    said = Said("brighter, no text, less clutter")
    assert said.phrase(wanted=True) == "bright" and said.phrase(wanted=False) == "text, clutter"
    assert told("two stars,", "", "bright ") == "two stars, bright" and told("", "bright") == "bright"


def tokens(*rows):
    return torch.tensor([rows], dtype=torch.float32)


def test_strength_1_gives_the_encoding_with_the_wish_and_strength_0_the_very_tensor():
    """base = E(prompt), so base + 1 * (E(prompt, wish) - E(prompt)) is E(prompt, wish), norms included."""
    plain, wish = tokens((3, 4), (1, 0)), tokens((3, 4), (0, 2))
    torch.testing.assert_close(directed(plain, wish, plain, 1.0), wish)
    cond = [[plain, {}]]
    assert moved(cond, [[wish, {}]], cond, 0.0)[0] is cond[0]


def test_a_moved_token_keeps_its_length_and_an_unmoved_one_its_bits():
    """Token 2 goes from (1, 0) to (-1, 2) at strength 2, turned to the length of the wish's token, 1; (3, 4) stays."""
    plain, wish = tokens((3, 4), (1, 0)), tokens((3, 4), (0, 1))
    result = directed(plain, wish, plain, 2.0)
    assert torch.equal(result[:, 0], plain[:, 0])
    torch.testing.assert_close(result[0, 1], torch.tensor([-1.0, 2.0]) / 5**0.5)


def test_half_the_strength_is_half_the_way_in_length_too():
    """(1, 0) + .5 * ((0, 3) - (1, 0)) = (.5, 1.5), turned to the length (1 + 3) / 2."""
    result = directed(tokens((1, 0)), tokens((0, 3)), tokens((1, 0)), 0.5)
    torch.testing.assert_close(result[0, 0], torch.tensor([0.5, 1.5]) * 2 / 2.5**0.5)


def test_a_negative_strength_moves_away_and_keeps_the_bases_length():
    """(1, 0) - ((0, 1) - (1, 0)) = (2, -1), of length 1 again."""
    result = directed(tokens((1, 0)), tokens((0, 1)), tokens((1, 0)), -1.0)
    torch.testing.assert_close(result[0, 0], torch.tensor([2.0, -1.0]) / 5**0.5)


def test_a_longer_text_is_reached_by_repeating_the_last_token():
    """T5 and the chat models do not pad: three tokens with the wish, two without. At strength 1 it is the longer."""
    plain, wish = tokens((1, 0), (0, 1)), tokens((1, 0), (0, 1), (0, 5))
    result = directed(plain, wish, plain, 1.0)
    assert result.shape == (1, 3, 2)
    assert torch.equal(result[:, :2], plain)
    torch.testing.assert_close(result, wish)


def test_the_pooled_vector_moves_along_and_a_text_encoder_without_one_is_fine():
    plain, wish = tokens((1, 0)), tokens((0, 1))
    pooled = [[plain, {"pooled_output": torch.tensor([[2.0, 0.0]]), "guidance": 3.5}]]
    to = [[wish, {"pooled_output": torch.tensor([[0.0, 2.0]])}]]
    [[_, settings]] = moved(pooled, to, [[plain, {"pooled_output": torch.tensor([[2.0, 0.0]])}]], 1.0)
    torch.testing.assert_close(settings["pooled_output"], torch.tensor([[0.0, 2.0]]))
    assert settings["guidance"] == 3.5
    assert moved([[plain, {}]], [[wish, {}]], [[plain, {}]], 1.0)[0][1] == {}
    assert moved([[plain, {"pooled_output": None}]], to, [[plain, {}]], 1.0)[0][1] == {"pooled_output": None}


def test_the_attention_mask_grows_with_the_text():
    plain, wish = tokens((1, 0), (0, 1)), tokens((1, 0), (0, 1), (0, 5))
    base = [[plain, {"attention_mask": torch.tensor([[1, 0]])}]]
    [[_, settings]] = moved(base, [[wish, {"attention_mask": torch.tensor([[1, 1, 1]])}]], base, 1.0)
    assert settings["attention_mask"].tolist() == [[1, 1, 1]]


def test_every_entry_of_a_combined_conditioning_moves_by_the_same_direction():
    plain, wish = tokens((1, 0)), tokens((0, 1))
    both = moved([[plain, {"strength": 1.0}], [2 * plain, {"strength": 0.3}]], [[wish, {}]], [[plain, {}]], 1.0)
    torch.testing.assert_close(both[0][0], wish)
    torch.testing.assert_close(both[1][0][0, 0], torch.tensor([1.0, 1.0]) / 2**0.5 * 2**0.5)
    assert [entry[1]["strength"] for entry in both] == [1.0, 0.3]


def test_encodings_of_another_width_are_refused_in_a_sentence():
    with pytest.raises(TextFeedbackError, match="2 numbers wide.*are 3: connect the CLIP"):
        directed(tokens((1, 0)), tokens((1, 0, 0)), tokens((1, 0, 0)), 1.0)


def test_the_type_of_the_conditioning_is_kept():
    half = tokens((1, 0)).half()
    assert directed(half, tokens((0, 1)), tokens((1, 0)), 1.0).dtype == torch.float16


def test_everywhere_adds_the_mean_direction_to_every_token_after_the_start_and_keeps_lengths():
    """E(wish) - E() is 0 for the first token and (0, 2), (0, 4) for the next two: (0, 3) on average, at strength 1."""
    base = tokens((9, 9), (3, 4), (1, 0), (0, 0))
    wish, nothing = tokens((1, 0), (0, 2), (0, 4)), tokens((1, 0), (0, 0), (0, 0))
    result = everywhere(base, wish, nothing, 1.0)[0]
    assert torch.equal(result[0], base[0, 0])
    torch.testing.assert_close(result[1], torch.tensor([3.0, 7.0]) * 5 / 58**0.5)
    torch.testing.assert_close(result[2], torch.tensor([1.0, 3.0]) / 10**0.5)
    assert result[3].tolist() == [0, 0]
    assert torch.equal(everywhere(base, wish, wish, 1.0), base)


def test_everywhere_takes_a_wish_of_another_length_and_moves_the_pooled_vector():
    """Two tokens for the wish, one for nothing, whose last one is repeated: (0, 2) and (0, 4)."""
    base = [[tokens((1, 0), (1, 0), (1, 0)), {"pooled_output": torch.tensor([[1.0, 0.0]])}]]
    wish = [[tokens((0, 2), (0, 4)), {"pooled_output": torch.tensor([[0.0, 1.0]])}]]
    nothing = [[tokens((0, 0)), {"pooled_output": torch.tensor([[0.0, 0.0]])}]]
    [[moved_tokens, settings]] = shifted(base, wish, nothing, 1.0)
    torch.testing.assert_close(moved_tokens[0], torch.tensor([1.0, 3.0]).expand(3, 2) / 10**0.5)
    torch.testing.assert_close(settings["pooled_output"], torch.tensor([[1.0, 1.0]]) / 2**0.5)
    assert shifted(base, wish, nothing, 0.0)[0] is base[0]


def test_appending_puts_the_wish_beside_the_prompt_with_its_weight():
    base = [[tokens((1, 0)), {"pooled_output": torch.ones(1, 2), "guidance": 3.5, "strength": 0.5}]]
    result = appended(base, [[tokens((0, 1)), {"pooled_output": torch.zeros(1, 2)}]], 0.8)
    assert result[0] is base[0]
    assert result[1][1]["strength"] == pytest.approx(0.4) and result[1][1]["guidance"] == 3.5
    assert torch.equal(result[1][1]["pooled_output"], torch.zeros(1, 2))
    assert appended(base, base, 0.0) == base


def test_within_an_interval_one_of_the_two_holds_at_a_time():
    plain, changed = [[tokens((1, 0)), {}]], [[tokens((0, 1)), {}]]
    parts = during(plain, changed, 0.2, 0.6)
    at = [(e[0][0, 0, 0].item(), e[1]["start_percent"], e[1]["end_percent"]) for e in parts]
    assert sorted(at, key=lambda part: part[1]) == [
        (1.0, 0.0, pytest.approx(0.2, abs=1e-4)),
        (0.0, 0.2, 0.6),
        (1.0, pytest.approx(0.6, abs=1e-4), 1.0),
    ]
    for percent in (0.0, 0.1, 0.2, 0.4, 0.6, 0.7, 1.0):
        assert sum(start <= percent <= end for _, start, end in at) == 1
    assert during(plain, changed, 0.0, 1.0)[0] is changed[0]


def test_an_entry_that_has_an_interval_keeps_within_it():
    plain = [[tokens((1, 0)), {"start_percent": 0.3, "end_percent": 0.5}]]
    parts = during(plain, plain, 0.4, 1.0)
    assert [(p[1]["start_percent"], p[1]["end_percent"]) for p in parts] == [
        (0.3, pytest.approx(0.4, abs=1e-4)),
        (0.4, 0.5),
    ]
