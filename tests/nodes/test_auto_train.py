"""FeedbackAutoTrain on the demo model, in ComfyUI's own process: from ratings to a LoRA that won, and back.

The ratings are stars for brightness on grey pictures with stripes, which the demo's CLIP vision model tells apart.
Whoever votes here looks up in the store which picture is the candidate's; what people see is tested in
tests/feedback/test_blind.py.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import latent_preview
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sqlalchemy import select
from torch import Tensor

from feedback_loop.feedback.blind_tables import pair as pairs_of
from feedback_loop.feedback.records import Comparison, Generation, Rating
from feedback_loop.feedback.rewards.base import Reward
from feedback_loop.feedback.store import FeedbackStore
from feedback_loop.nodes import auto_train, auto_train_versions, prompt_lists, training
from feedback_loop.nodes.auto_train_versions import with_version
from feedback_loop.nodes.demo import load_demo_model
from feedback_loop.nodes.examples import encode_prompts
from feedback_loop.nodes.people import pixels_of
from feedback_loop.nodes.sampling import rollout
from feedback_loop.tests.nodes import tiny_models
from feedback_loop.tests.nodes.own_store import own_store
from feedback_loop.training import versions
from feedback_loop.training.lora_files import LoraFileError
from feedback_loop.training.versions import Index

PROMPTS = ("red star", "blue square", "two green circles", "yellow triangle", "purple circle", "three red squares")
SIZE = 32  # pixels a side
PEOPLE = {"decided_by": "people", "votes": 30, "collection": "pairs"}
REWARD = {"decided_by": "a reward"}


def opened(folder: Path, patch: pytest.MonkeyPatch) -> FeedbackStore:
    """A store in a folder of its own, where LoRAs, runs and versions lie too."""
    patch.setattr(auto_train_versions, "data_directory", lambda: folder)
    return own_store(folder, patch, auto_train, training, prompt_lists)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FeedbackStore]:
    """Nothing was said yet."""
    store = opened(tmp_path, monkeypatch)
    yield store
    store.close()


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 ratings, and one run: a candidate is trained, and people are asked about it."""
    folder = tmp_path_factory.mktemp("asked")
    with pytest.MonkeyPatch.context() as patch:
        store = opened(folder, patch)
        rate(store)
        assert "0 of 30 votes" in report(store)
        store.close()
    return folder


@pytest.fixture
def asked(first_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FeedbackStore]:
    """A copy of what the first run left."""
    shutil.copytree(first_run, tmp_path, dirs_exist_ok=True)
    store = opened(tmp_path, monkeypatch)
    yield store
    store.close()


