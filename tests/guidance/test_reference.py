"""Attention that looks at references, on sizes where it can be compared with one softmax over everything."""

from __future__ import annotations

import torch

from feedback_loop.guidance.reference import (
    LONGEST,
    Layers,
    apart,
    beside,
    looking_at,
    merged,
    noise_like,
    one_row,
    rows_of,
)


def attend(q, k, v):
    return torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1) @ v


def tokens(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_at_strength_1_the_references_stand_beside_the_pictures_own_tokens():
    own, seen = [tokens(i, 2, 5, 4) for i in range(3)], [tokens(i, 1, 7, 4) for i in (3, 4)]
    result = looking_at(attend, tuple(own), tuple(seen), 1.0, torch.tensor([0, 1]))
    keys, values = (
        torch.cat([mine, theirs.expand(2, 7, 4)], dim=1) for mine, theirs in zip(own[1:], seen, strict=True)
    )
    torch.testing.assert_close(result, attend(own[0], keys, values))


def test_at_strength_0_and_in_rows_that_do_not_look_nothing_changes():
    own, seen = tuple(tokens(i, 3, 5, 4) for i in range(3)), tuple(tokens(i, 1, 7, 4) for i in (3, 4))
    plain = attend(*own)
    assert torch.equal(looking_at(attend, own, seen, 0.0, torch.arange(3)), plain)
    assert torch.equal(looking_at(attend, own, seen, 1.0, torch.zeros(0, dtype=torch.long)), plain)
    some = looking_at(attend, own, seen, 1.0, torch.tensor([1]))
    assert torch.equal(some[[0, 2]], plain[[0, 2]]) and not torch.equal(some[1], plain[1])


def test_a_negative_strength_goes_the_other_way():
    own, seen = tuple(tokens(i, 1, 5, 4) for i in range(3)), tuple(tokens(i, 1, 7, 4) for i in (3, 4))
    plain, rows = attend(*own), torch.tensor([0])
    towards, away = (looking_at(attend, own, seen, strength, rows) - plain for strength in (0.5, -0.5))
    torch.testing.assert_close(towards, -away)


def test_what_sets_both_sides_apart_turns_with_them_cancels_what_they_share_and_has_a_longest_step():
    own = tuple(tokens(i, 3, 5, 4) for i in range(3))
    rows = torch.tensor([0, 2])
    liked, disliked = (beside(attend, own, (tokens(i, 1, 7, 4), tokens(i + 1, 1, 7, 4)), rows) for i in (3, 5))
    step = apart(liked, disliked, 0.1)
    torch.testing.assert_close(apart(disliked, liked, 0.1), -step)
    assert step.shape == (2, 5, 4) and step.abs().max() > 0.01
    assert apart(liked, liked, 8.0).abs().max() == 0
    seen = looking_at(attend, own, (tokens(3, 1, 7, 4), tokens(4, 1, 7, 4)), 1.0, rows)[rows].norm(dim=-1)
    far = apart(liked, disliked, 1e6)
    torch.testing.assert_close(far.norm(dim=-1), LONGEST * seen)
    torch.testing.assert_close(far / far.norm(dim=-1, keepdim=True), step / step.norm(dim=-1, keepdim=True))


def test_heads_may_stand_before_the_tokens():
    """Flux holds (B, heads, T, D); one_row joins the references along the tokens there too."""
    assert one_row(tokens(0, 3, 2, 5, 4)).shape == (1, 2, 15, 4)
    own, seen = tuple(tokens(i, 2, 2, 5, 4) for i in range(3)), tuple(tokens(i, 1, 2, 15, 4) for i in (3, 4))
    assert looking_at(attend, own, seen, 1.0, torch.arange(2)).shape == (2, 2, 5, 4)


def test_only_the_pictures_tokens_are_kept_where_text_stands_before_them():
    layers = Layers(tokens=4)
    keys = tokens(0, 1, 10, 2)
    layers.record(keys, keys + 1)
    [(kept, values)] = layers.side(slice(None))
    assert torch.equal(kept, keys[:, 6:]) and torch.equal(values, keys[:, 6:] + 1)


def test_references_of_several_sizes_are_one_row():
    first = [(tokens(0, 1, 4, 2), tokens(1, 1, 4, 2)), (tokens(2, 1, 1, 2), tokens(3, 1, 1, 2))]
    second = [(tokens(4, 1, 6, 2), tokens(5, 1, 6, 2)), (tokens(6, 1, 2, 2), tokens(7, 1, 2, 2))]
    assert [keys.shape[1] for keys, _ in merged([first, second])] == [10, 3]


def test_likes_go_to_the_rows_of_the_prompt_and_dislikes_to_those_of_the_negative():
    """ComfyUI puts the negative first: [1, 0] with a batch of 4 is rows 0, 1 of the negative and 2, 3 of the prompt."""
    liked, disliked = rows_of([1, 0], 4)
    assert liked.tolist() == [2, 3] and disliked.tolist() == [0, 1]
    assert rows_of([0], 3)[0].tolist() == [0, 1, 2] and len(rows_of([0], 3)[1]) == 0


def test_the_noise_of_a_reference_is_the_same_at_every_step():
    latent = torch.zeros(1, 4, 8, 8)
    assert torch.equal(noise_like(latent, 1), noise_like(latent, 1))
    assert not torch.equal(noise_like(latent, 1), noise_like(latent, 2))
