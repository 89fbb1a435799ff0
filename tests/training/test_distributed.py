"""A LoRA that several processes train together: real ones, connected by gloo on the CPU, on the demo's pipeline."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from feedback_loop.feedback import formats
from feedback_loop.feedback.formats.bundle import Bundle
from feedback_loop.feedback.rewards.clip_folder import clip_encoders
from feedback_loop.feedback.rewards.files import save_reward
from feedback_loop.feedback.rewards.taste import TasteReward
from feedback_loop.training.distributed import main
from feedback_loop.training.online import Epoch
from feedback_loop.training.pipeline import load

from .pipelines import (
    DEMO,
    PROMPTS,
    ROOT,
    SHORT,
    apart,
    bundle,
    export,
    kill,
    lora,
    tiny_sd3,
    tiny_sdxl,
    together,
    torchrun,
)

TOLERANCE = 1e-6


def command(out: Path, objective: str, *more: object, pipeline: Path = DEMO) -> list[str]:
    return [*map(str, ("--pipeline", pipeline, "--objective", objective, "--out", out, *more)), *SHORT]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return export(tmp_path_factory.mktemp("export"))


def test_two_processes_train_what_one_does(tmp_path: Path, files: list[Path]) -> None:
    """By SFT, KTO, whose loss needs the mean over the whole batch, and DPO. 3 pictures a step: shares of 1 and 2."""
    data, objectives = ("--feedback", *files, "--batch", 3), ("sft", "kto", "dpo")
    together(tmp_path, [command(tmp_path / f"{name}_2.safetensors", name, *data) for name in objectives])
    for name in objectives:
        assert main(command(tmp_path / f"{name}_1.safetensors", name, *data)) == 0
        assert apart(tmp_path / f"{name}_1.safetensors", tmp_path / f"{name}_2.safetensors") <= TOLERANCE, name


@pytest.mark.long
def test_two_processes_that_draw_for_themselves_train_what_one_does(tmp_path: Path) -> None:
    """NFT and AWM online: the drawings are cut by prompts (3 of them), the batch by pictures; and SFT with a batch of
    one, where the second process has nothing to do."""
    (tmp_path / "prompts.txt").write_text("\n".join([*PROMPTS, "bright"]))
    online = ("--reward", "more:brightness", "--prompts", tmp_path / "prompts.txt", "--updates", 2, "--batch", 3)
    online += ("--prompts-per-epoch", 3, "--group-size", 2, "--sampling-steps", 3, "--cfg", 2)
    online += ("--width", 64, "--height", 64)
    wanted = {
        "nft": online, "awm": online, "sft": ("--feedback", *export(tmp_path), "--batch", 1)
    }  # fmt: skip
    together(tmp_path, [command(tmp_path / f"{name}_2.safetensors", name, *data) for name, data in wanted.items()])
    for name, data in wanted.items():
        assert main(command(tmp_path / f"{name}_1.safetensors", name, *data)) == 0
        assert apart(tmp_path / f"{name}_1.safetensors", tmp_path / f"{name}_2.safetensors") <= TOLERANCE, name


@pytest.mark.long
def test_a_run_of_two_that_is_killed_goes_on_to_where_an_unbroken_one_ends(tmp_path: Path, files: list[Path]) -> None:
    """By the documented command, in the folder that a clone of any name lies in."""
    (tmp_path / "my-clone").symlink_to(ROOT)
    data = ("--feedback", *files, "--batch", 4, "--every", 1)
    told = ["-m", "my-clone.training.distributed", *command(tmp_path / "killed.safetensors", "nft", *data)]
    told[told.index("--steps") + 1] = "20"
    process = torchrun(*told, cwd=tmp_path)
    while not any(path.name >= "step-000003" for path in (tmp_path / "killed.run").glob("step-*")):
        assert process.poll() is None, process.communicate()[0][-5000:]
        time.sleep(0.02)
    kill(process)
    assert not (tmp_path / "killed.safetensors").exists()
    again = torchrun(*told, cwd=tmp_path)
    try:
        said, _ = again.communicate()
    finally:
        kill(again)
    assert again.returncode == 0 and "goes on from step" in said, said[-5000:]
    unbroken = command(tmp_path / "unbroken.safetensors", "nft", *data)
    unbroken[unbroken.index("--steps") + 1] = "20"
    together(tmp_path, [unbroken])
    assert apart(tmp_path / "killed.safetensors", tmp_path / "unbroken.safetensors") == 0


@pytest.mark.long
@pytest.mark.parametrize("made", [tiny_sd3, tiny_sdxl], ids=["sd3", "sdxl"])
def test_other_kinds_of_pipelines_train_too(made: Any, tmp_path: Path, files: list[Path]) -> None:
    """Also in half precision, with what is not kept for the backward pass computed again."""
    pipeline, out = made(tmp_path / "pipeline"), tmp_path / "out.safetensors"
    data = ("--feedback", *files, "--batch", 2)
    sparing = ("--precision", "bf16", "--gradient-checkpointing", "--accumulation", 2)
    assert main(command(tmp_path / "sparing.safetensors", "kto", *data, *sparing, pipeline=pipeline)) == 0
    assert main(command(out, "dpo", *data, pipeline=pipeline)) == 0
    prefix = "transformer." if made is tiny_sd3 else "lora_unet_"
    assert all(key.startswith(prefix) for key in lora(out))
    assert max(float(t.abs().max()) for key, t in lora(out).items() if key.endswith("lora_up.weight")) > 1e-4


def taste(path: Path, centre: Tensor | float = 0.0, weight: float = 1.0, id: str = "") -> Path:
    """A taste for what the demo's image encoder sees more of than `centre`; id: as if of another encoder."""
    encoder = clip_encoders(DEMO / "image_encoder")[1]
    encoder.id = id or encoder.id
    width = encoder(torch.zeros(1, 3, 64, 64)).shape[1]
    tensors = {"centre": torch.zeros(width) + centre, "scale": torch.ones(width)}
    tensors |= {"weight": torch.full((width,), weight), "root": torch.zeros(width, 1)}
    save_reward(TasteReward(encoder, tensors), path)
    return path


