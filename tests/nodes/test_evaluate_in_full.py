"""What the evaluation node looks at beside its judge: second judge, alignment, distance, drift, people, the page."""

from __future__ import annotations

import io
import json
import math
import re
import urllib.request
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import folder_paths
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from feedback_loop.feedback import evaluation
from feedback_loop.feedback.blind import Tally
from feedback_loop.feedback.evaluation import Interval
from feedback_loop.feedback.records import Comparison
from feedback_loop.feedback.rewards.colour import ColourReward
from feedback_loop.nodes import evaluate, evaluation_page, evaluation_votes, prediction_gap
from feedback_loop.nodes.compat import store
from feedback_loop.nodes.demo import load_demo_model
from feedback_loop.nodes.evaluating import Comparison as Compared
from feedback_loop.nodes.evaluating import Drawn, Evaluation, Watched, aligning
from feedback_loop.nodes.evaluation_words import drifted, people, report_of
from feedback_loop.nodes.policy import trainable
from feedback_loop.nodes.training_run import with_lora
from feedback_loop.tests.comfy_host import ComfyServer
from feedback_loop.tests.nodes import tiny_models
from feedback_loop.training import lora_files
from feedback_loop.training.objectives import squared_error
from feedback_loop.training.sources import timestep_weight

from . import tiny_joint
from .test_evaluate import graph, models, run  # noqa: F401  (the fixture)
from .test_policy import push

API = "/feedback_loop/v1"
SURE = Interval(0.2, 0.1, 0.3)
FALLEN, UNSURE = Interval(-0.2, -0.3, -0.1), Interval(-0.2, -0.5, 0.1)


def found(
    gain: Interval = SURE, votes: Tally | None = None, rows: tuple[str, ...] = ("a", "b"), **watched: Interval
) -> Evaluation:
    pictures = torch.rand(len(rows), 3, 16, 16, generator=torch.Generator().manual_seed(1))
    drawn = Drawn(list(rows), list(range(len(rows))), pictures, 1 - pictures, pictures)
    result = Compared(len(rows), len(rows), Interval(0.7, 0.6, 0.8), gain, 0.1, 0.3, 1.0, 0.9)
    numbers = {name: Watched(1.0, 0.8, change) for name, change in watched.items()}
    return Evaluation(drawn, "judge", ([0.1] * len(rows), [0.3] * len(rows)), result, numbers, {}, votes=votes)


def counted(wins: int, losses: int) -> Tally:
    n = wins + losses
    return Tally(n, 0, n, n, 1, wins, 0, losses, evaluation.wilson(wins, n))


# The alarm


@pytest.mark.parametrize("name", ["the second judge", "prompt alignment", "diversity"])
def test_the_alarm_goes_off_where_the_reward_rises_and_another_falls_beyond_its_interval(name: str) -> None:
    said = found(**{name: FALLEN}).alarm
    assert said.startswith("Alarm") and name in said and "0.1 to 0.3" in said


def test_the_alarm_is_silent_where_the_fall_or_the_rise_is_within_its_interval() -> None:
    assert found(diversity=UNSURE).alarm == ""
    assert found(gain=Interval(0.2, -0.1, 0.5), diversity=FALLEN).alarm == ""
    assert found(diversity=SURE).alarm == ""


def test_people_who_prefer_a_blind_are_an_alarm() -> None:
    """2 of 20 for B: Wilson's upper end is .30; 8 of 20: .61."""
    assert "people prefer A in 90%" in found(votes=counted(2, 18)).alarm
    assert found(votes=counted(8, 12)).alarm == ""


def test_however_much_is_watched_chance_rings_in_one_of_forty_evaluations_at_most() -> None:
    """Three scores that do not change, over 12 prompts, and votes by a fair coin, beside a reward that rises. Each by
    its own interval would ring in about 9 %; together in 2.5 % at most, and the bound is three standard errors above.
    """
    rng, rows, rang = np.random.default_rng(0), tuple(map(str, range(12))), 0
    for _ in range(600):
        changes = {str(k): evaluation.mean_interval(rng.normal(size=12)) for k in range(3)}
        rang += found(votes=counted(wins := int(rng.binomial(40, 0.5)), 40 - wins), rows=rows, **changes).alarm != ""
    assert rang / 600 <= 0.025 + 3 * (0.025 * 0.975 / 600) ** 0.5, rang


