"""Rewards of models/rewards through a running ComfyUI: lists in the nodes, choices in a prompt, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from feedback_loop.tests.comfy_host import ComfyServer, error_of
from feedback_loop.tests.feedback import model_folders

DEMO = {"1": {"class_type": "FeedbackDemoModel", "inputs": {}}}
PICTURES = {"2": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 2, "color": 8421504}}}
SCORE = {"9": {"class_type": "FeedbackScoreImages", "inputs": {"images": ["2", 0], "reward": ["8", 0]}}}


@pytest.fixture(scope="module", autouse=True)
def models(comfy_server: ComfyServer) -> Iterator[Path]:
    """Models that were put there while ComfyUI runs; taken away again for the modules after this one."""
    import shutil

    from safetensors.torch import save_file

    folder = Path(comfy_server.base_directory) / "models" / "rewards"
    model_folders.classifier(folder / "animals")
    model_folders.clip(folder / "pick")
    save_file({"linear.weight": torch.ones(1, 128), "linear.bias": torch.zeros(1)}, folder / "head.safetensors")
    yield folder
    shutil.rmtree(folder)


def scored(comfy_server: ComfyServer, kind: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """What the node that scores shows."""
    made = {"8": {"class_type": kind, "inputs": inputs}}
    return comfy_server.run({**DEMO, **PICTURES, **made, **SCORE})["9"]


def test_the_nodes_offer_what_lies_in_the_folder(comfy_server: ComfyServer) -> None:
    classifier = comfy_server.get("/object_info/FeedbackClassifierReward")["FeedbackClassifierReward"]
    [option] = classifier["input"]["required"]["model"][1]["options"]
    assert option["key"] == "animals" and option["inputs"]["required"]["label"][1]["options"] == ["cat", "dog", "tree"]
    text = comfy_server.get("/object_info/FeedbackTextReward")["FeedbackTextReward"]
    shown = {option["key"]: option["inputs"]["required"] for option in text["input"]["required"]["model"][1]["options"]}
    assert shown["a CLIP or SigLIP of models/rewards"]["folder"][1]["options"] == ["pick"]
    assert shown["an aesthetic head of models/rewards"]["head"][1]["options"] == ["head.safetensors"]


@pytest.mark.parametrize(
    ("kind", "inputs"),
    [
        ("FeedbackClassifierReward", {"model": "animals", "model.label": "dog", "aim": "less", "enough": 4.0}),
        (
            "FeedbackTextReward",
            {
                "wish": "a red circle", "opposite": "a blue circle", "model": "the connected CLIP and CLIP Vision",
                "model.clip": ["1", 1], "model.clip_vision": ["1", 3], "enough": 10.0,
            },
        ),
        (
            "FeedbackTextReward",
            {
                "wish": "red", "opposite": "blue", "model": "a CLIP or SigLIP of models/rewards",
                "model.folder": "pick", "model.judges": "fit to the prompt", "enough": 10.0,
            },
        ),
        (
            "FeedbackTextReward",
            {
                "wish": "", "opposite": "", "model": "an aesthetic head of models/rewards",
                "model.head": "head.safetensors", "model.clip_vision": ["1", 3], "enough": 10.0,
            },
        ),
        ("FeedbackColorReward", {"property": "nearness to a palette", "aim": "more", "palette": "#808080"}),
        ("FeedbackWatermarkPenalty", {"margin": 3.0, "detector": "auditor", "images": ["2", 0]}),
        ("FeedbackWatermarkPenalty", {"margin": 3.0}),
    ],
)  # fmt: skip
def test_every_reward_scores_pictures_in_a_prompt(comfy_server: ComfyServer, kind: str, inputs: dict[str, Any]) -> None:
    """Two grey pictures of one colour: two equal scores, sorted, ranked and drawn."""
    shown = scored(comfy_server, kind, inputs)
    assert len(shown["scores"]) == 2 and shown["scores"][0] == pytest.approx(shown["scores"][1], abs=1e-4)
    assert len(shown["images"]) == 2


def test_a_model_that_changed_on_disk_is_read_again(comfy_server: ComfyServer, models: Path) -> None:
    """ComfyUI keeps a node's output until its fingerprint changes."""
    inputs = {"model": "animals", "model.label": "tree", "aim": "more", "enough": 20.0}
    first = scored(comfy_server, "FeedbackClassifierReward", inputs)["scores"]
    model_folders.change(models / "animals" / "preprocessor_config.json", image_mean=[0.1, 0.9, 0.1])
    second = scored(comfy_server, "FeedbackClassifierReward", inputs)["scores"]
    assert first != second


@pytest.mark.parametrize(
    ("model", "says"),
    [("../../secret", "There is no"), ("/etc", "There is no"), ("a model with code", "run code of its own")],
)
def test_a_folder_that_is_not_in_the_list_is_refused_by_a_sentence(
    comfy_server: ComfyServer, models: Path, model: str, says: str
) -> None:
    """ComfyUI lets choices through that its list does not have; the node looks itself."""
    (models / "a model with code").mkdir(exist_ok=True)
    (models / "a model with code" / "config.json").write_text('{"auto_map": {"AutoModel": "evil.py--Evil"}}')
    chosen = {"model": "a CLIP or SigLIP of models/rewards", "model.folder": model, "model.judges": "fit to the prompt"}
    made = {"8": {"class_type": "FeedbackTextReward", "inputs": {"wish": "x", "opposite": "", **chosen}}}
    status, answer = comfy_server.request("POST", "/prompt", {"prompt": {**DEMO, **PICTURES, **made, **SCORE}})
    assert (
        status == 400
        and "value_not_in_list" in str(answer)
        or says in str(error_of(comfy_server.wait(answer["prompt_id"])))
    )
    assert comfy_server.alive()


def test_a_model_that_was_taken_away_takes_nothing_else_along(comfy_server: ComfyServer, models: Path) -> None:
    """ComfyUI's own lists raise once a folder in them is gone."""
    import shutil

    model_folders.classifier(models / "guest")
    offered = comfy_server.get("/object_info/FeedbackClassifierReward")["FeedbackClassifierReward"]
    shutil.rmtree(models / "guest")
    left = comfy_server.get("/object_info/FeedbackClassifierReward")["FeedbackClassifierReward"]
    keys = [[option["key"] for option in info["input"]["required"]["model"][1]["options"]] for info in (offered, left)]
    assert keys == [["animals", "guest"], ["animals"]]
