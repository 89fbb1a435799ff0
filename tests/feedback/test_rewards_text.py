"""Words, preferences and aesthetic heads as rewards: known answers, whole models in published layouts, bad files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from feedback_loop.feedback.rewards.aesthetic import AestheticReward, load_head
from feedback_loop.feedback.rewards.base import RewardError
from feedback_loop.feedback.rewards.files import load_reward, save_reward
from feedback_loop.feedback.rewards.networks import whole_and_nearer
from feedback_loop.feedback.rewards.text import PreferenceReward, TextEncoder, TextReward, directional
from feedback_loop.feedback.rewards.text_folders import is_joint, load_joint
from feedback_loop.tests.feedback import model_folders
from feedback_loop.tests.feedback.slopes import slopes

SAID = {"red": [1.0, 0, 0], "green": [0.0, 1, 0], "blue": [0.0, 0, 1], "a picture": [1.0, 1, 1]}


class Colours:
    """Features: the means of the channels, then two numbers that belong to no joint space."""

    id = "colours"

    def __call__(self, images: Tensor) -> Tensor:
        mean = images.mean(dim=(2, 3))
        return torch.cat([mean, mean.new_full((len(mean), 2), 7.0)], dim=1)

    def networks(self) -> list[nn.Module]:
        return []


def tower(texts: Any) -> Tensor:
    return torch.tensor([SAID[text] for text in texts])


def flat(*colour: float) -> Tensor:
    return torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, 40, 40).clone()


def pictures(n: int = 2) -> Tensor:
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_a_wish_is_scored_by_the_difference_of_two_cosines() -> None:
    """Colour (3, 4, 0)/10: cosines .6 with red, .8 with green; 5 * (.6 - .8) = -1; 10 - softplus(11) = -1.000017."""
    reward = directional(Colours(), tower, "red", "green", scale=5.0)
    assert float(reward(flat(0.3, 0.4, 0.0))) == pytest.approx(10 - math.log1p(math.exp(11)), abs=1e-4)


def test_a_wish_and_its_opposite_exchanged_give_the_negative_below_what_is_enough() -> None:
    one, other = directional(Colours(), tower, "red", "blue", 5.0), directional(Colours(), tower, "blue", "red", 5.0)
    x = pictures()
    assert torch.allclose(one(x), -other(x), atol=2e-2)  # softplus leaves 4.5e-5 e^5 of the cap


def test_a_wish_without_an_opposite_is_compared_with_any_picture() -> None:
    """White (1, 1, 1) is "a picture" itself: cosine 1 against .577 with red, so 5 * (.577 - 1) = -2.113."""
    reward = directional(Colours(), tower, " red ", "  ", scale=5.0)
    assert float(reward(flat(0.5, 0.5, 0.5))) == pytest.approx(5 * (3**-0.5 - 1), abs=1e-3)
    assert reward.name == "“red”"


def test_beyond_what_is_enough_there_is_hardly_a_slope() -> None:
    """enough -5: a picture at +1 is 6 above, where softplus(-6)' = .0025 of the slope is left."""
    eager, full = (directional(Colours(), tower, "green", "red", 5.0, enough) for enough in (50.0, -5.0))
    pulls = []
    for reward in (eager, full):
        x = flat(0.3, 0.4, 0.0).requires_grad_()
        (gradient,) = torch.autograd.grad(reward(x).sum(), x)
        pulls.append(float(gradient.abs().max()))
    assert pulls[1] / pulls[0] == pytest.approx(1 / (1 + math.exp(6)), rel=1e-2)


def test_a_picture_is_looked_at_as_a_whole_and_in_its_middle_nine_tenths() -> None:
    """40 pixels: 2 are left out at each edge. A frame of another colour there counts in one of two views."""
    whole, nearer = whole_and_nearer(flat(0.0, 1.0, 0.0))
    assert whole.shape[-1] == 40 and nearer.shape[-2:] == (36, 36)
    framed = flat(1.0, 0.0, 0.0)
    framed[..., 2:-2, 2:-2] = torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1)
    reward = directional(Colours(), tower, "green", "red", scale=5.0, enough=50.0)
    inner = 0.81 / math.hypot(0.81, 0.19) - 0.19 / math.hypot(0.81, 0.19)
    assert float(reward(framed)) == pytest.approx(5 * (inner + 1) / 2, abs=1e-3)
    assert len(whole_and_nearer(torch.zeros(1, 3, 16, 16))) == 1


def test_empty_and_equal_wishes_are_refused_by_a_sentence() -> None:
    with pytest.raises(RewardError, match="wish is empty: write"):
        directional(Colours(), tower, " ", "red")
    with pytest.raises(RewardError, match="for the same: write an opposite"):
        directional(Colours(), tower, "red", "red")


def test_texts_wider_than_the_image_embedding_are_refused() -> None:
    reward = TextReward(Colours(), torch.randn(9), torch.randn(9), "x")
    with pytest.raises(RewardError, match="9 numbers each.*gives 5"):
        reward(pictures())


