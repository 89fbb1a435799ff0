"""Graphs in API format to read provenance from."""

from __future__ import annotations

from typing import Any

from feedback_loop.feedback.provenance import read
from feedback_loop.feedback.records import Provenance

Node = dict[str, Any]


def node(kind: str, **inputs: Any) -> Node:
    return {"class_type": kind, "inputs": inputs}


def stock(**changes: Node) -> dict[str, Node]:
    """The default graph, with nodes replaced or added."""
    return {
        "ckpt": node("CheckpointLoaderSimple", ckpt_name="m.safetensors"),
        "pos": node("CLIPTextEncode", text="a cat", clip=["ckpt", 1]),
        "neg": node("CLIPTextEncode", text="blurry", clip=["ckpt", 1]),
        "empty": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "sampler": node(
            "KSampler",
            model=["ckpt", 0],
            positive=["pos", 0],
            negative=["neg", 0],
            latent_image=["empty", 0],
            seed=2**64 - 1,
            steps=20,
            cfg=7,
            sampler_name="euler",
            scheduler="karras",
            denoise=1.0,
        ),
        "decode": node("VAEDecode", samples=["sampler", 0], vae=["ckpt", 2]),
        "capture": node("FeedbackCapture", images=["decode", 0], collection="c"),
        **changes,
    }


STOCK = Provenance("a cat", "blurry", str(2**64 - 1), 20, 7.0, "euler", "karras", 1.0, "m.safetensors", ())


def of(graph: dict[str, Node], capture: str = "capture") -> Provenance:
    return read(graph, None, capture)


def sampled(**inputs: Any) -> Node:
    """The stock sampler with inputs changed; None takes one away."""
    merged = {**stock()["sampler"]["inputs"], **inputs}
    return node("KSampler", **{name: value for name, value in merged.items() if value is not None})


def custom(**changes: Node) -> dict[str, Node]:
    """The same run as the stock graph's, taken apart."""
    parts = {
        "noise": node("RandomNoise", noise_seed=2**64 - 1),
        "guider": node("CFGGuider", model=["ckpt", 0], positive=["pos", 0], negative=["neg", 0], cfg=7.0),
        "select": node("KSamplerSelect", sampler_name="euler"),
        "sigmas": node("BasicScheduler", model=["ckpt", 0], scheduler="karras", steps=20, denoise=1.0),
        "sampler": node(
            "SamplerCustomAdvanced",
            noise=["noise", 0],
            guider=["guider", 0],
            sampler=["select", 0],
            sigmas=["sigmas", 0],
            latent_image=["empty", 0],
        ),
    }
    return stock(**{**parts, **changes})
