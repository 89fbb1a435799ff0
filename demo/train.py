"""The recipe of the demo model: one command, resumable, everything from the drawn world.

    python demo/train.py            # all stages in order; a finished stage is skipped
    python demo/train.py vae unet   # these stages only

Stages: tokenizer, configs, pictures, text, vae, latents, unet, judge, vision. Work files go to demo/.work,
weights to demo/weights in diffusers' layout. On two cores all of it takes about three hours.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

if not __package__:
    import pack  # noqa: F401

from feedback_loop.demo import judge, models, world  # noqa: E402

WORK = Path(__file__).parent / ".work"
MARKED = 0.42  # share of watermarked pictures; classifier-free guidance takes some away again
PICTURES = int(os.environ.get("DEMO_PICTURES", 20000))
BYTES = [*range(33, 127), *range(161, 173), *range(174, 256)]  # the printable bytes of byte-level BPE


# --- data ------------------------------------------------------------------------------------------------------------


def scene_of(index: int) -> world.Scene:
    return world.sample_scene(np.random.default_rng((7, index)), MARKED)


def _draw_block(block: range) -> np.ndarray:
    return np.stack([world.draw(scene_of(i)) for i in block])


def pictures() -> np.ndarray:
    """(N, 64, 64, 3) uint8; scene i is `scene_of(i)`."""
    path = WORK / "pictures.npy"
    if not path.exists():
        blocks = [range(i, min(i + 500, PICTURES)) for i in range(0, PICTURES, 500)]
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            np.save(path, np.concatenate(list(pool.map(_draw_block, blocks))))
    return np.load(path, mmap_mode="r")


def as_tensor(block: np.ndarray) -> torch.Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) in -1..1."""
    return torch.from_numpy(np.ascontiguousarray(block)).permute(0, 3, 1, 2).float() / 127.5 - 1


def tokenizer():
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(str(models.WEIGHTS / "tokenizer"))


def tokens_of(captions: list[str], tok, length: int) -> torch.Tensor:
    return tok(captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids


# --- one loop for every stage ----------------------------------------------------------------------------------------


class Ema:
    def __init__(self, net: torch.nn.Module, decay: float):
        self.decay = decay
        self.state = {k: v.detach().clone() for k, v in net.state_dict().items()}

    @torch.no_grad()
    def update(self, net: torch.nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (20 + step))
        for k, v in net.state_dict().items():
            self.state[k].lerp_(v, 1 - decay) if v.is_floating_point() else self.state[k].copy_(v)


def fit(
    name: str,
    net: torch.nn.Module,
    loss_of: Callable[[int], torch.Tensor],
    steps: int,
    lr: float,
    decay: float = 0.998,
    save_every: int = 50,
) -> torch.nn.Module:
    """AdamW with warm-up and cosine decay; resumes from demo/.work/<name>.pt. Returns the net with averaged weights."""
    path = WORK / f"{name}.pt"
    optimiser = torch.optim.AdamW(
        [p for p in net.parameters() if p.requires_grad], lr, betas=(0.9, 0.99), weight_decay=0.01
    )
    ema, start, began, recent = Ema(net, decay), 0, time.time(), []
    if path.exists():
        kept = torch.load(path, weights_only=True)
        net.load_state_dict(kept["net"])
        optimiser.load_state_dict(kept["optimiser"])
        ema.state, start = kept["ema"], kept["step"]
    for step in range(start, steps):
        rate = lr * min(1, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimiser.param_groups:
            group["lr"] = rate
        loss = loss_of(step)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        ema.update(net, step)
        recent.append(loss.item())
        if (step + 1) % save_every == 0 or step + 1 == steps:
            state = {"net": net.state_dict(), "optimiser": optimiser.state_dict(), "ema": ema.state, "step": step + 1}
            torch.save(state, path.with_suffix(".new"))
            path.with_suffix(".new").replace(path)
            print(f"{name} {step + 1}/{steps} loss {np.mean(recent):.4f} {time.time() - began:.0f} s", flush=True)
            recent = []
    net.load_state_dict(ema.state)
    return net.eval()


def batches(n: int, size: int, seed: int) -> Iterator[np.ndarray]:
    epoch = 0
    while True:
        order = np.random.default_rng((seed, epoch)).permutation(n)
        yield from order[: n - n % size].reshape(-1, size)
        epoch += 1


def save_half(net_state: dict[str, torch.Tensor], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {k: v.half().contiguous() if v.is_floating_point() else v.contiguous() for k, v in net_state.items()}, path
    )
    path.chmod(0o644)  # safetensors leaves files to their owner alone


# --- stages ----------------------------------------------------------------------------------------------------------


def segment(word: str, merges: list[tuple[str, str]]) -> list[str]:
    """BPE: merge the pair of the lowest rank until no pair is known."""
    parts, rank = [*word[:-1], word[-1] + "</w>"], {pair: i for i, pair in enumerate(merges)}
    while known := [pair for pair in zip(parts, parts[1:], strict=False) if pair in rank]:
        pair = min(known, key=rank.__getitem__)
        i = next(i for i in range(len(parts) - 1) if (parts[i], parts[i + 1]) == pair)
        parts[i : i + 2] = [pair[0] + pair[1]]
    return parts


def train_tokenizer() -> None:
    """A byte-level BPE in CLIP's form whose merges spell the words of the captions; any other word becomes bytes."""
    folder = models.WEIGHTS / "tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    text = " ".join(world.caption(scene_of(i), rng, keep=1.0, tell_watermark=1.0) for i in range(2000))
    words = sorted(
        set(text.replace(",", " ").split())
        | {"a", "no", "the", "of", "with", "light", "less", "more", "busy", "shape", "shapes"}
    )
    alphabet = [chr(b) for b in BYTES] + [chr(256 + i) for i in range(256 - len(BYTES))]
    merges: list[tuple[str, str]] = []
    for word in words:
        parts = segment(word, merges)
        while len(parts) > 1:  # a later merge never undoes an earlier word: the earliest pair is merged first
            merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1], *parts[2:]]
    vocabulary = (
        alphabet + [a + "</w>" for a in alphabet] + [a + b for a, b in merges] + ["<|startoftext|>", "<|endoftext|>"]
    )
    vocabulary = list(dict.fromkeys(vocabulary))
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(vocabulary)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(f"{a} {b}" for a, b in merges) + "\n")
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": models.TEXT_TOKENS} | special
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))


