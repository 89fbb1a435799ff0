"""Classifiers from folders in Hugging Face's layout: the same logits, log-odds by hand, slopes, and bad folders."""

from __future__ import annotations

import json
import pickle  # noqa: TID251  (to make what is to be refused)
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from feedback_loop.feedback.rewards.base import RewardError
from feedback_loop.feedback.rewards.classifier import (
    ClassifierReward,
    label_index,
    labels_of,
    load_classifier,
    log_odds,
)
from feedback_loop.feedback.rewards.combine import CombinedReward
from feedback_loop.feedback.rewards.networks import Preprocess, preprocess_of
from feedback_loop.tests.feedback import model_folders
from feedback_loop.tests.feedback.slopes import slopes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound ViT; tests that damage it make their own."""
    path = tmp_path_factory.mktemp("models") / "animals"
    model_folders.classifier(path)
    return path


@pytest.fixture
def own(tmp_path: Path) -> Path:
    model_folders.classifier(tmp_path / "own")
    return tmp_path / "own"


def pictures(n: int = 2, side: int = 32) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0))


class Logits:
    """An encoder whose features are the means of the three channels; counts how often it ran."""

    id = "logits"

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.runs += 1
        return images.mean(dim=(2, 3))

    def networks(self) -> list[nn.Module]:
        return []


@pytest.mark.parametrize("kind", ["vit", "convnext", "swin", "siglip"])
def test_a_folder_gives_the_logits_that_transformers_gives(tmp_path: Path, kind: str) -> None:
    """Pictures of the model's own size are normalised with mean (.5, .4, .3) and deviation (.25, .25, .2), no more."""
    network: Any = model_folders.classifier(tmp_path / kind, kind)
    encoder, labels, exclusive = load_classifier(tmp_path / kind)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.5, 0.4, 0.3], [0.25, 0.25, 0.2]))
    expected = network(pixel_values=(pictures() - mean) / std).logits
    assert torch.allclose(encoder(pictures()), expected, atol=1e-5)
    assert labels == ["cat", "dog", "tree"] and exclusive
    assert not any(weight.requires_grad for weight in encoder.network.parameters())


def test_log_odds_are_those_of_the_softmax() -> None:
    """Logits (0, ln 3, 0): p = (.2, .6, .2), odds of the second 1.5, of the first .25."""
    logits = torch.tensor([[0.0, 3.0, 1.0]])
    logits[0, 1], logits[0, 2] = torch.tensor(3.0).log(), 0.0
    assert float(log_odds(logits, 1)) == pytest.approx(torch.tensor(1.5).log().item(), abs=1e-6)
    assert float(log_odds(logits, 0)) == pytest.approx(torch.tensor(0.25).log().item(), abs=1e-6)
    assert float(log_odds(logits, 1, exclusive=False)) == pytest.approx(float(logits[0, 1]))


def test_the_reward_is_the_log_odds_until_enough_and_flat_beyond() -> None:
    """Means (m, 0, 0): log-odds m - ln 2. 4 - softplus(4 - x): for x = -6.69, 4 - 10.69 less 2e-5; for x = 19.3, 4."""
    reward = ClassifierReward(Logits(), 0, "red")
    low, high = torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)
    low[:, 0], high[:, 0] = -6.0, 20.0
    ln2 = torch.tensor(2.0).log().item()
    assert float(reward(low)) == pytest.approx(-6 - ln2, abs=1e-4)
    assert float(reward(high)) == pytest.approx(4.0, abs=1e-6)
    away = ClassifierReward(Logits(), 0, "red", direction=-1)
    assert float(away(low)) == pytest.approx(
        4 - torch.nn.functional.softplus(torch.tensor(4 - 6 - ln2)).item(), abs=1e-5
    )
    assert away.name == "not red"


