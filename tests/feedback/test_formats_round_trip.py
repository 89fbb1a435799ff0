"""A bundle of generated records comes back from each format as far as the format holds it, and the rest is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from feedback_loop.feedback.formats import FORMATS, reading, write
from feedback_loop.feedback.formats.bundle import Bundle, Report, Said
from feedback_loop.feedback.marks import Ranking, Region, Tag, WordMark
from feedback_loop.feedback.records import Comment, Comparison, Generation, Rating
from feedback_loop.tests.feedback import bundles

SEEDS = range(4)
SOMEBODY = "somebody"


def there_and_back(name: str, bundle: Bundle, folder: Path) -> tuple[Bundle, Report]:
    """What is read from what was written, with the pixels read while the file was open."""
    path = folder / f"{name}{FORMATS[name].suffix}"
    report = write(name, bundle, path)
    with reading(path, SOMEBODY) as back:
        pixels = bundles.pixels(back)
    assert pixels == {key: data for key, data in bundles.pixels(bundle).items() if key in pixels}
    return back, report


def held_by(name: str, said: list[Said]) -> list[Said]:
    """What the format can hold of it, as it comes back."""
    return [kept for one in said if (kept := HELD[name](one)) is not None]


def of_one_picture(one: Said) -> Said | None:
    return one if isinstance(one.record, (Rating, Region, WordMark, Tag, Comment)) else None


def labelled_pair(one: Said) -> Said | None:
    """Without a strength, for which there is no column."""
    if isinstance(one.record, Comparison) and one.record.winner in ("left", "right", "tie"):
        return Said(replace(one.record, strength=None), one.at)
    return None


def chosen_and_rejected(one: Said) -> Said | None:
    if not isinstance(one.record, Comparison) or one.record.winner not in ("left", "right"):
        return None
    sides = [one.record.left, one.record.right]
    left, right = sides if one.record.winner == "left" else reversed(sides)
    return Said(Comparison(left, right, "left", SOMEBODY))


def ranks(one: Said) -> Said | None:
    if isinstance(one.record, Ranking):
        return Said(replace(one.record, rater=SOMEBODY))
    pair = labelled_pair(one)
    return pair and Said(replace(pair.record, rater=SOMEBODY))


def pairs_and_rankings_with_raters(one: Said) -> Said | None:
    if isinstance(one.record, Ranking):
        return Said(one.record)
    if isinstance(one.record, Comparison) and one.record.winner in ("left", "right"):
        return Said(replace(one.record, strength=None))
    return None


def tasks(one: Said) -> Said | None:
    record = one.record
    if isinstance(record, Rating):
        return one if (record.scale_min, record.scale_max) == (1, 5) else None
    return of_one_picture(one)


def regions(one: Said) -> Said | None:
    return one if isinstance(one.record, Region) else None


HELD = {
    "imagefolder": of_one_picture,
    "parquet": of_one_picture,
    "pick-a-pic": labelled_pair,
    "trl": chosen_and_rejected,
    "imagereward": ranks,
    "hpdv2": pairs_and_rankings_with_raters,
    "label-studio": tasks,
    "coco": regions,
}


def test_every_format_has_its_round_trip_here() -> None:
    assert set(HELD) == set(FORMATS)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", FORMATS)
def test_what_a_format_can_hold_comes_back_as_it_was(name: str, seed: int, tmp_path: Path) -> None:
    bundle = bundles.generated(seed)
    back, _ = there_and_back(name, bundle, tmp_path)
    expected = held_by(name, bundle.said)
    assert len(expected) >= 5, "the bundle must have something that the format holds"
    assert bundles.counted(back.said) == bundles.counted(expected)
    assert not back.report.left


@pytest.mark.parametrize("name", FORMATS)
def test_the_report_counts_every_judgement_as_held_or_left_out(name: str, tmp_path: Path) -> None:
    """Held judgements and those of the kinds named as left out add up to all of them."""
    bundle = bundles.generated(7)
    _, report = there_and_back(name, bundle, tmp_path)
    held = sum(count for what, count in report.held.items() if what != "pictures")
    assert held == len(held_by(name, bundle.said))
    for kind in {type(one.record) for one in bundle.said} - {type(one.record) for one in held_by(name, bundle.said)}:
        count = len(bundle.of(kind))
        assert any(left == count for what, left in report.left.items()), f"{kind.__name__}: {report.text()}"


@pytest.mark.parametrize("name", ["imagefolder", "parquet"])
def test_the_settings_of_a_picture_come_back_with_every_digit_of_the_seed(name: str, tmp_path: Path) -> None:
    bundle = bundles.generated(3)
    back, _ = there_and_back(name, bundle, tmp_path)
    assert {k: p.generation for k, p in back.pictures.items()} == {k: p.generation for k, p in bundle.pictures.items()}


def test_pick_a_pic_keeps_prompt_and_checkpoint_and_names_the_settings_that_it_drops(tmp_path: Path) -> None:
    bundle = bundles.generated(3)
    prompt = "the same for all"
    bundle.pictures = {
        key: replace(picture, generation=replace(picture.generation, prompt=prompt))
        for key, picture in bundle.pictures.items()
    }
    back, report = there_and_back("pick-a-pic", bundle, tmp_path)
    for key, picture in back.pictures.items():
        kept = Generation(prompt=prompt, checkpoint=bundle.pictures[key].generation.checkpoint)
        assert picture.generation == kept
    assert any(what.startswith("seeds:") for what in report.left)


@pytest.mark.parametrize("name", FORMATS)
def test_an_empty_bundle_is_written_and_a_file_of_nothing_is_read_or_refused_by_a_sentence(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / f"empty{FORMATS[name].suffix}"
    report = write(name, Bundle(), path)
    assert report.text() == "Held: nothing."


def test_keys_and_passwords_do_not_leave_the_machine(tmp_path: Path) -> None:
    """A key of a known service in a prompt, a comment or a name is replaced in every format."""
    secret = "sk-abcdefghijklmnopqrstuvwx"
    for name, form in FORMATS.items():
        bundle = bundles.generated(5)
        key = next(iter(bundle.pictures))
        first = bundle.pictures[key]
        bundle.pictures[key] = replace(first, generation=replace(first.generation, prompt=f"a cat {secret}"))
        bundle.said += [Said(Comment(key, f"my key is {secret}", "ana")), Said(Tag(key, secret, "ana"))]
        path = tmp_path / f"secret{form.suffix}"
        write(name, bundle, path)
        with reading(path, SOMEBODY) as back:
            text = repr([p.generation for p in back.pictures.values()]) + repr(back.said)
        assert secret not in text and secret.encode() not in path.read_bytes()
        assert secret in bundle.pictures[key].generation.prompt, "the store keeps it"


def test_raters_can_be_numbered_instead_of_named() -> None:
    bundle = bundles.generated(1)
    numbered = bundle.without_names()
    assert set(numbered.raters()) == {f"rater {n + 1}" for n in range(len(bundle.raters()))}
    assert [type(one.record) for one in numbered.said] == [type(one.record) for one in bundle.said]
