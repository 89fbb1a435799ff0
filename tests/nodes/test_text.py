"""FeedbackTextConditioning with ComfyUI's own text encoders, small ones of every family."""

from __future__ import annotations

import comfy.sample
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import comfy.text_encoders.flux
import comfy.text_encoders.sd3_clip
import comfy.text_encoders.t5
import pytest
import torch

from feedback_loop.guidance.text import TextFeedbackError
from feedback_loop.nodes.denoiser import WrongConnectionError
from feedback_loop.nodes.text import FeedbackTextConditioning
from feedback_loop.tests.nodes import tiny_models

_T5 = {
    "d_ff": 64, "d_kv": 16, "d_model": 32, "dense_act_fn": "gelu_pytorch_tanh", "is_gated_act": True, "num_heads": 2,
    "num_layers": 2, "vocab_size": 32128, "model_type": "umt5",
}  # fmt: skip


class TinyT5(comfy.sd1_clip.SDClipModel):
    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__(
            device=device,
            dtype=dtype,
            layer="last",
            textmodel_json_config=dict(_T5),
            special_tokens={"end": 1, "pad": 0},
            model_class=comfy.text_encoders.t5.T5,
            model_options=model_options or {},
        )


class T5Tokenizer(comfy.text_encoders.sd3_clip.T5XXLTokenizer):
    def __init__(self, embedding_directory=None, tokenizer_data=None):
        super().__init__(embedding_directory, tokenizer_data or {}, min_length=1)


class T5OnlyTokenizer(comfy.sd1_clip.SD1Tokenizer):
    def __init__(self, embedding_directory=None, tokenizer_data=None):
        super().__init__(embedding_directory, tokenizer_data or {}, clip_name="t5xxl", tokenizer=T5Tokenizer)


class T5OnlyModel(comfy.sd1_clip.SD1ClipModel):
    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__(device, dtype, model_options or {}, name="t5xxl", clip_model=TinyT5)


class FluxModel(comfy.text_encoders.flux.FluxClipModel):
    """Flux's, whose T5 is small: its own __init__ would make one of 4.7 billion weights."""

    def __init__(self, device="cpu", dtype=None, model_options=None):
        torch.nn.Module.__init__(self)
        options = model_options or {}
        self.clip_l = comfy.sd1_clip.SDClipModel(
            device=device, dtype=dtype, return_projected_pooled=False, model_options=options
        )
        self.t5xxl = TinyT5(device, dtype, options)
        self.dtypes = {dtype}


def made(tokenizer, model):
    target = comfy.supported_models_base.ClipTarget(tokenizer, model)
    return tiny_models._clip(target, 0)


ENCODERS = {
    "sd15": tiny_models.clip,
    "sdxl": tiny_models.sdxl_clip,
    "t5 alone": lambda: made(T5OnlyTokenizer, T5OnlyModel),
    "flux": lambda: made(comfy.text_encoders.flux.FluxTokenizer, FluxModel),
}


@pytest.fixture(scope="module")
def encoders():
    with torch.inference_mode():
        return {name: build() for name, build in ENCODERS.items()}


@pytest.fixture(scope="module")
def clip(encoders):
    return encoders["sd15"]


def encode(clip, text):
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def say(clip, comment, strength=1.0, mode="in the prompt", **more):
    base = "two stars"
    return FeedbackTextConditioning.execute(
        encode(clip, base), clip, comment, strength, mode, **({"prompt": base} | more)
    ).args


@pytest.mark.parametrize("kind", ENCODERS)
def test_strength_1_is_the_encoding_of_the_prompt_with_the_wish(kind, encoders, inference_mode):
    """E(p) + 1 * (E(p, wish) - E(p)), whatever the encoder: with and without a pooled output, of 77 tokens or of as
    many as there are words. T5 alone gives a longer sequence with the wish; float32 rounding is all that is left."""
    clip = encoders[kind]
    positive, _, _ = say(clip, "make the background brighter")
    asked = encode(clip, "two stars, bright background")
    torch.testing.assert_close(positive[0][0], asked[0][0], rtol=1e-4, atol=1e-5)
    pooled, expected = positive[0][1].get("pooled_output"), asked[0][1].get("pooled_output")
    assert (pooled is None) == (expected is None)
    if expected is not None:
        torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(positive[0][0][:, :2], encode(clip, "")[0][0][:, :2]) or kind != "t5 alone"


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("mode", ["everywhere", "in the prompt", "append"])
def test_strength_0_hands_on_what_came_in(kind, mode, encoders, inference_mode):
    clip = encoders[kind]
    positive, negative = encode(clip, "two stars"), encode(clip, "blurry")
    result = FeedbackTextConditioning.execute(
        positive, clip, "brighter, no text", 0.0, mode, "larger", prompt="two stars", negative=negative
    ).args
    assert result[0] == positive and result[1] == negative