@torch.no_grad()
def start_near_linear(vae: torch.nn.Module) -> None:
    """Residual branches start at 0 and the convolutions between levels as averages, so that colour passes from the
    first step on; with the usual weak random start the first thousand steps go into that."""
    for name, module in vae.named_modules():
        if name.endswith("conv2") or name.endswith("to_out.0"):
            module.weight.zero_()
        elif name.endswith(("downsamplers.0.conv", "upsamplers.0.conv")):
            module.weight.mul_(0.3)
            module.weight += torch.eye(module.weight.shape[0])[:, :, None, None] / 9
        elif name.endswith(("conv_in", "conv_shortcut")):
            torch.nn.init.orthogonal_(module.weight)


def near_shapes(scenes: list[world.Scene]) -> torch.Tensor:
    """(B, 1, 64, 64) 1 on and around the shapes: a few pixels there make a square a square and not a circle."""
    line = np.arange(world.SIZE) + 0.5
    found = np.zeros((len(scenes), 1, world.SIZE, world.SIZE), np.float32)
    for i, scene in enumerate(scenes):
        for dx, dy in world.group(scene.count, scene.radius):
            far = np.hypot(line[None] - scene.x - dx, line[:, None] - scene.y - dy)
            found[i, 0] = np.maximum(found[i, 0], far < 1.4 * scene.radius + 1)
    return torch.from_numpy(found)