def test_the_gradient_reaches_pictures_of_any_size_through_scaling_and_network(folder: Path) -> None:
    """Central difference in double precision (attention in single, so h is 1e-3); 48 x 40 scaled to 32 x 32."""
    encoder, _, _ = load_classifier(folder)
    encoder.network.double()
    x = 0.35 + 0.3 * torch.rand(2, 3, 48, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    by_autograd, by_hand = slopes(lambda images: log_odds(encoder(images), 1), x, 1e-3)
    assert by_autograd == pytest.approx(by_hand, rel=1e-3) and abs(by_hand) > 1e-4


def test_a_batch_scores_as_its_pictures_one_by_one(folder: Path) -> None:
    encoder, _, _ = load_classifier(folder)
    reward, x = ClassifierReward(encoder, 2, "tree"), pictures(3)
    assert torch.allclose(reward(x), torch.cat([reward(one[None]) for one in x]), atol=1e-5)


def test_two_labels_of_one_model_run_it_once() -> None:
    encoder = Logits()
    CombinedReward([ClassifierReward(encoder, 0, "a"), ClassifierReward(encoder, 1, "b")], [1, -1])(pictures())
    assert encoder.runs == 1


def test_labels_that_do_not_exclude_one_another_are_judged_alone(tmp_path: Path) -> None:
    model_folders.classifier(tmp_path / "tags", problem_type="multi_label_classification")
    _, _, exclusive = load_classifier(tmp_path / "tags")
    assert not exclusive


def test_a_label_that_is_not_there_is_answered_with_those_that_resemble_it(folder: Path) -> None:
    labels = labels_of(folder)
    assert label_index(labels, "dog") == 1
    with pytest.raises(RewardError, match="no label 'dogs'.*dog"):
        label_index(labels, "dogs")
    with pytest.raises(RewardError, match="cat, dog, tree"):
        label_index(labels, "zzz")


@pytest.mark.parametrize(
    ("settings", "height", "width"),
    [
        ({"size": 24}, 24, 24),
        ({"size": {"height": 20, "width": 30}}, 20, 30),
        ({"size": {"shortest_edge": 40}, "crop_size": 32, "do_center_crop": True}, 32, 32),
        ({"size": {"shortest_edge": 40}, "crop_size": {"height": 36, "width": 28}}, 36, 28),
        ({"size": 24, "crop_size": 20, "do_center_crop": False}, 24, 24),
        ({}, 48, 48),
    ],
)
def test_every_published_way_to_say_the_size_is_read(settings: dict[str, Any], height: int, width: int) -> None:
    assert preprocess_of(settings, 48, "x")(pictures(1)).shape == (1, 3, height, width)


def test_a_model_without_normalisation_gets_the_picture_as_it_is() -> None:
    assert torch.equal(preprocess_of({"do_normalize": False}, 32, "x")(pictures()), pictures())


def test_scaling_up_overshoots_into_no_value_that_a_picture_cannot_have() -> None:
    """Bicubic rings at a black and white edge; mean 0 and deviation 1 show the values themselves."""
    edge = torch.zeros(1, 3, 16, 16)
    edge[..., 8:] = 1
    seen = Preprocess(64, 64, (0.0,) * 3, (1.0,) * 3)(edge)
    assert float(seen.min()) == 0.0 and float(seen.max()) == 1.0


def damage(own: Path, how: str) -> None:
    config, weights = own / "config.json", own / "model.safetensors"
    if how == "no weights":
        weights.unlink()
    elif how == "pickled weights":
        weights.unlink()
        (own / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))
    elif how == "half of the weights":
        weights.write_bytes(weights.read_bytes()[: -len(weights.read_bytes()) // 2])
    elif how == "a header of 2^63":
        weights.write_bytes((2**63).to_bytes(8, "little") + b"{}")
    elif how == "weights that are no numbers":
        from safetensors.torch import load_file, save_file

        kept = load_file(weights)
        kept["classifier.weight"][:] = float("nan")
        save_file(kept, weights, metadata={"format": "pt"})
    elif how == "no JSON":
        config.write_text("{")
    elif how == "deep JSON":
        config.write_text('{"a":' * 100_000)
    elif how == "a list":
        config.write_text("[1]")
    elif how == "five megabytes":
        config.write_text(json.dumps({"architectures": ["XForImageClassification"], "x": "y" * 5_000_000}))
    elif how == "an adapter":
        (own / "adapter_config.json").write_text("{}")
    elif how == "an index that points outside":
        weights.rename(own.parent / "outside.safetensors")
        index = {"weight_map": {"a": "../outside.safetensors"}}
        (own / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("no weights", "has no model.safetensors: copy"),
        ("pickled weights", "pytorch_model.bin, which can run code.*safetensors"),
        ("half of the weights", "damaged|can't be loaded|copy"),
        ("a header of 2^63", "no safetensors file"),
        ("weights that are no numbers", "no numbers"),
        ("no JSON", "no JSON: copy"),
        ("deep JSON", "no JSON: copy"),
        ("a list", "no settings: copy"),
        ("five megabytes", "larger than a configuration"),
        ("an adapter", "adapter and no whole model"),
        ("an index that points outside", "lacks some of the files"),
    ],
)
def test_a_damaged_folder_is_refused_by_a_sentence(own: Path, how: str, says: str) -> None:
    damage(own, how)
    with pytest.raises(RewardError, match=says):
        load_classifier(own)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"auto_map": {"AutoModelForImageClassification": "evil--code"}}, "run code of its own"),
        ({"quantization_config": {"load_in_4bit": True}}, "quantised"),
        ({"model_type": "brand_new"}, "does not know"),
        ({"architectures": ["ViTModel"]}, "no image classifier"),
        ({"id2label": {"0": 1, "1": 2}}, "does not name its labels"),
        ({"id2label": None, "num_labels": 10**9}, "asks for 1e\\+09|does not name"),
        ({"num_hidden_layers": 10**6}, "more layers than its weights have"),
        ({"hidden_size": 10**12}, "no model is that large"),
        ({"hidden_size": 2**14, "intermediate_size": 2**14}, "asks for more weights than the file has"),
        ({"hidden_size": "wide"}, "can't|does not know"),
        ({"num_attention_heads": 0}, "can't be loaded|copy"),
        ({"id2label": {str(i): f"l{i}" for i in range(7)}}, "lacks weights|more weights|can't be loaded"),
        ({"image_size": float("nan")}, "no model is that large|no JSON"),
    ],
)
def test_a_configuration_that_asks_for_what_is_not_there_is_refused(
    own: Path, settings: dict[str, Any], says: str
) -> None:
    model_folders.change(own / "config.json", **settings)
    with pytest.raises(RewardError, match=says):
        load_classifier(own)