def test_a_saved_wish_scores_as_before_without_its_text_encoder(tmp_path: Path) -> None:
    reward = directional(Colours(), tower, "red", "green", 5.0, 3.0)
    save_reward(reward, tmp_path / "w.safetensors")
    loaded = load_reward(tmp_path / "w.safetensors", [Colours()])
    assert torch.allclose(loaded(pictures()), reward(pictures()), atol=1e-6) and loaded.name == reward.name


def test_a_preference_is_the_scaled_cosine_with_each_pictures_own_prompt() -> None:
    """Colour (3, 4, 0)/10: .6 with red, .8 with green. Prompts go before the wish; each text is run once."""
    ran: list[str] = []

    def counted(texts: Any) -> Tensor:
        ran.extend(texts)
        return tower(texts)

    reward = PreferenceReward(Colours(), TextEncoder(counted), "red", "pick", scale=10.0)
    x = flat(0.3, 0.4, 0.0).expand(2, -1, -1, -1)
    assert reward(x).tolist() == pytest.approx([6.0, 6.0], abs=1e-4)
    assert reward(x, ["green", "red"]).tolist() == pytest.approx([8.0, 6.0], abs=1e-4)
    assert ran == ["red", "green"]


def test_a_preference_without_any_prompt_says_that_it_needs_one() -> None:
    with pytest.raises(RewardError, match="write it as the wish"):
        PreferenceReward(Colours(), TextEncoder(tower), " ", "pick")(pictures())


# --- whole models ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["clip", "siglip"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("models") / request.param
    return folder, model_folders.clip(folder, kind=request.param)


def features(found: Any) -> Tensor:
    """What transformers' get_..._features gives: a tensor in version 4, an object in version 5."""
    return getattr(found, "pooler_output", found)


def test_both_halves_of_a_folder_give_what_transformers_gives(model: tuple[Path, Any]) -> None:
    folder, network = model
    loaded = load_joint(folder)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.5, 0.4, 0.3], [0.25, 0.25, 0.2]))
    seen = features(network.get_image_features(pixel_values=(pictures() - mean) / std))
    assert torch.allclose(loaded.images(pictures()), seen, atol=1e-5)
    ids = loaded.tokens(
        "a bright picture", padding="max_length" if loaded.pads else False, max_length=loaded.longest,
        return_tensors="pt",
    )["input_ids"]  # fmt: skip
    said = features(network.get_text_features(input_ids=ids))
    assert torch.allclose(loaded.embed(["a bright picture"]), said, atol=1e-5)
    assert loaded.scale == pytest.approx(float(network.logit_scale.exp()))


def test_a_text_is_embedded_alike_beside_longer_ones_and_cut_where_it_is_too_long(model: tuple[Path, Any]) -> None:
    loaded = load_joint(model[0])
    alone, beside = loaded.embed(["red"]), loaded.embed(["red", "a dark picture " * 30])
    assert torch.allclose(alone[0], beside[0], atol=1e-5) and beside.isfinite().all()


def test_siglip_reads_small_letters_without_punctuation(tmp_path: Path) -> None:
    model_folders.clip(tmp_path / "s", kind="siglip")
    loaded = load_joint(tmp_path / "s")
    assert torch.equal(loaded.embed(["A bright, picture!"]), loaded.embed(["a bright picture"]))


def test_the_gradient_of_a_wish_reaches_the_picture_through_the_whole_model(model: tuple[Path, Any]) -> None:
    """Central difference of the whole reward in single precision, h = 1e-3; on pictures of another size."""
    loaded = load_joint(model[0])
    reward = directional(loaded.images, loaded.embed, "a bright picture", "a dark picture", 100.0, enough=100.0)
    x = 0.35 + 0.3 * torch.rand(2, 3, 44, 40, generator=torch.Generator().manual_seed(1))
    by_autograd, by_hand = slopes(reward, x, 1e-3)
    assert by_autograd == pytest.approx(by_hand, rel=2e-2) and abs(by_hand) > 1e-2


def test_what_is_no_whole_model_is_told_from_one(tmp_path: Path, model: tuple[Path, Any]) -> None:
    model_folders.classifier(tmp_path / "vit")
    assert is_joint(model[0]) and not is_joint(tmp_path / "vit")
    with pytest.raises(RewardError, match="no whole CLIP or SigLIP model but 'vit'"):
        load_joint(tmp_path / "vit")


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("tokenizer.json", None, "has no tokenizer.json: copy"),
        ("tokenizer.json", "{", "tokenizer.*can't be read"),
        ("tokenizer.json", '{"version": "1.0", "model": {"type": "evil"}}', "tokenizer.*can't be read"),
        ("tokenizer_config.json", "[]", "holds no settings"),
        ("model.safetensors", None, "has no model.safetensors"),
    ],
)
def test_a_whole_model_with_a_bad_file_is_refused(tmp_path: Path, file: str, content: str | None, says: str) -> None:
    folder = tmp_path / "s"
    model_folders.clip(folder, kind="siglip")
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(RewardError, match=says):
        load_joint(folder)