def test_without_anything_said_nothing_changes(clip, inference_mode):
    positive = encode(clip, "two stars")
    result = FeedbackTextConditioning.execute(positive, clip, " ", 1.0, "in the prompt").args
    assert result[0] is positive and result[2] == ""


def test_what_is_not_wanted_goes_into_the_negative_prompt(clip, inference_mode):
    """The negative is moved from E("") to E("text"); the positive stays as it is."""
    positive, negative, _ = say(clip, "no text", unwanted="negative prompt")
    assert torch.equal(positive[0][0], encode(clip, "two stars")[0][0])
    torch.testing.assert_close(negative[0][0], encode(clip, "text")[0][0], rtol=1e-4, atol=1e-5)


def test_away_moves_the_prompt_and_leaves_the_negative(clip, inference_mode):
    negative = encode(clip, "blurry")
    plain, away = encode(clip, "two stars")[0][0], encode(clip, "two stars, text")[0][0]
    result = say(clip, "no text", unwanted="away", negative=negative)
    assert result[1] is negative
    moved = result[0][0][0]
    changed = (plain != away).any(dim=-1)[0]
    assert torch.equal(moved[:, ~changed], plain[:, ~changed])
    assert ((moved - plain) * (away - plain)).sum(dim=-1)[0, changed].max() < 0


@pytest.mark.parametrize("mode", ["everywhere", "in the prompt", "append"])
def test_by_default_the_prompt_is_moved_away_and_the_negative_goes_twice_as_far_as_if_written(
    mode, clip, inference_mode
):
    """Of the negative, E("") + 2 * (E("text") - E("")), turned to the length of E("text"); of the prompt, what `away`
    makes. An appended one is averaged by the model, so it stands there at its own strength."""
    positive, negative, _ = say(clip, "no text", mode=mode)
    assert torch.equal(positive[0][0], say(clip, "no text", mode=mode, unwanted="away")[0][0][0])
    plain, written = encode(clip, "")[0][0], encode(clip, "text")[0][0]
    if mode == "append":
        assert [entry[1].get("strength", 1.0) for entry in negative] == [1.0, 1.0]
        return
    straight = plain + 2 * (written - plain)
    expected = straight * (written.norm(dim=-1, keepdim=True) / straight.norm(dim=-1, keepdim=True))
    torch.testing.assert_close(negative[0][0], torch.where(written == plain, plain, expected), rtol=1e-4, atol=1e-5)


def test_where_nobody_knows_the_prompts_words_all_of_it_is_moved_away(clip, inference_mode):
    plain = encode(clip, "two stars")[0][0]
    known, unknown = (say(clip, "no text", mode="everywhere", prompt=text)[0][0][0] for text in ("two stars", ""))
    step = (encode(clip, "text")[0][0] - encode(clip, "")[0][0])[:, 1:].mean(dim=1)
    assert not torch.equal(known, unknown) and torch.equal(unknown[:, :1], plain[:, :1])
    assert (((unknown - plain)[:, 1:] * step[:, None]).sum(dim=-1) < 0).all()


@pytest.mark.parametrize("kind", ENCODERS)
def test_everywhere_moves_every_token_but_the_start_by_one_direction_and_needs_no_prompt(
    kind, encoders, inference_mode
):
    """Every moved token lies in the plane of itself and the mean of E(wish) - E(), and has its own length."""
    clip = encoders[kind]
    plain = encode(clip, "two stars")
    moved = say(clip, "brighter", mode="everywhere", prompt="")[0][0][0]
    wish, nothing = encode(clip, "bright")[0][0], encode(clip, "")[0][0]
    first = 0 if kind in ("t5 alone", "flux") else 1
    assert moved.shape == plain[0][0].shape and torch.equal(moved[:, :first], plain[0][0][:, :first])
    torch.testing.assert_close(moved.norm(dim=-1), plain[0][0].norm(dim=-1), rtol=1e-4, atol=1e-5)
    if kind != "t5 alone":
        step = (wish - nothing)[:, first:].mean(dim=1, keepdim=True)
        straight = plain[0][0][:, first:] + 0.6 * step
        same = torch.nn.functional.cosine_similarity(straight, moved[:, first:], dim=-1)
        torch.testing.assert_close(same, torch.ones_like(same), rtol=1e-4, atol=1e-4)


def test_append_sets_the_wish_beside_the_prompt(clip, inference_mode):
    positive, negative, _ = say(clip, "brighter, no text", 0.7, "append", negative=encode(clip, "blurry"))
    assert [entry[1].get("strength", 1.0) for entry in positive] == [1.0, 0.7]
    assert torch.equal(positive[1][0], encode(clip, "bright")[0][0])
    assert [entry[1].get("strength", 1.0) for entry in negative] == [1.0, 0.7]


