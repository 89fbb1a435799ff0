"""The tour's workflows, loaded in the real frontend and run to the end on the demo model."""

from __future__ import annotations

import base64
import io
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from feedback_loop.feedback.media import encode_png
from feedback_loop.tests.browser.sidebar_page import Sidebar
from feedback_loop.tests.comfy_host import error_of

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
API = "/feedback_loop/v1"
FRONTEND_ONLY = {"MarkdownNote"}
PROMPTS = ("red star", "blue square", "two green circles", "yellow triangle", "purple star", "three red squares")

pytestmark = pytest.mark.skipif(
    not (ROOT / "demo" / "weights" / "unet" / "diffusion_pytorch_model.safetensors").exists(),
    reason="the demo model's weights are not there",
)


def workflow(number: str) -> Path:
    (path,) = [path for path in WORKFLOWS if path.name.startswith(number)]
    return path


def api_prompt(comfy_page: Any, path: Path) -> dict[str, Any]:
    """What the frontend would send to the server for the workflow."""
    return comfy_page.load(path).page.evaluate("async () => (await window.app.graphToPrompt()).output")


def node_of(prompt: dict[str, Any], class_type: str, title: str | None = None) -> str:
    (node_id,) = [
        node_id
        for node_id, node in prompt.items()
        if node["class_type"] == class_type and title in (None, node["_meta"]["title"])
    ]
    return node_id


def brightness(server: Any, image_id: str) -> float:
    with urllib.request.urlopen(f"{server.url}{API}/images/{image_id}/file") as answer:
        return float(np.asarray(Image.open(io.BytesIO(answer.read())).convert("L")).mean())