def test_a_tokenizer_of_a_larger_vocabulary_is_not_of_this_model(tmp_path: Path) -> None:
    """Its ids would reach beyond the table of the model's words, which on a GPU takes the whole process down."""
    folder = tmp_path / "s"
    model_folders.clip(folder, kind="siglip")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"] += [[f"word{index}", -9.0] for index in range(50)]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(RewardError, match="knows more words than its model"):
        load_joint(folder)


# --- aesthetic heads -------------------------------------------------------------------------------------------------


def laion(path: Path, width: int = 6, prefix: str = "") -> nn.Sequential:
    """LAION's improved aesthetic predictor as published, but narrow: linear at 0, 2, 4, 6, 7, dropout between."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    sides = [width, 16, 8, 5, 4, 1]
    layers: list[nn.Module] = []
    for place, (a, b) in enumerate(zip(sides, sides[1:], strict=False)):
        layers += [nn.Linear(a, b)] if place >= 3 else [nn.Linear(a, b), nn.Dropout(0.2)]
    head = nn.Sequential(*layers).eval()
    save_file({f"{prefix}layers.{name}": value for name, value in head.state_dict().items()}, path)
    return head


@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_published_head_scores_as_its_layers_do_over_the_normalised_embedding(tmp_path: Path, prefix: str) -> None:
    head = laion(tmp_path / "h.safetensors", 3, prefix)
    assert [name for name, _ in head.named_parameters()][::2] == [f"{n}.weight" for n in (0, 2, 4, 6, 7)]
    weight, bias = load_head(tmp_path / "h.safetensors")
    reward, x = AestheticReward(Colours(), weight, bias, "laion"), pictures()
    mean = x.mean(dim=(2, 3))
    assert torch.allclose(reward(x), head(mean / mean.norm(dim=1, keepdim=True))[:, 0], atol=1e-5)


def test_a_head_of_one_layer_is_read_under_both_of_its_names(tmp_path: Path) -> None:
    """(.5, -1, 2) . (0, .6, .8) + .25 = 1.25."""
    from safetensors.torch import save_file

    for name in ("", "linear."):
        file = tmp_path / f"{name}h.safetensors"
        save_file({f"{name}weight": torch.tensor([[0.5, -1, 2]]), f"{name}bias": torch.tensor([0.25])}, file)
        weight, bias = load_head(file)
        assert float(AestheticReward(Colours(), weight, bias, "h")(flat(0, 0.6, 0.8))) == pytest.approx(1.25, abs=1e-5)


def test_a_head_has_the_slope_of_its_formula_and_can_be_saved(tmp_path: Path) -> None:
    """Central difference on the reward itself, fp32: h = 1e-2."""
    reward = AestheticReward(Colours(), torch.tensor([3.0, -1.0, 2.0]), 0.5, "h")
    by_autograd, by_hand = slopes(reward, pictures(), 1e-2)
    assert by_autograd == pytest.approx(by_hand, rel=2e-2)
    save_reward(reward, tmp_path / "r.safetensors")
    assert torch.equal(load_reward(tmp_path / "r.safetensors", [Colours()])(pictures()), reward(pictures()))
    assert "one direction" in reward.warning


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"layers.0.weight": torch.ones(4, 3), "layers.2.weight": torch.ones(1, 5)}, "no aesthetic head"),
        ({"layers.0.weight": torch.ones(2, 3)}, "ends in 2 numbers"),
        ({"layers.0.weight": torch.ones(1, 3), "layers.0.bias": torch.ones(2)}, "no aesthetic head"),
        ({"layers.0.weight": torch.ones(1, 3), "__class__": torch.ones(2)}, "no aesthetic head"),
        ({"weight": torch.full((1, 3), float("nan"))}, "no numbers"),
        ({"vision_model.a": torch.ones(1)}, "no aesthetic head"),
        ({f"layers.{n}.weight": torch.ones(1, 1) for n in range(40)}, "no aesthetic head"),
    ],
)
def test_a_file_of_another_layout_is_refused_by_name(tmp_path: Path, tensors: dict[str, Tensor], says: str) -> None:
    from safetensors.torch import save_file

    save_file(tensors, tmp_path / "odd.safetensors")
    with pytest.raises(RewardError, match=rf"odd\.safetensors.*{says}"):
        load_head(tmp_path / "odd.safetensors")


def test_a_head_that_does_not_fit_its_encoder_says_which_it_wants() -> None:
    with pytest.raises(RewardError, match="reads 768 numbers.*ViT-L/14"):
        AestheticReward(Colours(), torch.ones(768), 0.0, "laion")(pictures())