@pytest.mark.parametrize(
    "settings",
    [{"image_mean": [0.5]}, {"image_std": [0.5, 0.5, 0.0]}, {"image_mean": "grey"}, {"image_std": [float("inf")] * 3}],
)
def test_a_preprocessor_that_is_none_is_refused(own: Path, settings: dict[str, Any]) -> None:
    model_folders.change(own / "preprocessor_config.json", **settings)
    with pytest.raises(RewardError, match=r"preprocessor_config.json"):
        load_classifier(own)


def test_a_base_model_that_was_never_trained_to_classify_is_refused(own: Path) -> None:
    """Its file has all but the classifier: transformers would make that up at random, with a warning."""
    from safetensors.torch import load_file, save_file

    weights = own / "model.safetensors"
    kept = {name: value for name, value in load_file(weights).items() if not name.startswith("classifier")}
    save_file(kept, weights, metadata={"format": "pt"})
    with pytest.raises(RewardError, match="lacks weights.*classifier"):
        load_classifier(own)


def test_a_model_in_several_files_is_read_by_its_index(own: Path) -> None:
    from safetensors.torch import load_file, save_file

    kept = load_file(own / "model.safetensors")
    names = sorted(kept)
    halves = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: kept[name] for name in part}, own / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in halves.items() for name in part}}
    (own / "model.safetensors.index.json").write_text(json.dumps(index))
    before = load_classifier(own)[0](pictures())
    (own / "model.safetensors").unlink()
    assert torch.allclose(load_classifier(own)[0](pictures()), before, atol=1e-6)