def test_the_ps_of_holms_procedure_are_those_of_the_intervals() -> None:
    """At an upper end of exactly 0, or of .5 for a share, one side holds .025; Holm 1979 takes .01 of (.01, .02, .03)
    at .03, which is its third, and then .02 against a half of it fails."""
    sample = np.random.default_rng(1).normal(size=9)
    reach = evaluation.mean_interval(sample).high - sample.mean()
    assert evaluation.chance_of_no_fall(Interval(-reach, -2 * reach, 0.0), 8) == pytest.approx(0.025)
    assert evaluation.chance_of_no_fall(Interval(0.0, -reach, reach), 8) == pytest.approx(0.5)
    share = evaluation.wilson(8, 20)
    score = (8 - 10) / math.sqrt(20 / 4)
    assert evaluation.chance_of_no_minority(share) == pytest.approx(0.5 * math.erfc(-score / math.sqrt(2)))
    assert evaluation.chance_of_no_minority(evaluation.wilson(12, 20)) == 1.0
    assert evaluation.holm([0.02, 0.01, 0.03], 0.03) == [False, True, False]
    assert evaluation.holm([0.015, 0.01, 0.03], 0.03) == [True, True, True]


def test_a_reward_that_is_bought_with_diversity_sets_the_alarm_off(models: dict) -> None:  # noqa: F811
    """The judge likes brightness; B's pictures, all brighter, are made of A's by drawing them towards white by 90 %."""
    from feedback_loop.nodes import evaluating

    drawn = Drawn(["a"] * 12, list(range(12)), *(torch.rand(12, 3, 8, 8) for _ in range(3)))
    whitened = Drawn(drawn.rows, drawn.seeds, drawn.a, 0.9 + 0.1 * drawn.a, drawn.latents)
    with torch.inference_mode():
        full = evaluating.evaluated(whitened, ColourReward("brightness"), ColourReward("saturation"), None, None)
    assert "diversity falls" in full.alarm and "the second judge falls" in full.alarm
    assert full.drift["brightness"].low > 0 and full.drift["contrast"].high < 0


# Distance of the predictions


@pytest.mark.usefixtures("inference_mode")
@pytest.mark.parametrize("kind", ["sd15", "flux"])
def test_the_distance_is_that_of_adapter_on_and_off_in_the_weighting_of_training(kind: str) -> None:
    """Against the trainable twin in its two views, at the very noise that the node takes; the model itself is at 0."""
    model, rows = tiny_models.MODELS[kind](), [0, 1, 0]
    prompts = [tiny_models.conditioning(kind, seed) for seed in range(2)]
    positives = [prompts[i] for i in rows]
    latents = torch.randn(tiny_models.latent_shape(kind, 3), generator=torch.Generator().manual_seed(2))
    with trainable(model, rank=4, seed=0) as policy, torch.no_grad():
        push(policy)
        x, sigma = prediction_gap.noised(model, policy.process, latents, 0)
        expected = []
        for noisy, level in zip(x, sigma, strict=True):
            theta = policy.denoise(noisy, level, positives)
            with policy.view("ref"):
                ref = policy.denoise(noisy, level, positives)
            weight = policy.process.kappa(level) * timestep_weight(policy.process, level)
            expected.append(squared_error(theta, ref, weight))
        loaded = with_lora(model, lora_files.to_tensors(policy.adapters.low_rank()))
    gap = prediction_gap.prediction_gap(model, loaded, latents, positives)
    assert gap is not None and gap.value == pytest.approx(float(torch.stack(expected).mean()), rel=1e-3)
    assert tuple(prediction_gap.prediction_gap(model, model, latents, positives) or ()) == (0.0, 0.0, 0.0)


def test_models_of_two_kinds_have_no_distance() -> None:
    latents = torch.zeros(1, 4, 8, 8)
    cond = [tiny_models.conditioning("sd15")]
    assert prediction_gap.prediction_gap(tiny_models.sd15(), tiny_models.sdxl(), latents, cond) is None
    assert prediction_gap.prediction_gap(tiny_models.sd15(), tiny_models.sd15(0, "v"), latents, cond) is None


# Alignment


@pytest.mark.usefixtures("inference_mode")
def test_pictures_fit_their_own_prompts_better_than_others_prompts() -> None:
    """The demo model's encoders and discs of five colours, right and one colour on."""
    from feedback_loop.nodes.text_tower import COLOURS, _discs

    _, clip, _, clip_vision = load_demo_model()
    fit, why = aligning(clip, clip_vision, None)
    assert fit is not None and why == ""
    texts = [f"{name} circle" for name in COLOURS]
    right, wrong = (float(fit(_discs(), order).mean()) for order in (texts, texts[1:] + texts[:1]))
    assert right > wrong + 1