def drawing_loss(made: torch.Tensor, drawn: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Error of colours and of edges, in pictures (B, 3, H, W) of -1..1; weight (B, 1, H, W)."""
    error = made - drawn
    edges = sum((error.diff(dim=d).abs() * weight.narrow(d, 1, weight.shape[d] - 1)).mean() for d in (2, 3))
    return (weight * (error.abs() + 5 * error.square())).mean() + 0.4 * edges


def train_vae() -> None:
    data, net = pictures(), models.new_vae()
    start_near_linear(net)
    order = batches(len(data), 12, 1)
    noise = torch.Generator().manual_seed(1)
    steps, crops = int(os.environ.get("VAE_STEPS", 8000)), int(os.environ.get("VAE_CROPS", 7500))

    def loss_of(step: int) -> torch.Tensor:
        index = np.sort(next(order))
        x, weight = as_tensor(data[index]), 1 + 3 * near_shapes([scene_of(i) for i in index])
        if step < crops:  # a quarter of a picture: four times the steps in the same time, while steps are what it needs
            top, left = (int(torch.randint(0, 5, (), generator=noise)) * 8 for _ in range(2))
            x, weight = (a[..., top : top + 32, left : left + 32] for a in (x, weight))
        with torch.autocast("cpu", torch.bfloat16):
            z = net.encode(x).latent_dist.mean
            # A sampler's latents are a little off; the decoder learns to live with that, in place of a KL term.
            grain = 0.1 * z.detach().float().std((0, 2, 3), keepdim=True)
            y = net.decode(z + grain * torch.randn(z.shape, generator=noise)).sample.float()
        return drawing_loss(y, x, weight) + 1e-3 * z.float().square().mean()

    fit("vae", net, loss_of, steps, 1.5e-3, decay=0.98)
    standardise(net, as_tensor(data[:512]))
    save_half(net.state_dict(), models.WEIGHTS / "vae" / "diffusion_pytorch_model.safetensors")
    x = as_tensor(data[512:1024])
    with torch.no_grad():
        error = (net.decode(net.encode(x).latent_dist.mean).sample.clamp(-1, 1) - x).square().mean() / 4
    print(f"vae PSNR {-10 * math.log10(error):.2f} dB")


@torch.no_grad()
def standardise(vae: torch.nn.Module, x: torch.Tensor) -> None:
    """Fold mean and scale of each latent channel into the 1x1 convolutions: latents * LATENT_SCALE become N(0, 1)."""
    z = vae.encode(x).latent_dist.mean
    mean, scale = z.mean((0, 2, 3)), 1 / (z.std((0, 2, 3)) * models.LATENT_SCALE)
    quant, post = vae.quant_conv, vae.post_quant_conv
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight /= scale[None, :, None, None]
    quant.weight[:4] *= scale[:, None, None, None]
    quant.bias[:4] = (quant.bias[:4] - mean) * scale
    quant.weight[4:] = 0  # the encoder is as good as exact: a standard deviation of .01 after scaling
    quant.bias[4:] = 2 * math.log(0.01 / models.LATENT_SCALE)


SAID = {
    "shape": world.SHAPES,
    "colour": tuple(world.COLOURS),
    "count": world.COUNTS,
    "size": world.SIZES,
    "place": world.PLACES,
    "light": world.LIGHTS,
    "texture": (*world.TEXTURES, "busy"),
    "watermark": ("watermark",),
}


def what_is_said(captions: list[str]) -> dict[str, torch.Tensor]:
    """By attribute: (B,) the index of the word that the caption uses, 0 where it says nothing."""
    words = [{w.rstrip("s") for w in c.replace(",", " ").split()} for c in captions]
    return {
        name: torch.tensor([next((i for i, o in enumerate(options, 1) if o.rstrip("s") in w), 0) for w in words])
        for name, options in SAID.items()
    }


def train_text() -> None:
    """The text encoder learns to hold, from a caption's end on, all that the caption says.

    A contrast with pictures alone tells colours apart long before places or shapes, and a UNet can't follow what its
    text encoder doesn't tell apart. A large CLIP gets there by size; here a linear read-out of each attribute is asked
    of the last state of the caption and of the padding after it, which is what cross-attention sees most of.
    """
    tok, rng = tokenizer(), np.random.default_rng(8)
    clip, gen = models.new_clip(len(tok)), torch.Generator().manual_seed(8)
    heads = torch.nn.ModuleDict({k: torch.nn.Linear(models.TEXT_WIDTH, len(v) + 1) for k, v in SAID.items()})
    order = batches(PICTURES, 64, 8)

    def loss_of(step: int) -> torch.Tensor:
        captions = [
            world.caption(scene_of(i), rng, tell_watermark=0.5) if rng.random() > 0.05 else "" for i in next(order)
        ]
        ids = tokens_of(captions, tok, models.TEXT_TOKENS)
        states, end = clip.text_model(ids).last_hidden_state, (ids == ids[0, -1]).int().argmax(1)
        later = end + (torch.rand(len(ids), generator=gen) * (models.TEXT_TOKENS - end)).long()
        read = torch.cat([states[torch.arange(len(ids)), at] for at in (end, later)])
        return sum(F.cross_entropy(heads[k](read), v.repeat(2)) for k, v in what_is_said(captions).items())

    fit("text", torch.nn.ModuleDict({"text": clip.text_model, "heads": heads}), loss_of, 1500, 1e-3, decay=0.99)
    save_towers(clip)


def contrastive_loss(
    net, data: np.ndarray, tok, order: Iterator[np.ndarray], rng: np.random.Generator
) -> Callable[[int], torch.Tensor]:
    mean, std = torch.tensor(CLIP_MEAN)[:, None, None], torch.tensor(CLIP_STD)[:, None, None]

    def loss_of(step: int) -> torch.Tensor:
        index = np.sort(next(order))
        x = ((as_tensor(data[index]) + 1) / 2 - mean) / std
        ids = tokens_of([world.caption(scene_of(i), rng, keep=0.75, tell_watermark=0.7) for i in index], tok, 24)
        logits = net(input_ids=ids, pixel_values=x).logits_per_text
        target = torch.arange(len(index))
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    return loss_of


def train_vision() -> None:
    """The image tower learns, by contrast, to meet the captions of the finished text tower, which stays as it is."""
    data, tok, net = pictures(), tokenizer(), load_clip()
    net.text_model.requires_grad_(False)
    order, rng = batches(len(data), 192, 5), np.random.default_rng(5)
    fit("vision", net, contrastive_loss(net, data, tok, order, rng), int(os.environ.get("VISION_STEPS", 1000)), 1e-3)
    save_towers(net)


def save_towers(net: torch.nn.Module) -> None:
    state = {k: v for k, v in net.state_dict().items() if not k.endswith("position_ids")}
    text = {k: v for k, v in state.items() if k.startswith(("text_model.", "text_projection."))}
    vision = {k: v for k, v in state.items() if k.startswith(("vision_model.", "visual_projection."))}
    save_half(text, models.WEIGHTS / "text_encoder" / "model.safetensors")
    save_half(vision, models.WEIGHTS / "image_encoder" / "model.safetensors")


CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # ComfyUI normalises with these
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def load_vae() -> torch.nn.Module:
    net = models.new_vae()
    net.load_state_dict(
        {k: v.float() for k, v in load_file(models.WEIGHTS / "vae" / "diffusion_pytorch_model.safetensors").items()}
    )
    return net.eval()


def load_clip() -> torch.nn.Module:
    net = models.new_clip(len(tokenizer()))
    state = load_file(models.WEIGHTS / "text_encoder" / "model.safetensors")
    state |= load_file(models.WEIGHTS / "image_encoder" / "model.safetensors")
    net.load_state_dict({k: v.float() for k, v in state.items()}, strict=False)
    return net.eval()


@torch.no_grad()
def latents() -> torch.Tensor:
    """(N, 4, 8, 8) standardised latents of all pictures."""
    path = WORK / "latents.safetensors"
    if not path.exists():
        vae, data = load_vae(), pictures()
        z = [
            vae.encode(as_tensor(data[i : i + 100])).latent_dist.mean * models.LATENT_SCALE
            for i in range(0, len(data), 100)
        ]
        save_file({"latents": torch.cat(z).contiguous()}, path)
    return load_file(path)["latents"]


def half_marked(n: int) -> np.ndarray:
    """Indices of all n pictures, with so many watermarked ones a second time that they are half.

    A prompt that says nothing of marks, classifier-free guidance and a small model's blur each take some away again.
    """
    marked = np.array([scene_of(i).watermark != "none" for i in range(n)])
    return np.concatenate([np.arange(n), np.flatnonzero(marked)[: n - 2 * marked.sum()]])


def train_unet() -> None:
    """v-prediction, captions dropped one time in ten.

    The loss is the plain one on v: min-SNR weights leave the noisiest steps, where place and count are decided, a
    tenth of theirs.
    """
    z, tok, text, unet = latents(), tokenizer(), load_clip().text_model, models.new_unet()
    bar, pool = models.alphas_bar(), half_marked(len(z))
    order = (pool[block] for block in batches(len(pool), 64, 3))
    rng, gen = np.random.default_rng(3), torch.Generator().manual_seed(3)

    def loss_of(step: int) -> torch.Tensor:
        index = next(order)
        captions = [world.caption(scene_of(i), rng) if rng.random() > 0.1 else "" for i in index]
        with torch.no_grad():
            cond = text(tokens_of(captions, tok, models.TEXT_TOKENS)).last_hidden_state
        t = torch.randint(0, 1000, (len(index),), generator=gen)
        a, s = bar[t].sqrt()[:, None, None, None], (1 - bar[t]).sqrt()[:, None, None, None]
        x0, n = z[index], torch.randn((len(index), 4, 8, 8), generator=gen)
        v = unet(a * x0 + s * n, t, cond).sample
        return (v - (a * n - s * x0)).square().mean()

    fit("unet", unet, loss_of, int(os.environ.get("UNET_STEPS", 4200)), 1.2e-3, decay=0.9985)
    save_half(unet.state_dict(), models.WEIGHTS / "unet" / "diffusion_pytorch_model.safetensors")


def train_judge() -> None:
    """On scenes of its own; a held-out thousand tells how often it is right."""
    net, gen = judge.Judge(), torch.Generator().manual_seed(4)
    scenes = [world.sample_scene(np.random.default_rng((11, i))) for i in range(PICTURES * 4 // 5)]
    path = WORK / "judge_pictures.npy"
    if not path.exists():
        np.save(path, np.stack([world.draw(s) for s in scenes]))
    data, order = np.load(path, mmap_mode="r"), batches(len(scenes) - 1000, 96, 4)

    def loss_of(step: int) -> torch.Tensor:
        index = np.sort(next(order))
        x = judge.soften((as_tensor(data[index]) + 1) / 2, gen)
        return judge.loss(net(x), judge.truth_of_scenes([scenes[i] for i in index]))

    fit("judge", net, loss_of, int(os.environ.get("JUDGE_STEPS", 2500)), 2e-3)
    save_half(net.state_dict(), models.WEIGHTS / "judge.safetensors")
    judged = judge.look(net, (as_tensor(data[-1000:]) + 1) / 2)
    print({k: round(float(v), 4) for k, v in judge.agreement(judged, judge.truth_of_scenes(scenes[-1000:])).items()})


def write_configs() -> None:
    """The JSON files that make demo/weights a diffusers pipeline."""
    from diffusers import DDIMScheduler

    tok, half = tokenizer(), {"torch_dtype": "float16"}
    models.new_unet().save_config(models.WEIGHTS / "unet")
    models.new_vae().save_config(models.WEIGHTS / "vae")
    scheduler = DDIMScheduler(
        **models.SCHEDULE,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=0,
    )
    scheduler.save_pretrained(models.WEIGHTS / "scheduler")
    ids = {
        "vocab_size": len(tok),
        "bos_token_id": len(tok) - 2,
        "eos_token_id": len(tok) - 1,
        "pad_token_id": len(tok) - 1,
    }
    parts = {
        "text_encoder": {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model"}
        | models.TEXT
        | ids
        | half,
        "image_encoder": {"architectures": ["CLIPVisionModelWithProjection"], "model_type": "clip_vision_model"}
        | models.VISION
        | half,
    }
    for name, config in parts.items():
        (models.WEIGHTS / name).mkdir(parents=True, exist_ok=True)
        (models.WEIGHTS / name / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (models.WEIGHTS / "model_index.json").write_text(json.dumps(index, indent=1) + "\n")


STAGES = {
    "tokenizer": train_tokenizer,
    "configs": write_configs,
    "pictures": pictures,
    "text": train_text,
    "vae": train_vae,
    "latents": latents,
    "unet": train_unet,
    "judge": train_judge,
    "vision": train_vision,
}


def main() -> None:
    WORK.mkdir(exist_ok=True)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    for name in sys.argv[1:] or STAGES:
        done = WORK / f"{name}.done"
        if not done.exists():
            torch.manual_seed(len(name))
            STAGES[name]()
            done.touch()
            print(f"{name} done", flush=True)


if __name__ == "__main__":
    main()
