"""The evaluation node on tiny models: both get the same prompts and seeds, and the report says what was found."""

from __future__ import annotations

import json
import math

import pytest
import torch

from feedback_loop.feedback import evaluation
from feedback_loop.feedback.evaluation import Interval
from feedback_loop.feedback.rewards.colour import ColourReward
from feedback_loop.nodes import evaluate, evaluating, evaluation_words, sampling
from feedback_loop.tests.comfy_host import ComfyServer, error_of
from feedback_loop.tests.nodes import tiny_models

OUTPUTS = ("grid", "plot", "report", "win_rate", "gain", "figures", "report_image", "alarm")
PROMPTS = "a red circle\n\n  a blue square on a plain ground \na red circle\n"


@pytest.fixture(scope="module")
def models() -> dict:
    with torch.inference_mode():  # as a loader node makes them
        return {"a": tiny_models.sd15(1, "v"), "b": tiny_models.sd15(2, "v"), "clip": tiny_models.clip(3)} | {
            "vae": tiny_models.vae(4),
            "clip_vision": tiny_models.clip_vision(5),
        }


def run(models: dict, b: str = "b", **changed) -> dict:
    inputs = {
        "model_a": models["a"],
        "model_b": models[b],
        "clip": models["clip"],
        "vae": models["vae"],
        "judge": ColourReward("brightness"),
        "prompts": PROMPTS,
        "negative": "watermark",
        "seeds": 3,
        "seed": 5,
        "steps": 2,
        "cfg": 2.0,
        "sampler_name": "euler",
        "scheduler": "simple",
        "width": 64,
        "height": 64,
    }
    with torch.inference_mode():
        out = evaluate.FeedbackEvaluate.execute(**(inputs | changed))
    return dict(zip(OUTPUTS, out.args, strict=True)) | {"ui": out.ui, "numbers": json.loads(out.args[5])}


def test_two_prompts_and_three_seeds_are_six_pairs_with_six_seeds(models: dict) -> None:
    out = run(models)
    numbers = out["numbers"]
    assert numbers["pairs"] == 6
    assert [pair["seed"] for pair in numbers["each"]] == [5, 6, 7, 8, 9, 10]
    assert [pair["prompt"] for pair in numbers["each"][2:4]] == ["a red circle", "a blue square on a plain ground"]


def test_the_numbers_follow_from_the_pairs(models: dict) -> None:
    out = run(models)
    each = out["numbers"]["each"]
    gains = [pair["reward_b"] - pair["reward_a"] for pair in each]
    assert out["gain"] == pytest.approx(sum(gains) / 6, abs=1e-6)
    assert out["win_rate"] == sum(gain > 0 for gain in gains) / 6
    assert out["numbers"]["win_rate"]["low"] <= out["win_rate"] <= out["numbers"]["win_rate"]["high"]


def test_the_rewards_are_of_the_pictures_that_the_ksampler_makes(models: dict) -> None:
    out = run(models)
    clip = models["clip"]
    with torch.inference_mode():
        encoded = [clip.encode_from_tokens_scheduled(clip.tokenize(t)) for t in ("a red circle", "watermark")]
        made = sampling.rollout(
            models["b"], encoded[:1], encoded[1], models["vae"], [6], 2, 2.0, "euler", "simple", 64, 64
        )
    expected = float(ColourReward("brightness")(made.images))
    assert out["numbers"]["each"][1]["reward_b"] == pytest.approx(expected, abs=1e-5)


def test_a_model_against_itself_is_all_ties(models: dict) -> None:
    """The negative control: the same model, prompts and seeds give the same pictures, so .5, a gain of 0, and doubt."""
    out = run(models, b="a")
    assert out["win_rate"] == 0.5 and out["gain"] == 0
    assert out["numbers"]["diversity_a"] == out["numbers"]["diversity_b"] > 0
    assert "The interval includes 50 %" in out["report"]


def test_swapping_the_models_turns_the_result_around(models: dict) -> None:
    forth = run(models)
    back = run(models | {"a": models["b"], "b": models["a"]})
    assert back["gain"] == pytest.approx(-forth["gain"], abs=1e-6)
    assert back["win_rate"] == pytest.approx(1 - forth["win_rate"])


def test_the_grid_and_the_report_are_shown_on_the_node(models: dict) -> None:
    """2 blocks would be needed for more than 8 pairs; 6 pairs are a row of A and a row of B of 128 px cells."""
    out = run(models)
    assert out["grid"].shape == (1, 2 * (128 + 20 + 4) + 4, 6 * 132 + 4, 3)
    assert out["ui"]["text"] == (out["report"],)
    assert len(out["ui"]["images"]) == 1


def test_the_clip_vision_measures_diversity_where_one_is_connected(models: dict) -> None:
    pixels, seen = run(models), run(models, encoder=models["clip_vision"])
    assert seen["numbers"]["diversity_a"] != pixels["numbers"]["diversity_a"]
    assert seen["numbers"]["each"] == pixels["numbers"]["each"]


def comparison(win: tuple, pairs: int = 100, diversity: tuple = (1.0, 0.9)) -> evaluating.Comparison:
    return evaluating.Comparison(pairs, 10, Interval(*win), Interval(0.1, -0.1, 0.3), 0.2, 0.3, *diversity)


def test_an_interval_that_includes_half_is_said_to_show_nothing() -> None:
    """Half the interval is .1, and .55 is .05 from half: twice as narrow takes four times the 100 pairs."""
    said = evaluation_words.verdict(comparison((0.55, 0.45, 0.65)))
    assert "The interval includes 50 %: this does not show a difference" in said
    assert "About 400 pairs would settle" in said