@pytest.mark.usefixtures("inference_mode")
def test_where_alignment_cannot_be_measured_the_report_says_why() -> None:
    assert "connect the CLIP Vision" in aligning(tiny_models.clip(), None, None)[1]
    assert "hardly trained together" in aligning(tiny_models.clip(), tiny_joint.clip_vision(), None)[1]
    fit, why = aligning(tiny_models.clip(), tiny_models.clip_vision(), None)
    assert fit is None and "16 numbers" in why and "alignment_clip" in why
    with pytest.raises(ValueError, match="no encoder"):
        aligning(tiny_models.clip(), None, tiny_models.clip())
    with pytest.raises(ValueError, match="16 numbers"):
        aligning(tiny_models.clip(), tiny_models.clip_vision(), tiny_models.clip())


# People


def test_people_are_asked_blind_and_a_later_run_counts_their_votes_without_drawing_again(
    models: dict,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Six pairs, four asked; Ann prefers B three times and A once: .75, and the report stops asking."""
    collection, drawn = f"blind {uuid.uuid4()}", []
    make = evaluate.rollout
    monkeypatch.setattr(evaluate, "rollout", lambda *a, **k: drawn.append(1) or make(*a, **k))
    asked: dict[str, Any] = {"people": {"people": "people too, blind", "collection": collection, "at_most": 4}}
    asked |= {"judge": ColourReward("brightness")}
    first = run(models, **asked)
    assert f"4 of 4 blind pairs wait for an answer: choose the collection '{collection}'" in first["report"]
    assert shown_size(first) == (first["plot"].shape[2], first["plot"].shape[1])
    before = evaluate.FeedbackEvaluate.fingerprint_inputs(**asked)
    pixels = pixels_of_b()
    for number in range(4):
        pair = store().next_pair("learn", collection, rater="ann", seed=number)
        assert pair is not None and pair.policy == "blind"
        left_is_b = tuple(store().image_pixels(pair.left).flatten()[:30]) in pixels
        winner = "left" if left_is_b == (number > 0) else "right"
        store().add_comparison(Comparison(pair.left, pair.right, winner, "ann", policy=pair.policy))
    assert evaluate.FeedbackEvaluate.fingerprint_inputs(**asked) != before
    second = run(models, **asked)
    assert "In 4 blind votes of 1 person, B wins 75%" in second["report"] and "wait" not in second["report"]
    assert second["numbers"]["people"]["win_rate"]["value"] == 0.75
    assert shown_size(second) == (second["grid"].shape[2], second["grid"].shape[1]) != shown_size(first)
    assert len(drawn) == 2
    run(models, steps=3, **asked)
    assert len(drawn) == 4


def test_in_a_real_comfyui_votes_over_http_are_counted_when_the_same_graph_runs_again(
    comfy_server: ComfyServer,
) -> None:
    """Four pairs of the demo model, plain and guided to brightness; Bob takes the lighter picture: B wins all."""
    collection = f"blind {uuid.uuid4()}"
    asked = {"people": "people too, blind", "people.collection": collection, "people.at_most": 4}
    prompt = graph(seeds=2, **asked)
    assert "4 of 4 blind pairs wait" in comfy_server.run(prompt)["4"]["text"][0]
    for _ in range(4):
        pair = comfy_server.get(f"{API}/pairs/next?{urlencode({'rater': 'Bob', 'collection': collection})}")
        assert pair["policy"] == "blind"
        light = {side: lightness(comfy_server, pair[side]) for side in ("left", "right")}
        winner = max(light, key=lambda side: light[side])
        said = {name: pair[name] for name in ("left", "right", "policy", "propensity")}
        comfy_server.post(f"{API}/comparisons", said | {"winner": winner, "rater": "Bob"})
    assert comfy_server.get(f"{API}/pairs/next?{urlencode({'rater': 'Bob', 'collection': collection})}") is None
    outputs = comfy_server.run(prompt)
    assert "In 4 blind votes of 1 person, B wins 100%" in outputs["4"]["text"][0]
    votes = json.loads(outputs["5"]["text"][0])["people"]
    assert votes["votes"] == votes["wins"] == 4 and votes["win_rate"]["low"] == pytest.approx(0.51, abs=0.01)


def lightness(server: ComfyServer, image_id: str) -> float:
    with urllib.request.urlopen(f"{server.url}{API}/images/{image_id}/file") as answer:
        return float(np.asarray(Image.open(io.BytesIO(answer.read())).convert("L")).mean())


def shown_size(out: dict[str, Any]) -> tuple[int, int]:
    """Of what the node shows: the plot while people vote, whose pictures they are afterwards."""
    (shown,) = out["ui"]["images"]
    return Image.open(Path(folder_paths.get_temp_directory()) / shown["subfolder"] / shown["filename"]).size


def pixels_of_b() -> set[tuple[int, ...]]:
    """The first numbers of each of B's pictures."""
    b = evaluation_votes._last[0].evaluation.drawn.b
    return {tuple(picture.flatten()[:30]) for picture in evaluation_votes._pixels(b)}


def test_without_people_the_node_does_not_run_again_for_every_judgement() -> None:
    assert evaluate.FeedbackEvaluate.fingerprint_inputs(prompts="a") == ""
    assert evaluate.FeedbackEvaluate.fingerprint_inputs(people={"people": "judges alone"}) == ""


def test_a_collection_without_a_name_is_refused(models: dict) -> None:  # noqa: F811
    with pytest.raises(ValueError, match="collection is empty"):
        run(models, people={"people": "people too, blind", "collection": "  ", "at_most": 4})


def test_pairs_that_are_alike_are_told() -> None:
    said = " ".join(people(Tally(3, 2, 0, 0, 0, 0, 0, 0, evaluation.wilson(0, 0)), "c"))
    assert "3 of 3 blind pairs wait" in said and "2 pairs are the same to the pixel" in said


# The report


def test_the_report_says_what_moved_and_the_alarm_comes_first() -> None:
    said = report_of(found(diversity=FALLEN))
    assert said.startswith("Alarm")
    assert "brightness +1 " in drifted({"brightness": Interval(1.0, 0.5, 1.5), "contrast": Interval(0.1, -0.1, 0.3)})
    assert "contrast" not in drifted({"contrast": Interval(0.1, -0.1, 0.3)})


def test_the_page_is_whole_in_itself_and_shows_hostile_prompts_as_text() -> None:
    """Two pairs are four pictures; nothing is fetched and nothing can run."""
    page = evaluation_page.page_of(found(rows=("<script>alert(1)</script>", "b")), "said <img src=x onerror=y>")
    assert page.count("data:image/jpeg;base64,") == 4
    assert "<script" not in page and "<img src=x" not in page and "&lt;script&gt;" in page
    assert not re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?!data:)(?=\w+:|//)""", page)


def test_the_node_saves_the_page_under_the_next_number_and_hands_out_the_image(
    models: dict,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    out = run(models, report_name="my run", second_judge=ColourReward("saturation"), encoder=models["clip_vision"])
    assert run(models, report_name="my run")["report"].endswith("feedback_loop/my run_00002.html in the output folder.")
    page = (tmp_path / "feedback_loop" / "my run_00001.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") == 12 and "the second judge" in page and "Drift in sd of A" in page
    assert out["report_image"].shape[0] == 1 and out["report_image"].shape[1] > out["grid"].shape[1]
    assert set(out["numbers"]["watched"]) == {"the second judge", "diversity"}
    assert out["numbers"]["kl"]["value"] > 0 and set(out["numbers"]["drift"]) >= {"brightness", "spectrum"}
    assert out["numbers"]["alarm"] == out["alarm"]


@pytest.mark.parametrize("name", ["../up", "a/b", "C:x", "\0"])
def test_a_report_stays_in_its_folder(name: str) -> None:
    with pytest.raises(ValueError, match="no file name"):
        evaluation_page.save_page(name, "x")


def test_without_a_name_nothing_is_written(models: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    run(models)
    assert list(tmp_path.iterdir()) == []


def test_numbers_of_the_page_are_json_where_something_is_unknown(models: dict) -> None:  # noqa: F811
    numbers: dict[str, Any] = run(models, seeds=1, prompts="a")["numbers"]
    assert json.dumps(numbers) and numbers["watched"]["diversity"]["change"]["value"] is None


def test_tensors_of_the_image_are_pictures(models: dict) -> None:  # noqa: F811
    image: Tensor = run(models)["report_image"]
    assert image.shape[-1] == 3 and 0 <= float(image.min()) <= float(image.max()) <= 1
