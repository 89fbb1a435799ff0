"""ComfyUI only logs an error of a pack's entrypoint, so this asks the running server what it has."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from feedback_loop import start
from feedback_loop.tests.comfy_host import ComfyServer

NODE_IDS = {
    "FeedbackAutoTrain",
    "FeedbackBestOfN",
    "FeedbackCapture",
    "FeedbackClassifierReward",
    "FeedbackCombineRewards",
    "FeedbackColorReward",
    "FeedbackDataset",
    "FeedbackDemoModel",
    "FeedbackEvaluate",
    "FeedbackExport",
    "FeedbackExportLora",
    "FeedbackGate",
    "FeedbackImport",
    "FeedbackLoadReward",
    "FeedbackMaskReward",
    "FeedbackReferenceGuidance",
    "FeedbackRefineRegion",
    "FeedbackRegionMask",
    "FeedbackReinforceLora",
    "FeedbackOptimizeNoise",
    "FeedbackRewardGuidance",
    "FeedbackRewardSteering",
    "FeedbackRule",
    "FeedbackSaveReward",
    "FeedbackScoreImages",
    "FeedbackSuggest",
    "FeedbackTextConditioning",
    "FeedbackTextReward",
    "FeedbackTrainLora",
    "FeedbackTrainReward",
    "FeedbackTrainWatermarkDetector",
    "FeedbackWatermarkPenalty",
}


def test_the_pack_loads_and_offers_exactly_the_nodes_of_this_version(comfy_server: ComfyServer) -> None:
    assert "IMPORT FAILED" not in comfy_server.log(), comfy_server.log()
    offered = {name for name in comfy_server.get("/object_info") if name.startswith("Feedback")}
    assert offered == NODE_IDS, comfy_server.log()[-4000:]


def test_every_node_stands_in_a_category_of_the_pack(comfy_server: ComfyServer) -> None:
    for node_id in NODE_IDS:
        info = comfy_server.get(f"/object_info/{node_id}")[node_id]
        assert info["category"].startswith("feedback/"), node_id
        assert info["display_name"], node_id
        assert info["description"], node_id


def test_the_server_registers_the_routes_under_their_version(comfy_server: ComfyServer) -> None:
    assert comfy_server.get("/feedback_loop/v1/openapi.json")["openapi"].startswith("3.")


def test_a_second_copy_of_the_pack_is_refused_with_both_folders_named(tmp_path: Path) -> None:
    """As when the manager installs the pack beside a clone; the first one goes on working."""
    comfyui = start.find_comfyui(Path(__file__).resolve().parents[2])
    if comfyui is None:
        pytest.skip("no ComfyUI found (COMFYUI_PATH)")
    base = tmp_path / "base"
    start.link_pack(base)
    (first,) = (base / "custom_nodes").iterdir()
    (base / "custom_nodes" / "second_copy").symlink_to(first.resolve(), target_is_directory=True)
    log = tmp_path / "comfyui.log"
    server = start.start_server(Path(sys.executable), comfyui, base, start.free_port(), log, ["--cpu"])
    try:
        running = ComfyServer(start.wait_until_ready(server))
        assert "Feedback Loop is installed twice" in running.log()
        assert str(first) in running.log() and "second_copy" in running.log()
        assert running.get("/object_info/FeedbackCapture")
    finally:
        server.stop()