def drawing(tmp_path: Path, reward: str | Path, *more: object) -> list[object]:
    """Options for training online on one picture of each prompt an epoch."""
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    online = ["--reward", reward, "--prompts", tmp_path / "prompts.txt", "--prompts-per-epoch", 2, "--group-size", 1]
    return [*online, "--sampling-steps", 2, "--cfg", 1, "--width", 64, "--height", 64, "--batch", 2, *more]


def test_a_learned_taste_is_a_reward_with_its_encoders_folder(tmp_path: Path) -> None:
    """And another taste of the same name makes another run."""
    liked, encoder = taste(tmp_path / "taste.safetensors"), ("--encoder", DEMO / "image_encoder")
    out = tmp_path / "a.safetensors"
    assert main(command(out, "nft", *drawing(tmp_path, liked, *encoder))) == 0
    assert max(float(t.abs().max()) for key, t in lora(out).items() if key.endswith("lora_up.weight")) > 1e-4
    out.unlink()
    other = taste(tmp_path / "other.safetensors", weight=-1.0)
    assert main(command(out, "nft", *drawing(tmp_path, other, *encoder))) == 2


def test_a_taste_without_its_encoder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    liked, out = taste(tmp_path / "taste.safetensors", id="clip_vision_model-0123"), tmp_path / "a.safetensors"
    said = refused(command(out, "nft", *drawing(tmp_path, liked)), capsys)
    assert "through the image encoder clip_vision_model-0123. Give --encoder" in said
    encoder = ("--encoder", DEMO / "image_encoder")
    said = refused(command(out, "nft", *drawing(tmp_path, liked, *encoder)), capsys)
    assert "was made with the image encoder clip_vision_model-0123, and that folder's is clip_vision_model-" in said