def test_the_same_weights_have_one_id_and_others_another(tmp_path: Path) -> None:
    """An encoder's id says which features may be shared; it follows the weights and not the moment."""
    model_folders.classifier(tmp_path / "a")
    first = load_classifier(tmp_path / "a")[0].id
    assert load_classifier(tmp_path / "a")[0].id == first
    model_folders.change(tmp_path / "a" / "preprocessor_config.json", image_mean=[0.1, 0.1, 0.1])
    assert load_classifier(tmp_path / "a")[0].id != first


def timm_folder(folder: Path, **arguments: Any) -> nn.Module:
    """A folder in the layout that timm itself writes; the network that is in it."""
    import timm
    from timm.models import save_for_hf

    torch.manual_seed(0)
    network = timm.create_model("resnet10t", pretrained=False, num_classes=3, **arguments).eval()
    # a fresh head answers next to nothing, whatever it is shown
    nn.init.normal_(network.get_classifier().weight)  # pyright: ignore
    settings = {"label_names": ["cat", "dog", "tree"], "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    save_for_hf(network, str(folder), settings, safe_serialization=True)
    return network


@pytest.mark.parametrize("arguments", [{}, {"global_pool": "max"}], ids=["as timm makes it", "pooled otherwise"])
def test_a_folder_that_timm_wrote_gives_the_logits_that_timm_gives(tmp_path: Path, arguments: dict[str, Any]) -> None:
    network = timm_folder(tmp_path / "t", **arguments)
    encoder, labels, exclusive = load_classifier(tmp_path / "t")
    x = pictures(side=176)  # what the folder asks for
    assert torch.allclose(encoder(x), network((x - 0.5) / 0.25), atol=1e-4)
    assert (labels, exclusive) == (["cat", "dog", "tree"], True)


def test_a_timm_models_reward_is_the_log_odds_with_the_slope_of_finite_differences(tmp_path: Path) -> None:
    network = timm_folder(tmp_path / "t")
    reward, x = ClassifierReward(load_classifier(tmp_path / "t")[0], 1, "dog", enough=100.0), pictures(side=176)
    odds = network((x - 0.5) / 0.25).log_softmax(1)
    assert torch.allclose(reward(x), odds[:, 1] - odds[:, [0, 2]].logsumexp(1), rtol=1e-3, atol=1e-3)
    slope, difference = slopes(reward, pictures(1, 176), 1e-3)
    assert slope == pytest.approx(difference, rel=0.05)


def test_a_vision_transformer_of_timm_for_pictures_of_another_size_is_built_at_that_size(tmp_path: Path) -> None:
    import timm
    from timm.models import save_for_hf

    network = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=2, img_size=64).eval()
    save_for_hf(network, str(tmp_path / "t"), {"label_names": ["a", "b"]}, safe_serialization=True)
    found = load_classifier(tmp_path / "t")[0](pictures(side=64))
    assert torch.allclose(found, network((pictures(side=64) - 0.5) / 0.5), atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"model_args": {"checkpoint_path": "/etc/passwd"}}, "argument 'checkpoint_path' = /etc/passwd"),
        ({"model_args": {"in_chans": 1}}, "argument 'in_chans' = 1"),
        ({"model_args": {"img_size": [64, -1]}}, "argument 'img_size'"),
        ({"model_args": {"global_pool": "no such"}}, "can't be built by the installed timm"),
        ({"architecture": "resnet_of_nobody"}, "timm knows no 'resnet_of_nobody'"),
        ({"architecture": "resnet18"}, "not those of its configuration"),
    ],
)
def test_a_timm_folder_that_asks_for_more_than_a_network_is_refused(
    tmp_path: Path, settings: dict[str, Any], says: str
) -> None:
    timm_folder(tmp_path / "t")
    model_folders.change(tmp_path / "t" / "config.json", **settings)
    with pytest.raises(RewardError, match=says):
        load_classifier(tmp_path / "t")


def test_a_model_of_timm_says_what_to_install_where_timm_is_missing(tmp_path: Path, monkeypatch: Any) -> None:
    timm_folder(tmp_path / "t")
    monkeypatch.setitem(sys.modules, "timm", None)  # as Python knows a module that can't be imported
    with pytest.raises(RewardError, match="Install the Python package timm"):
        load_classifier(tmp_path / "t")