def rate(kept: FeedbackStore, count: int = 24, first: int = 0, stars: list[int] | None = None) -> None:
    """Pictures of rising brightness, rated by it in fifths, or with `stars`."""
    rng = np.random.default_rng(first)
    made = []
    for i in range(count):
        pixels = np.full((SIZE, SIZE, 3), 20 + 200 * i // count, np.uint8)
        pixels += rng.integers(0, 30, (SIZE, 1, 1), dtype=np.uint8)
        made.append((pixels, Generation(prompt=PROMPTS[i % len(PROMPTS)], seed=str(first + i))))
    given = [1 + 5 * i // count for i in range(count)] if stars is None else stars
    ids = kept.add_images(made, "rated")
    kept.add_ratings([Rating(image, star, "ann") for image, star in zip(ids, given, strict=True)])


def run(kept: FeedbackStore, **changes: Any) -> Any:
    model, clip, vae, clip_vision = load_demo_model()
    settings = {
        "new_ratings": 20,
        "dry_run": False,
        "decided_by": PEOPLE,
        "objective": {"objective": "SFT", "tau": 1.0},
    }
    settings |= {"pictures": {"pictures": "rated pictures only"}, "steps": 3, "learning_rate": 1e-2, "batch": 4}
    settings |= {"rank": 4, "seed": 1, "name": "auto", "layers": "attention", "start_from": "the model", "prompts": ""}
    settings |= {"pairs": 30, "sampling_steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "sgm_uniform"}
    settings |= {"width": SIZE, "height": SIZE, "feedback": kept.feedback("rated")} | changes
    with torch.inference_mode():
        return auto_train.FeedbackAutoTrain.execute(
            model=model, clip=clip, vae=vae, clip_vision=clip_vision, **settings
        )


def report(kept: FeedbackStore, **changes: Any) -> str:
    return run(kept, **changes).args[2]


def listed(tmp_path: Path, name: str = "auto") -> Index:
    return versions.read(tmp_path / "auto_train" / name)


def vote(kept: FeedbackStore, wins: int, losses: int, rater: str = "ann") -> None:
    """Answers so many pairs as the sidebar does, for the candidate or against it."""
    candidates = set(kept.ask(lambda c: list(c.execute(select(pairs_of.c.b_id)).scalars())))
    for for_candidate in [True] * wins + [False] * losses:
        while (asked := kept.next_pair("learn", "pairs", rater=rater)) is not None and asked.repeat_of:
            pass  # pairs that come back are votes that were given already
        assert asked is not None and asked.policy == "blind"
        winner = "left" if (asked.left in candidates) == for_candidate else "right"
        kept.add_comparison(Comparison(asked.left, asked.right, winner, rater, policy=asked.policy))


def test_ratings_become_a_candidate_that_is_promoted_by_thirty_votes_and_taken_back(
    kept: FeedbackStore, tmp_path: Path
) -> None:
    """The whole cycle, with ComfyUI restarted in between as far as the store and the list go: both are read anew."""
    rate(kept, 10)
    assert "10 of 20 new ratings" in report(kept) and listed(tmp_path) == Index()
    rate(kept, 24, first=100)
    model, name, said = run(kept).args
    assert not model.patches and name == "" and "0 of 30 votes" in said
    assert (tmp_path / "loras" / "auto_00001.safetensors").exists() and listed(tmp_path).version(1).ratings == 34
    vote(kept, 29, 0)
    again = FeedbackStore(f"sqlite:///{tmp_path / 'feedback.sqlite3'}", tmp_path / "media")
    model, name, said = run(again).args
    assert "29 of 30 votes" in said and not model.patches and listed(tmp_path).in_use == 0
    vote(kept, 1, 0)
    model, name, said = run(again).args
    again.close()
    assert "version 1 (auto_00001.safetensors) is in use now" in said and "100%" in said
    assert model.patches and name == "auto_00001.safetensors" and listed(tmp_path).in_use == 1
    versions.change(tmp_path / "auto_train" / "auto", partial(versions.use, number=0))  # what the button's route does
    model, name, said = run(kept).args
    assert not model.patches and name == "" and "In use: the model without a LoRA." in said
    assert "0 of 20 new ratings" in said  # votes on candidates are no ratings
    assert kept.next_pair("learn", "pairs", rater="bob") is None


def test_the_pairs_are_of_the_same_prompt_and_seed_by_what_is_in_use_and_by_the_candidate(
    asked: FeedbackStore, tmp_path: Path
) -> None:
    """Each picture of the trial drawn again by itself comes out as it was put before people, within a grey level of
    rounding; and nothing that is recorded with the two of a pair differs."""
    model, clip, vae, _ = load_demo_model()
    row = asked.ask(lambda c: c.execute(select(pairs_of).where(pairs_of.c.place == 7)).one())
    a, b = asked.image(row.a_id), asked.image(row.b_id)
    assert a.generation == b.generation and a.generation.prompt == "blue square" and a.generation.loras is None
    with torch.inference_mode():
        conds = encode_prompts(clip, ["blue square"])
        for version, image in ((None, a), (listed(tmp_path).version(1), b)):
            own = with_version(model, version)
            made = rollout(
                own, [conds["blue square"]], conds[""], vae, [int(str(image.generation.seed))], 1, 1.0, "euler",
                "sgm_uniform", SIZE, SIZE,
            ).images  # fmt: skip
            shown = asked.image_pixels(image.id).astype(int)
            assert np.abs(pixels_of(made)[0].astype(int) - shown).max() <= 1


def test_a_candidate_that_does_not_win_clearly_stays_out(asked: FeedbackStore, tmp_path: Path) -> None:
    """20 of 30 votes: the interval begins at .488."""
    vote(asked, 20, 10)
    model, name, said = run(asked).args
    assert "is not promoted" in said and "67%" in said and not model.patches and name == ""
    assert listed(tmp_path).version(1).outcome == "not promoted" and listed(tmp_path).round is None
    assert (tmp_path / "loras" / "auto_00001.safetensors").exists()
    rate(asked, 20, first=200)
    assert "0 of 30 votes" in report(asked)  # the next round, on all ratings
    assert listed(tmp_path).version(2).ratings == 44


def everything(kept: FeedbackStore, folder: Path) -> tuple[list[str], list[str]]:
    """All rows of the database, and all other files with their times."""
    with sqlite3.connect(folder / "feedback.sqlite3") as connection:
        rows = list(connection.iterdump())
    files = [path for path in sorted(folder.rglob("*")) if not path.name.startswith("feedback.sqlite3")]
    return rows, [f"{path} {path.stat().st_mtime_ns}" for path in files]


def test_a_dry_run_says_what_it_would_do_and_changes_nothing(kept: FeedbackStore, tmp_path: Path) -> None:
    rate(kept)
    before = everything(kept, tmp_path)
    said = report(kept, dry_run=True)
    assert "Dry run" in said and "24 new ratings" in said and "It would train by SFT, 3 steps from the model" in said
    assert everything(kept, tmp_path) == before


def test_a_dry_run_says_how_a_comparison_would_end_and_does_not_end_it(asked: FeedbackStore, tmp_path: Path) -> None:
    vote(asked, 10, 0)
    before = everything(asked, tmp_path)
    assert "It would wait on: 10 of 30 votes about version 1" in report(asked, dry_run=True)
    vote(asked, 20, 0)
    assert everything(asked, tmp_path) != before  # negative control: a vote is seen
    before = everything(asked, tmp_path)
    assert "It would promote version 1 (auto_00001.safetensors): it got 100%" in report(asked, dry_run=True)
    assert everything(asked, tmp_path) == before and listed(tmp_path).in_use == 0


def test_ratings_that_teach_nothing_train_nothing(kept: FeedbackStore, tmp_path: Path) -> None:
    """Stars dealt at random: the taste's interval on unseen prompts holds one half."""
    rate(kept, 24, stars=np.random.default_rng(4).permutation([1, 2, 3, 4, 5, 3] * 4).tolist())
    assert "does not beat chance" in report(kept) and listed(tmp_path) == Index()
    assert list((tmp_path / "loras").iterdir()) == []


def test_too_few_ratings_for_a_taste_train_nothing(kept: FeedbackStore, tmp_path: Path) -> None:
    rate(kept, 4)
    assert "Nothing is trained yet: " in report(kept, new_ratings=2) and listed(tmp_path) == Index()


def at_step(step: int, act: Any) -> Any:
    def hook(value: int, total: int, preview: Any = None, **rest: Any) -> None:
        if value == step and total == 5:  # of the training, not of the drawing
            act()

    return hook


def hooked(hook: Any, work: Any) -> Any:
    comfy.utils.set_progress_bar_global_hook(hook)
    try:
        return work()
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
        comfy.model_management.interrupt_current_processing(False)


@pytest.mark.usefixtures("every_step_shown")
def test_a_training_that_was_cancelled_goes_on_with_the_ratings_that_it_began_with(
    kept: FeedbackStore, tmp_path: Path
) -> None:
    """Bit for bit the LoRA of a run that nobody disturbed, though more ratings came in between."""
    rate(kept)
    before = kept.feedback("rated")
    interrupt = partial(comfy.model_management.interrupt_current_processing, True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        hooked(at_step(2, interrupt), lambda: run(kept, steps=5))
    now = listed(tmp_path).round
    assert now is not None and now.stage == "training" and now.lora == "auto_00001"
    rate(kept, 5, first=300)
    assert "go on with the training" in report(kept, steps=5, dry_run=True)
    assert "gone on from step 2" in report(kept, steps=5)
    run(kept, steps=5, name="alone", feedback=before)
    files = [load_file(tmp_path / "loras" / f"{name}_00001.safetensors") for name in ("auto", "alone")]
    assert all(torch.equal(value, files[1][key]) for key, value in files[0].items())


def test_a_changed_recipe_begins_the_training_anew(asked: FeedbackStore, tmp_path: Path) -> None:
    place = tmp_path / "auto_train" / "auto"

    def put_down(index: Index) -> Index:
        assert index.round is not None
        return Index(round=versions.Round(index.round.feedback, index.round.recipe))

    versions.change(place, put_down)
    assert "train anew, by the changed recipe" in report(asked, learning_rate=2e-3, dry_run=True)
    assert "The recipe was changed" in report(asked, learning_rate=2e-3)
    assert listed(tmp_path).version(1).recipe["learning_rate"] == 2e-3


def test_a_lora_that_was_saved_before_a_crash_is_not_trained_again(asked: FeedbackStore, tmp_path: Path) -> None:
    """The list as a power cut between the LoRA's file and its entry leaves it."""
    place = tmp_path / "auto_train" / "auto"
    now = listed(tmp_path).round
    assert now is not None
    cut = Index(round=versions.Round(now.feedback, now.recipe, lora="auto_00001"))
    versions.change(place, lambda _: cut)
    file = tmp_path / "loras" / "auto_00001.safetensors"
    before = file.stat().st_mtime_ns
    assert "0 of 30 votes" in report(asked)
    assert file.stat().st_mtime_ns == before and len(list((tmp_path / "loras").iterdir())) == 1
    assert listed(tmp_path).version(1).file == "auto_00001.safetensors"


def test_pictures_that_were_drawn_before_a_crash_are_not_put_twice(asked: FeedbackStore, tmp_path: Path) -> None:
    """The trial's pairs taken out again as if its transaction had not come through: the same pictures come back."""
    known = asked.ids_of("pairs")
    with sqlite3.connect(tmp_path / "feedback.sqlite3") as connection:
        connection.execute("DELETE FROM blind_pair")
        connection.execute("DELETE FROM blind_trial")
    assert "0 of 30 votes" in report(asked)
    assert sorted(asked.ids_of("pairs")) == sorted(known) and len(known) == 60


@pytest.mark.usefixtures("every_step_shown")
def test_two_runs_at_once_do_not_both_train(kept: FeedbackStore, tmp_path: Path) -> None:
    rate(kept)
    said: list[str] = []
    hooked(at_step(2, lambda: said.append(report(kept, steps=5))), lambda: run(kept, steps=5))
    assert len(said) == 1 and "Another run is at work on 'auto'" in said[0]
    assert [path.name for path in (tmp_path / "loras").iterdir()] == ["auto_00001.safetensors"]


class SecondIsBetter(Reward):
    """The pictures of what is in use are scored first, the candidate's after them."""

    name = "second"

    def __init__(self, better: float) -> None:
        self.better, self.seen = better, 0

    def score(self, images: Tensor, prompts: Any, embed: Any) -> Tensor:
        self.seen += len(images)
        return torch.full((len(images),), self.better if self.seen > 30 else 0.0)


@pytest.mark.parametrize(("better", "outcome"), [(1.0, "promoted"), (0.0, "not promoted")])
def test_a_reward_decides_at_once_where_the_user_chose_so(
    kept: FeedbackStore, tmp_path: Path, better: float, outcome: str
) -> None:
    rate(kept)
    said = report(kept, decided_by=REWARD, reward=SecondIsBetter(better))
    assert "of 30 pairs by the reward second" in said
    assert listed(tmp_path).version(1).outcome == outcome and listed(tmp_path).in_use == (better > 0)
    assert kept.ids_of("pairs") == []


def test_a_version_whose_file_is_gone_or_changed_is_told_and_another_one_helps(
    asked: FeedbackStore, tmp_path: Path
) -> None:
    vote(asked, 30, 0)
    run(asked)
    file = tmp_path / "loras" / "auto_00001.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(LoraFileError, match="was changed since.*Put the file back"):
        run(asked)
    file.unlink()
    with pytest.raises(LoraFileError, match="gone from models/loras. Put it back, or choose another"):
        run(asked)
    versions.change(tmp_path / "auto_train" / "auto", partial(versions.use, number=0))
    assert not run(asked).args[0].patches


def test_a_version_of_another_kind_of_model_is_told(asked: FeedbackStore, tmp_path: Path) -> None:
    version = listed(tmp_path).version(1)
    with torch.inference_mode(), pytest.raises(LoraFileError, match="another kind of model. Connect that one, or"):
        with_version(tiny_models.sdxl(), version)


def test_whoever_watches_the_run_sees_no_picture_that_is_to_be_judged_blindly(
    kept: FeedbackStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With previews on, progress of the 30 pictures that each model draws is shown without one; that of training has
    its curves."""
    monkeypatch.setattr(latent_preview.args, "preview_method", latent_preview.LatentPreviewMethod.Latent2RGB)
    rate(kept)
    shown: dict[int, list[Any]] = {}

    def hook(value: int, total: int, preview: Any = None, **rest: Any) -> None:
        shown.setdefault(total, []).append(preview)

    hooked(hook, lambda: run(kept))
    assert shown[30] and not any(shown[30])
    assert any(shown[3])  # the curves of the training's three steps


def test_a_candidate_is_compared_anew_when_another_version_comes_into_use(asked: FeedbackStore, tmp_path: Path) -> None:
    """Version 1 is promoted and 2 stands against it; then somebody goes back to the model: 2 is put against that."""
    vote(asked, 30, 0)
    run(asked)
    rate(asked, 20, first=200)
    assert "version 2 (auto_00002.safetensors) is compared with version 1" in report(asked)
    vote(asked, 29, 0)
    versions.change(tmp_path / "auto_train" / "auto", partial(versions.use, number=0))
    assert "compared with the model without a LoRA: 0 of 30 votes" in report(asked)
    vote(asked, 30, 0)
    assert "is in use now, in place of the model without a LoRA" in report(asked)
    assert listed(tmp_path).in_use == 2


def test_pictures_that_were_deleted_are_drawn_anew(asked: FeedbackStore, tmp_path: Path) -> None:
    asked.delete_image(asked.ids_of("pairs")[0])
    assert "0 of 30 votes" in report(asked)
    vote(asked, 30, 0)
    assert "is in use now" in report(asked)


def test_a_lora_that_changes_no_picture_is_not_put_before_people(kept: FeedbackStore, tmp_path: Path) -> None:
    rate(kept)
    said = report(kept, learning_rate=1e-7, steps=1)
    assert "not promoted" in said and "it draws the same pictures as before in" in said
    assert kept.ids_of("pairs") == []


def test_it_goes_on_from_the_lora_in_use_where_that_is_asked_for(kept: FeedbackStore, tmp_path: Path) -> None:
    rate(kept)
    settings = {"decided_by": REWARD, "reward": SecondIsBetter(1.0), "start_from": "the LoRA in use"}
    run(kept, **settings)
    assert listed(tmp_path).version(1).recipe["existing_lora"] == "none"
    rate(kept, 20, first=200)
    run(kept, **settings)
    assert listed(tmp_path).version(2).recipe["existing_lora"] == "auto_00001.safetensors"


def test_the_answer_stands_until_something_was_said_or_another_version_is_used(
    asked: FeedbackStore, tmp_path: Path
) -> None:
    look = partial(auto_train.FeedbackAutoTrain.fingerprint_inputs, name="auto")
    before = look()
    assert look() == before
    vote(asked, 1, 0)
    voted = look()
    assert voted != before
    versions.change(tmp_path / "auto_train" / "auto", partial(versions.dropped, why="by hand"))
    assert look() != voted


def test_the_recipe_is_kept_with_each_version(asked: FeedbackStore, tmp_path: Path) -> None:
    recipe = listed(tmp_path).version(1).recipe
    assert json.loads(json.dumps(recipe)) == recipe
    assert recipe["objective"] == {"objective": "SFT", "tau": 1.0} and recipe["steps"] == 3 and recipe["rank"] == 4