def test_a_score_that_is_no_number_is_refused_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A taste whose weights are so large that float32 can't hold the sum."""
    broken, out = taste(tmp_path / "taste.safetensors", weight=3e38), tmp_path / "a.safetensors"
    said = refused(
        command(out, "nft", *drawing(tmp_path, broken, "--encoder", DEMO / "image_encoder")), capsys
    )  # fmt: skip
    assert re.search(r"Drawing 1: the reward 'taste' gives (nan|-?inf) for a picture of '(one small|two large)", said)
    assert "give another --reward" in said and not out.exists()


@pytest.mark.long
def test_a_score_that_one_of_two_processes_cannot_use_ends_both(tmp_path: Path) -> None:
    """Of two prompts the second process draws the second. The same taste, but with the features of the first picture
    as its centre, so that the first process gets a score near 0: nobody waits for the other, and it is said."""
    plain = command(tmp_path / "plain.safetensors", "nft", *drawing(tmp_path, "more:brightness"))
    assert main(plain) == 0
    epoch = Epoch.load(tmp_path / "plain.run" / "rollouts" / "epoch-00000-0.safetensors")
    picture = load(DEMO, torch.float32).decode(epoch.tensors["latents"][:1])
    centre = clip_encoders(DEMO / "image_encoder")[1](picture)[0]
    broken = taste(tmp_path / "taste.safetensors", centre, 1e38)
    told = command(tmp_path / "a.safetensors", "nft", *drawing(tmp_path, broken, "--encoder", DEMO / "image_encoder"))
    (tmp_path / "runs.json").write_text(json.dumps([told]))
    process = torchrun(str(Path(__file__).with_name("ranks.py")), str(tmp_path / "runs.json"))
    try:
        said, _ = process.communicate()
    finally:
        kill(process)
    assert process.returncode != 0
    assert re.search(rf"Drawing 1: the reward 'taste' gives \S+ for a picture of '{epoch.prompts[1]}'", said), said
    assert 'Traceback (most recent call last):\n  File "' + str(ROOT / "training") not in said