def test_earlier_comments_count_less_and_come_out_as_the_next_rounds_list(clip, inference_mode):
    """One round ago at decay .5 is half the way: by directions, E + .5 * (E(dark) - E), turned to half-way lengths."""
    positive, _, said = say(clip, "", earlier="no text\nmake it darker", unwanted="negative prompt")
    torch.testing.assert_close(positive[0][0], say(clip, "dark", 0.5)[0][0][0], rtol=1e-4, atol=1e-5)
    assert said == "no text\nmake it darker"
    assert say(clip, "larger", earlier=said)[2] == "no text\nmake it darker\nlarger"
    shown = FeedbackTextConditioning.execute(
        encode(clip, "a"), clip, "larger", 1.0, "in the prompt", said, prompt="a"
    ).ui["text"][0]
    assert shown.splitlines()[0] == "1.00  larger" and "0.25  no text" in shown and "less: text" in shown


def test_between_start_and_end_only_the_wish_holds(clip, inference_mode):
    positive, negative, _ = say(clip, "bright", start_percent=0.2, end_percent=0.6)
    assert sorted((e[1]["start_percent"], e[1]["end_percent"]) for e in positive) == [
        (0.0, pytest.approx(0.2, abs=1e-4)), (0.2, 0.6), (pytest.approx(0.6, abs=1e-4), 1.0),
    ]  # fmt: skip
    assert len(negative) == 1 and "start_percent" not in negative[0][1]


def sample(model, positive, negative, steps=4, size=8):
    latent = torch.zeros(1, 4, size, size)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
    return comfy.sample.sample(
        model, noise, steps, 2.0, "euler", "normal", positive, negative, latent, disable_pbar=True, seed=0
    )


def test_a_whole_run_takes_every_mode_and_an_interval(clip, inference_mode):
    model, plain = tiny_models.sd15(), encode(clip, "two stars")
    before = sample(model, plain, encode(clip, ""))
    for mode in ("everywhere", "in the prompt", "append"):
        for limits in ({}, {"start_percent": 0.3, "end_percent": 0.7}):
            positive, negative, _ = say(clip, "brighter, no text", mode=mode, **limits)
            after = sample(model, positive, negative)
            assert after.isfinite().all() and not torch.equal(after, before)
    positive, negative, _ = say(clip, "brighter, no text", 0.0)
    assert torch.equal(sample(model, positive, negative), before)


def test_the_prompt_is_found_in_the_graph(clip, inference_mode, monkeypatch):
    graph = {
        "1": {"class_type": "CLIPTextEncode", "inputs": {"text": "two stars", "clip": ["9", 1]}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["9", 1]}},
        "3": {"class_type": "FeedbackTextConditioning", "inputs": {"positive": ["1", 0], "negative": ["2", 0]}},
    }
    monkeypatch.setattr(FeedbackTextConditioning, "hidden", type("H", (), {"prompt": graph, "unique_id": "3"}))
    written = FeedbackTextConditioning.execute(
        encode(clip, "two stars"), clip, "bright, no text", 1.0, "in the prompt", unwanted="negative prompt",
        negative=encode(clip, "blurry"),
    ).args  # fmt: skip
    torch.testing.assert_close(written[0][0][0], encode(clip, "two stars, bright")[0][0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(written[1][0][0], encode(clip, "blurry, text")[0][0], rtol=1e-4, atol=1e-5)


def test_words_that_cannot_be_found_are_asked_for(clip, inference_mode):
    with pytest.raises(WrongConnectionError, match="Write them into prompt"):
        say(clip, "bright", prompt="")
    assert len(say(clip, "bright", mode="append", prompt="")[0]) == 2


def test_the_clip_of_another_model_is_refused(encoders, inference_mode):
    with pytest.raises(TextFeedbackError, match="connect the CLIP that the conditioning was made with"):
        FeedbackTextConditioning.execute(
            encode(encoders["sdxl"], "a"), encoders["sd15"], "bright", 1.0, "in the prompt", prompt="a"
        )


def test_comments_in_the_store_count_as_earlier_ones(clip, inference_mode):
    from feedback_loop.feedback.records import Comment, Generation
    from feedback_loop.nodes.compat import store

    kept, name = store(), "words of a collection"
    pixels = torch.zeros(8, 8, 3, dtype=torch.uint8).numpy()
    image_id = kept.add_image(pixels, Generation(), name)
    before = FeedbackTextConditioning.fingerprint_inputs(collection=name)
    kept.add_comment(Comment(image_id, "make it darker", "ann"))
    taken_back = kept.add_comment(Comment(image_id, "much larger", "ann"))
    kept.undo(taken_back)
    assert FeedbackTextConditioning.fingerprint_inputs(collection=name) != before
    assert say(clip, "bright", collection=name)[2] == "make it darker\nbright"
    assert FeedbackTextConditioning.fingerprint_inputs(collection="") == 0