@pytest.fixture(scope="module")
def rated(shared_comfy_page: Any) -> list[str]:
    """The first workflow run on six prompts, its 54 pictures rated by somebody who likes them bright."""
    server = shared_comfy_page.server
    prompt = api_prompt(shared_comfy_page, workflow("01"))
    ids: list[str] = []
    for seed, text in enumerate(PROMPTS):
        prompt[node_of(prompt, "CLIPTextEncode", "Prompt")]["inputs"]["text"] = text
        prompt[node_of(prompt, "KSampler")]["inputs"]["seed"] = seed
        outputs = server.run(prompt)
        ids += outputs[node_of(prompt, "FeedbackCapture")]["feedback_images"]
    order = np.argsort(np.argsort([brightness(server, image_id) for image_id in ids]))
    for image_id, place in zip(ids, order, strict=True):
        stars = 1 + int(place * 5 // len(ids))
        body = {"image_id": image_id, "value": stars, "scale": {"min": 1, "max": 5}, "rater": "likes it bright"}
        server.post(f"{API}/ratings", body)
    return ids


@pytest.mark.parametrize("vue_nodes", [False, True], ids=["classic", "vue"])
def test_the_frontend_loads_every_workflow_whole_and_makes_a_valid_prompt_of_it(shared_comfy_page, vue_nodes) -> None:
    known = shared_comfy_page.set_vue_nodes(vue_nodes).server.get("/object_info")
    for path in WORKFLOWS:
        prompt = api_prompt(shared_comfy_page, path)
        state = shared_comfy_page.page.evaluate(
            "() => app.graph.nodes.map((node) => [node.type, Boolean(node.has_errors), node.constructor.name])"
        )
        assert [node for node in state if node[1]] == [], path.name
        assert {kind for kind, *_ in state} - FRONTEND_ONLY <= set(known), path.name
        assert len(prompt) == sum(kind not in FRONTEND_ONLY for kind, *_ in state), path.name
        for node in prompt.values():
            required = known[node["class_type"]]["input"].get("required", {})
            assert set(required) <= set(node["inputs"]), f"{path.name}: {node['class_type']}"
    assert shared_comfy_page.errors == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_no_two_nodes_of_a_workflow_overlap(shared_comfy_page, path: Path) -> None:
    boxes = shared_comfy_page.load(path).page.evaluate(
        "() => app.graph.nodes.map((node) => [node.title, ...node.pos, ...node.size])"
    )
    title = 30  # pixels of the title bar, above a node's position
    for index, (one, x, y, width, height) in enumerate(boxes):
        for other, x2, y2, width2, height2 in boxes[index + 1 :]:
            apart = x + width <= x2 or x2 + width2 <= x or y + height <= y2 - title or y2 + height2 <= y - title
            assert apart, f"{one} lies over {other}"


def test_collecting_ratings_runs_from_the_button_and_shows_its_pictures(shared_comfy_page) -> None:
    entry = shared_comfy_page.load(workflow("01")).queue()
    assert entry["status"]["status_str"] == "success"
    ids = next(output["feedback_images"] for output in entry["outputs"].values() if "feedback_images" in output)
    assert len(ids) == 9
    recorded = shared_comfy_page.server.get(f"{API}/images/{ids[-1]}")
    assert (recorded["collection"], recorded["prompt"]) == ("my taste", "red star, bright background")
    shared_comfy_page.page.wait_for_selector(f'.fl-card[data-image-id="{ids[-1]}"]', state="attached")


def judged(prompt: dict[str, Any], judge: str, plain: list[Any], guided: list[Any]) -> dict[str, dict[str, Any]]:
    """The prompt with two nodes more, "plain" and "guided", which score the pictures by what `judge` gives out."""
    node = {"class_type": "FeedbackScoreImages", "_meta": {"title": "Score"}}
    links = {"plain": plain, "guided": guided}
    return prompt | {name: {**node, "inputs": {"images": link, "reward": [judge, 0]}} for name, link in links.items()}


def test_a_taste_is_learned_and_guides(shared_comfy_page, rated) -> None:
    """Six pictures of the same noise without and with it: the guided ones are better on average, to the taste that was
    learned and to whom it was learned from, who likes it bright."""
    server, prompt = shared_comfy_page.server, api_prompt(shared_comfy_page, workflow("02"))
    taste, capture = node_of(prompt, "FeedbackTrainReward"), node_of(prompt, "FeedbackCapture")
    ends = [prompt[node]["inputs"]["images"] for node in (node_of(prompt, "PreviewImage"), capture)]
    outputs = server.run(judged(prompt, taste, *ends))
    ids = outputs[capture]["feedback_images"]
    plain = [np.asarray(picture) for picture in shown(server, outputs[node_of(prompt, "PreviewImage")])]
    guided = [pixels(server, image_id) for image_id in ids]
    assert (len(plain), len(guided)) == (6, 6)
    assert not any(np.array_equal(one, other) for one, other in zip(plain, guided, strict=True))
    assert np.mean(outputs["guided"]["scores"]) > np.mean(outputs["plain"]["scores"])
    assert np.mean(guided) > np.mean(plain)
    assert outputs[node_of(prompt, "FeedbackDataset")]["images"], "no preview of the ratings"
    assert list((server.base_directory / "models" / "feedback_rewards").glob("my taste*.safetensors"))


def test_guided_pictures_are_stored_with_how_they_were_made(shared_comfy_page, rated) -> None:
    """What is needed to make them again: the settings of their own sampler, and the graph with the guidance in it."""
    prompt = api_prompt(shared_comfy_page, workflow("02"))
    ids = shared_comfy_page.server.run(prompt)[node_of(prompt, "FeedbackCapture")]["feedback_images"]
    store = Sidebar(shared_comfy_page).store()
    try:
        found = [(store.image(image_id), store.graphs(image_id)[0]) for image_id in ids]
    finally:
        store.close()
    guidance = node_of(prompt, "FeedbackRewardGuidance")
    for index, (image, graph) in enumerate(found):
        made = image.generation
        assert (image.collection, made.prompt, made.negative) == ("my taste", "red star, bright background", "")
        assert (made.seed, made.steps, made.cfg, made.sampler, made.batch_index) == ("7", 20, 2.0, "euler", index)
        assert graph is not None and graph[guidance]["inputs"] == prompt[guidance]["inputs"]


@pytest.mark.parametrize("judge", ["Watermark penalty", "A second detector, to audit"])
def test_the_watermark_penalty_leaves_fewer_watermarks_to_either_detector(shared_comfy_page, judge: str) -> None:
    """Nine pictures of the same noise: scored by the detector that steered, and by the auditor, which did not."""
    server, prompt = shared_comfy_page.server, api_prompt(shared_comfy_page, workflow("03"))
    views = [node_of(prompt, "PreviewImage", title) for title in ("Plain", "With the penalty")]
    detector = node_of(prompt, "FeedbackWatermarkPenalty", judge)
    outputs = server.run(judged(prompt, detector, *(prompt[view]["inputs"]["images"] for view in views)))
    plain, guided = (np.stack([np.asarray(one) for one in shown(server, outputs[view])]) for view in views)
    assert plain.shape == guided.shape == (9, 64, 64, 3)
    assert (plain != guided).any(axis=(1, 2, 3)).all()
    assert np.mean(outputs["guided"]["scores"]) > np.mean(outputs["plain"]["scores"])


def shown(server: Any, output: dict[str, Any]) -> list[Image.Image]:
    """What a preview node shows."""
    return [
        Image.open(server.base_directory / "temp" / file["subfolder"] / file["filename"]).convert("RGB")
        for file in output["images"]
    ]


def test_a_lora_is_trained_saved_and_compared(shared_comfy_page, rated) -> None:
    prompt = api_prompt(shared_comfy_page, workflow("04"))
    training, comparison = node_of(prompt, "FeedbackTrainLora"), node_of(prompt, "FeedbackEvaluate")
    # The whole graph, but shorter: what it gains is measured elsewhere, here it has to run to its end.
    prompt[training]["inputs"] |= {"steps": 20, "show.every": 20}
    prompt[comparison]["inputs"]["seeds"] = 1
    outputs = shared_comfy_page.server.run(prompt, seconds=540)
    loras = shared_comfy_page.server.base_directory / "models" / "loras"
    assert list(loras.glob("my taste_*.safetensors"))
    assert outputs[comparison]["images"], "no grid of the comparison"


def test_a_wish_in_words_changes_the_pictures_and_what_was_said_is_told(shared_comfy_page) -> None:
    server, prompt = shared_comfy_page.server, api_prompt(shared_comfy_page, workflow("05"))
    outputs = server.run(prompt)
    light = {}
    for title in ("Plain", "As you said"):
        files = outputs[node_of(prompt, "PreviewImage", title)]["images"]
        pictures = [Image.open(server.base_directory / "temp" / file["filename"]).convert("L") for file in files]
        light[title] = float(np.mean([np.asarray(picture) for picture in pictures]))
        assert len(files) == 6
    assert light["As you said"] != light["Plain"]
    (told,) = outputs[node_of(prompt, "FeedbackTextConditioning")]["text"]
    assert "more: on the left, plain background" in told and "0.50  larger" in told


def test_what_is_marked_is_made_anew_in_the_next_run_and_the_rest_passes(shared_comfy_page) -> None:
    """The first run has nothing marked; then a box is drawn in one picture of four, as the large view sends it."""
    server, prompt = shared_comfy_page.server, api_prompt(shared_comfy_page, workflow("06"))
    refining = node_of(prompt, "FeedbackRefineRegion")
    first = server.run(prompt)
    assert "Nothing is marked" in first[refining]["text"][0]
    ids = first[node_of(prompt, "FeedbackCapture", "Capture pictures")]["feedback_images"]
    box = {"image_id": ids[1], "shape": "rect", "geometry": [[0.25, 0.25], [0.75, 0.75]], "label": "artifact"}
    server.post(f"{API}/regions", {**box, "rater": "marks", "comment": "a red star, no watermark"})
    second = server.run(prompt)
    assert second[refining]["text"][0].startswith("4 candidates, the best scores")
    [round_] = server.get(f"{API}/images/{ids[1]}/family")["rounds"]
    assert round_["comment"] == "a red star, no watermark" and len(round_["candidates"]) == 4
    assert server.get(f"{API}/images/{ids[0]}/family")["rounds"] == []
    old, new = (pixels(server, id_) for id_ in (ids[1], round_["candidates"][0]["image_id"]))
    grown = slice(16 - 4, 48 + 4)
    assert not np.array_equal(old[grown, grown], new[grown, grown])
    old[grown, grown] = new[grown, grown] = 0
    assert np.array_equal(old, new)


def pixels(server: Any, image_id: str) -> np.ndarray:
    with urllib.request.urlopen(f"{server.url}{API}/images/{image_id}/file") as answer:
        return np.asarray(Image.open(io.BytesIO(answer.read())).convert("RGB")).copy()


def test_a_search_without_gradients_finds_brighter_pictures_and_a_rule_leaves_its_tags(shared_comfy_page) -> None:
    """The reward is brightness, and what Best of N tells of its own pictures is what is measured on them."""
    server, prompt = shared_comfy_page.server, api_prompt(shared_comfy_page, workflow("07"))
    # a penalty is always below 0, so the rule always fires
    prompt[node_of(prompt, "FeedbackRule")]["inputs"]["threshold"] = 0.0
    outputs = server.run(prompt)
    light = {}
    for title in ("Best of eight", "Steered"):
        files = outputs[node_of(prompt, "PreviewImage", title)]["images"]
        pictures = [Image.open(server.base_directory / "temp" / file["filename"]).convert("L") for file in files]
        light[title] = float(np.mean([np.asarray(picture) for picture in pictures]))
    ids = outputs[node_of(prompt, "FeedbackCapture")]["feedback_images"]
    assert light["Best of eight"] > np.mean([brightness(server, image_id) for image_id in ids])
    assert len(ids) == 4 and light["Steered"] > 0
    for image_id in ids:
        (tag,) = server.get(f"{API}/images/{image_id}/marks")["tags"]
        assert tag["rater"] == "rules" and tag["tag"].startswith("stepped back at ")


def test_a_lora_is_reinforced_by_what_the_model_draws(shared_comfy_page) -> None:
    """The whole graph, with two epochs of two groups of two: what it gains is measured elsewhere."""
    prompt = api_prompt(shared_comfy_page, workflow("08"))
    training, comparison = node_of(prompt, "FeedbackReinforceLora"), node_of(prompt, "FeedbackEvaluate")
    prompt[training]["inputs"] |= {"epochs": 2, "updates": 1, "prompts_per_epoch": 2, "group_size": 2}
    prompt[comparison]["inputs"]["seeds"] = 1
    outputs = shared_comfy_page.server.run(prompt, seconds=540)
    assert list((shared_comfy_page.server.base_directory / "models" / "loras").glob("brighter_*.safetensors"))
    (told,) = outputs[training]["text"]
    assert "reward: " in told and "no watermark: " in told
    assert outputs[comparison]["images"], "no grid of the comparison"


def test_the_whole_loop_trains_waits_for_a_choice_and_makes_the_marked_place_anew(shared_comfy_page, rated) -> None:
    """Queued by a page, which is there to be asked; the answer is sent as the page sends it."""
    server, page = shared_comfy_page.server, shared_comfy_page.load(workflow("09")).page
    page.evaluate(SET, ["FeedbackAutoTrain", {"steps": 20, "pairs": 30, "name": "whole loop", "sampling_steps": 4}])
    before = set(server.get("/history"))
    page.evaluate("() => window.app.queuePrompt(0, 1)")
    (asked,) = shared_comfy_page.poll(lambda: server.get(f"{API}/gates")["gates"], 540)
    chosen = asked["images"][2]
    painted = np.zeros((64, 64), np.uint8)
    painted[16:48, 16:48] = 255
    said = {"mask": base64.b64encode(encode_png(painted)).decode(), "comment": "a blue circle", "rater": "marks"}
    server.post(f"{API}/gates/{asked['key']}", {"action": "choose", "images": [chosen], **said})
    (new,) = shared_comfy_page.poll(lambda: set(server.get("/history")) - before, 540)
    entry = server.wait(new)
    assert entry["status"]["status_str"] == "success", error_of(entry)
    [round_] = server.get(f"{API}/images/{chosen}/family")["rounds"]
    assert round_["comment"] == "a blue circle" and len(round_["candidates"]) == 4
    (result,) = [
        one for output in entry["outputs"].values() for one in output.get("feedback_images", []) if one != chosen
    ]
    old, made = pixels(server, chosen), pixels(server, result)
    changed = np.any(old != made, axis=-1)
    assert changed.any() and not changed[~grown(painted > 0, 8)].any()
    trained = server.get(f"{API}/auto_train/whole%20loop")["versions"]
    assert [one["file"] for one in trained] == ["whole loop_00001.safetensors"]
    pair = server.get(f"{API}/pairs/next?collection=auto%20train&rater=marks")
    assert pair is not None and not {pair["left"], pair["right"]} & set(asked["images"]), "no candidate is compared"


SET = """([type, values]) => {
  const node = app.graph.nodes.find((one) => one.type === type);
  for (const [name, value] of Object.entries(values)) node.widgets.find((one) => one.name === name).value = value;
}"""


def grown(mask: np.ndarray, by: int) -> np.ndarray:
    from scipy.ndimage import binary_dilation

    return binary_dilation(mask, iterations=by)