@pytest.mark.parametrize("name", ["a-clone", "a.clone 2"])
def test_the_command_works_in_a_clone_of_any_name(name: str, tmp_path: Path) -> None:
    """As a module where the name can be one, by its path always; here it gets as far as the pipeline."""
    (tmp_path / name).symlink_to(ROOT)
    by_path = [str(tmp_path / name / "training" / "distributed.py")]
    start = by_path if "." in name else ["-m", f"{name}.training.distributed"]
    (tmp_path / "prompts").write_text("a star")
    wanted = ["--pipeline", "nowhere", "--objective", "nft", "--out", "a.safetensors"]
    done = subprocess.run(
        [sys.executable, *start, *wanted, "--reward", "watermark", "--prompts", "prompts"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.startswith("nowhere is no folder"), done.stderr
    assert "Traceback" not in done.stderr


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says when it ends with status 2."""
    try:
        status = main(arguments)
    except SystemExit as ended:  # argparse's
        status = ended.code
    assert status == 2
    return capsys.readouterr().err


def test_an_export_without_judgements_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    formats.write("imagefolder", Bundle(pictures=bundle().pictures), tmp_path / "bare.zip")
    said = refused(command(tmp_path / "a.safetensors", "sft", "--feedback", tmp_path / "bare.zip"), capsys)
    assert "bare.zip holds 6 pictures, and 0 of them have a prompt and a rating or comparison" in said


def test_files_that_are_no_exports_are_refused(
    tmp_path: Path, files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.safetensors"
    (tmp_path / "text.zip").write_text("no zip")
    assert "no Parquet, ZIP or JSON" in refused(command(out, "sft", "--feedback", tmp_path / "text.zip"), capsys)
    assert "There is no file" in refused(command(out, "sft", "--feedback", tmp_path / "not there"), capsys)
    on_axis = command(out, "sft", "--feedback", *files, "--axis", "mood")
    assert "on the axis 'mood'" in refused(on_axis, capsys)


@pytest.mark.parametrize(
    ("objective", "more", "why"),
    [
        ("ppo", ["--feedback", "x"], "invalid choice: 'ppo'"),
        ("sft", [], "Give --feedback"),
        ("sft", ["--feedback", "FILE", "--beta", "1"], "--beta is no option of SFT"),
        ("dpo", ["--feedback", "FILE", "--reward", "watermark"], "DPO learns from feedback"),
        ("awm", ["--feedback", "FILE"], "give a --reward"),
        ("nft", ["--reward", "watermark"], "Give --prompts"),
        ("nft", ["--feedback", "FILE", "--reward", "more:money"], "neither watermark nor more:"),
        ("nft", ["--feedback", "FILE", "--encoder", "x"], "--encoder is for training online"),
        ("nft", ["--feedback", "FILE", "--reward", "watermark", "--encoder", "x"], "watermark is none: leave it out"),
        ("sft", ["--feedback", "FILE", "--batch", "0"], "out of range"),
        ("sft", ["--feedback", "FILE", "--learning-rate", "nan"], "out of range"),
        ("sft", ["--feedback", "FILE", "--resume", "/nowhere"], "no whole checkpoint in /nowhere"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    objective: str, more: list[str], why: str, tmp_path: Path, files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(files[0]) if word == "FILE" else word for word in more]
    assert why in refused(command(tmp_path / "a.safetensors", objective, *given), capsys)


def test_nothing_is_written_over_or_elsewhere(
    tmp_path: Path, files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there.safetensors").write_text("mine")
    for name, why in (
        ("there.safetensors", "is there already"),
        ("a.bin", ".safetensors"),
        ("no/a.safetensors", "no folder"),
    ):
        assert why in refused(command(tmp_path / name, "sft", "--feedback", *files), capsys)
    assert (tmp_path / "there.safetensors").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DEMO, tmp_path / "pipeline"))


def index(folder: Path, **change: object) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def broken_weights(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:100_000])


def empty_weights(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")


def pickled(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "diffusion_pytorch_model.bin")


def inpainting(folder: Path) -> None:
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"in_channels": 9}))
    tensors = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    weight = tensors["conv_in.weight"]
    tensors["conv_in.weight"] = weight.new_zeros(weight.shape[0], 9, 3, 3)
    save_file(tensors, folder / "unet" / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda f: shutil.rmtree(f), "is no folder"),
        (lambda f: (f / "model_index.json").unlink(), "has no model_index.json"),
        (lambda f: (f / "model_index.json").write_text("[" * 100_000), "can't be read"),
        (lambda f: index(f, _class_name="FluxPipeline"), "is a FluxPipeline; those that can be trained here"),
        (lambda f: index(f, unet=["os", "system"]), "not from diffusers or transformers"),
        (lambda f: index(f, **{"../unet": ["diffusers", "UNet2DConditionModel"]}), "refused"),
        (lambda f: index(f, vae=[None, None]), "has no vae"),
        (lambda f: shutil.rmtree(f / "vae"), "lacks the folder vae"),
        (pickled, "holds no .safetensors file"),
        (broken_weights, "diffusers can't load the pipeline"),
        (empty_weights, "lack "),
        (inpainting, "reads 9 channels and the VAE gives 4"),
    ],
)
def test_a_folder_that_is_no_usable_pipeline_is_refused(
    change: Any, why: str, copied: Path, tmp_path: Path, files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    change(copied)
    arguments = command(tmp_path / "a.safetensors", "sft", "--feedback", *files, pipeline=copied)
    assert why in refused(arguments, capsys)
    assert not list(tmp_path.glob("a.*"))


def test_the_file_says_what_it_was_trained_on(tmp_path: Path, files: list[Path]) -> None:
    """And a run in the same folder with other settings does not go on with it."""
    out = tmp_path / "said.safetensors"
    assert main(command(out, "nft", "--feedback", files[0], "--layers", "*attn2*", "--batch", 2)) == 0
    with safe_open(out, framework="pt") as opened:
        told = opened.metadata()
    settings = json.loads(told["ss_feedback_loop"])
    assert settings["objective"] == "NFT" and settings["pipeline"] == "weights" and told["ss_network_dim"] == "2"
    assert told["modelspec.architecture"] == "sd15/lora"
    out.unlink()
    assert main(command(out, "nft", "--feedback", files[0], "--layers", "*attn1*", "--batch", 2)) == 2