@pytest.mark.parametrize(("win", "side"), [((0.7, 0.6, 0.8), "above"), ((0.3, 0.2, 0.4), "below")])
def test_an_interval_on_one_side_of_half_is_said_to_be_there(win: tuple, side: str) -> None:
    said = evaluation_words.verdict(comparison(win))
    assert f"The interval is {side} 50 %" in said
    assert "includes" not in said and "few" not in said and "90% of A's" in said


def test_few_pairs_are_called_few() -> None:
    assert "6 pairs are few" in evaluation_words.verdict(comparison((0.9, 0.6, 1.0), pairs=6))


def test_pictures_without_diversity_do_not_divide_by_nothing() -> None:
    assert "Diversity" not in evaluation_words.verdict(comparison((0.9, 0.6, 1.0), diversity=(0.0, 0.0)))


def test_seeds_wrap_where_comfyuis_end() -> None:
    assert evaluating.pairs_of(["a"], 2, 2**64 - 1) == (["a", "a"], [2**64 - 1, 0])


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"prompts": " \n\n"}, "write at least one into 'prompts'"),
        ({"vae": lambda: tiny_models.vae(1, 16)}, "Connect the VAE that belongs to the model"),
        ({"clip": tiny_models.sdxl_clip}, "connect the CLIP that belongs to the model"),
    ],
)
def test_what_a_user_can_get_wrong_is_said_in_a_sentence(models: dict, changed: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        run(models, **{name: value() if callable(value) else value for name, value in changed.items()})


def test_one_pair_gives_no_interval_and_the_figures_stay_json() -> None:
    result = evaluating.compare([0.0], [1.0], ["x"], (math.nan, math.nan))
    said = evaluation_words.verdict(result)
    assert "one pair gives no interval" in said and "nan" not in said and "inf" not in said
    one = torch.zeros(1, 3, 8, 8)
    drawn = evaluating.Drawn(["x"], [1], one, one, one)
    numbers = json.loads(evaluation_words.figures(evaluating.Evaluation(drawn, "j", ([0.0], [1.0]), result, {}, {})))
    assert numbers["gain"] == {"value": 1.0, "low": None, "high": None} and numbers["diversity_a"] is None


def test_with_enough_prompts_the_intervals_count_prompts_and_not_pictures() -> None:
    """Five prompts whose four seeds agree to the last bit are five observations; told apart they would be twenty."""
    rows = [f"prompt {i // 4}" for i in range(20)]
    gains = [(-1.0, 1.0, 2.0, 0.5, 1.5)[i // 4] for i in range(20)]
    counted = evaluating.compare([0.0] * 20, gains, rows, (1.0, 1.0))
    apart = evaluating.compare([0.0] * 20, gains, ["one prompt"] * 20, (1.0, 1.0))
    alone = evaluation.mean_interval(torch.tensor([-1.0, 1.0, 2.0, 0.5, 1.5]))
    assert counted.gain == pytest.approx(alone)
    assert apart.gain.high - apart.gain.low < (counted.gain.high - counted.gain.low) / 1.9
    assert "these prompts alone" in evaluation_words.verdict(apart) and "alone" not in evaluation_words.verdict(counted)


def graph(**changed) -> dict:
    """The demo model against itself under guidance towards brightness, which is also the judge."""
    evaluate_inputs = {
        "model_a": ["1", 0],
        "model_b": ["3", 0],
        "clip": ["1", 1],
        "vae": ["1", 2],
        "judge": ["2", 0],
        "prompts": "one large star\ntwo small circles",
        "negative": "",
        "seeds": 3,
        "seed": 1,
        "steps": 6,
        "cfg": 2.0,
        "sampler_name": "euler",
        "scheduler": "sgm_uniform",
        "width": 64,
        "height": 64,
        "encoder": ["1", 3],
    }
    guided = {"model": ["1", 0], "reward": ["2", 0], "vae": ["1", 2], "strength": 1.0}
    return {
        "1": {"class_type": "FeedbackDemoModel", "inputs": {}},
        "2": {"class_type": "FeedbackColorReward", "inputs": {"property": "brightness", "aim": "more"}},
        "3": {
            "class_type": "FeedbackRewardGuidance",
            "inputs": guided | {"start_percent": 0.0, "end_percent": 1.0, "decoder": "auto"},
        },
        "4": {"class_type": "FeedbackEvaluate", "inputs": evaluate_inputs | changed},
        "5": {"class_type": "PreviewAny", "inputs": {"source": ["4", 5]}},
    }


def test_in_a_real_comfyui_guidance_is_found_to_do_what_it_was_asked(comfy_server: ComfyServer) -> None:
    outputs = comfy_server.run(graph())
    numbers = json.loads(outputs["5"]["text"][0])
    assert numbers["pairs"] == 6 and all(pair["reward_b"] > pair["reward_a"] for pair in numbers["each"])
    assert "B wins 100% of 6 pairs" in outputs["4"]["text"][0]
    assert numbers["diversity_a"] > 0 and len(outputs["4"]["images"]) == 1
    assert "prompt alignment" in numbers["watched"] and numbers["drift"]["brightness"]["low"] > 0
    assert numbers["kl"]["value"] == 0  # the same weights: guidance is no part of what the network predicts


def test_in_a_real_comfyui_a_missing_prompt_is_said_in_a_sentence(comfy_server: ComfyServer) -> None:
    entry = comfy_server.wait(comfy_server.queue_prompt(graph(prompts=" ")))
    assert "write at least one" in (error_of(entry) or "")
