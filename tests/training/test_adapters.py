"""Identities of adapters: what they leave alone, and what their views show."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from feedback_loop.training.adapters import Adapters, MovingAverage, target_layers
from feedback_loop.training.progress import Progress


class Network(nn.Module):
    """A convolution, a grouped one, attention of two projections and an MLP, in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.attn = nn.ModuleDict({"to_q": nn.Linear(8, 8), "to_out": nn.Linear(8, 8)})
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x: Tensor) -> Tensor:
        h = self.grouped(self.conv(x)).flatten(2).transpose(1, 2).contiguous()
        return self.mlp(h + self.attn["to_out"](self.attn["to_q"](h)))


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def push(adapters: Adapters, seed: int = 0) -> None:
    """Moves the adapter off zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def test_a_new_adapter_changes_nothing_bit_for_bit(network: Network, x: Tensor) -> None:
    before = network(x)
    Adapters(network, rank=4, seed=0)
    assert torch.equal(network(x), before)


def test_ref_is_the_network_without_the_adapter_bit_for_bit(network: Network, x: Tensor) -> None:
    before = network(x)
    adapters = Adapters(network, rank=4, seed=0)
    push(adapters)
    trained = network(x)
    with adapters.view("ref"):
        assert torch.equal(network(x), before)
    assert not torch.allclose(trained, before)
    assert torch.equal(network(x), trained)


def test_the_view_ends_with_an_exception_too(network: Network, x: Tensor) -> None:
    adapters = Adapters(network, rank=4, seed=0)
    push(adapters)
    trained = network(x)
    with pytest.raises(KeyError), adapters.view("ref"):
        raise KeyError
    assert torch.equal(network(x), trained)
    assert all(p.requires_grad for p in adapters.parameters())


def test_only_the_adapter_is_trained(network: Network, x: Tensor) -> None:
    adapters = Adapters(network, rank=4, seed=0)
    adapters.follow(0.5)
    trained = {id(p) for p in network.parameters() if p.requires_grad}
    assert trained == {id(p) for p in adapters.parameters()}


def test_a_view_within_a_graph_leaves_the_gradient_of_theta_alone(network: Network, x: Tensor) -> None:
    adapters = Adapters(network, rank=4, seed=0)
    push(adapters)
    network(x).square().sum().backward()
    expected = [p.grad.clone() for p in adapters.parameters() if p.grad is not None]
    network.zero_grad()
    d = network(x)
    with torch.no_grad(), adapters.view("ref"):
        network(x)
    d.square().sum().backward()
    assert all(
        torch.equal(p.grad, e) for p, e in zip(adapters.parameters(), expected, strict=True) if p.grad is not None
    )
    assert len(expected) == len(adapters.parameters())


def test_old_starts_as_a_copy_and_follows_by_its_decay(network: Network) -> None:
    """First call: old = theta0. Second, after theta has moved: old = .75 theta0 + .25 theta1."""
    adapters = Adapters(network, rank=4, seed=0)
    adapters.follow(0.75)
    first = [p.detach().clone() for p in adapters.parameters()]
    push(adapters)
    adapters.follow(0.75)
    expected = [0.75 * a + 0.25 * b for a, b in zip(first, adapters.parameters(), strict=True)]
    assert all(torch.allclose(o, e) for o, e in zip(adapters.parameters("old"), expected, strict=True))


def test_old_follows_once_before_a_step_however_often_it_is_asked(network: Network) -> None:
    """A run that is put down while an epoch is drawn asks again when it goes on, also through a checkpoint."""
    adapters = Adapters(network, rank=4, seed=0)
    adapters.follow(0.0, at=0)
    push(adapters)
    adapters.follow(0.5, at=3)
    once = [p.detach().clone() for p in adapters.parameters("old")]
    adapters.follow(0.5, at=3)
    assert all(torch.equal(a, b) for a, b in zip(adapters.parameters("old"), once, strict=True))
    progress = Progress(adapters.parameters(), MovingAverage(adapters.parameters()), adapters)
    other = Adapters(Network(), rank=4, seed=1)
    restored = Progress(other.parameters(), MovingAverage(other.parameters()), other)
    restored.restore(progress.tensors(), progress.numbers())
    other.follow(0.5, at=3)
    assert all(torch.equal(a, b) for a, b in zip(other.parameters("old"), once, strict=True))
    other.follow(0.5, at=6)
    assert not all(torch.equal(a, b) for a, b in zip(other.parameters("old"), once, strict=True))


def test_old_is_shown_in_its_view(network: Network, x: Tensor) -> None:
    adapters = Adapters(network, rank=4, seed=0)
    push(adapters, seed=1)
    adapters.follow(0.5)
    then = network(x)
    push(adapters, seed=2)
    now = network(x)
    with adapters.view("old"):
        assert torch.equal(network(x), then)
    assert torch.equal(network(x), now)
    assert not torch.allclose(now, then)


def test_the_seed_decides_the_start_and_the_global_generator_is_left_alone(network: Network) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    starts = []
    for seed in (0, 0, 1):
        starts.append([p.detach().clone() for p in Adapters(Network(), 4, seed).parameters()])
    torch.manual_seed(5)
    Adapters(network, 4, 0)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(starts[0], starts[1], strict=True))
    assert not torch.equal(starts[0][0], starts[2][0])


def test_low_rank_is_what_the_adapter_adds_to_each_weight(network: Network, x: Tensor) -> None:
    """W + alpha / rank * up @ down in a plain network gives what the adapted network gives; alpha 2, rank 4: half."""
    plain = Network()
    plain.load_state_dict(network.state_dict())
    adapters = Adapters(network, rank=4, alpha=2.0, seed=0)
    push(adapters)
    with torch.no_grad():
        for path, part in adapters.low_rank().items():
            weight = plain.get_submodule(path).weight
            weight += (part.alpha / 4 * part.up.flatten(1) @ part.down.flatten(1)).reshape(weight.shape)
    assert torch.allclose(plain(x), network(x), atol=1e-5)


def test_low_rank_takes_other_values_than_thetas(network: Network) -> None:
    adapters = Adapters(network, rank=4, seed=0)
    values = [torch.full_like(p, float(i)) for i, p in enumerate(adapters.parameters())]
    parts = list(adapters.low_rank(values).values())
    assert (parts[1].down == 2).all() and (parts[1].up == 3).all()


def test_the_adapter_of_a_half_precision_network_is_in_float32(network: Network, x: Tensor) -> None:
    """AdamW's steps of 1e-4 are below bfloat16's resolution of weights around .1."""
    adapters = Adapters(network.bfloat16(), rank=4, seed=0)
    assert {p.dtype for p in adapters.parameters()} == {torch.float32}
    assert network(x.bfloat16()).dtype == torch.bfloat16


def test_which_layers_are_adapted(network: Network) -> None:
    """Grouped convolutions are left out: LoRA files cannot say what a low rank part of one is."""
    attention = ["attn.to_q", "attn.to_out"]
    assert target_layers(network, "attention") == attention
    assert target_layers(network, "linear") == [*attention, "mlp.0", "mlp.2"]
    assert target_layers(network, "all") == ["conv", *attention, "mlp.0", "mlp.2"]


def test_a_layer_whose_path_ends_like_another_s_is_not_adapted_by_mistake() -> None:
    """`to_q` at the root is no reason to adapt `other.to_q`, which is grouped."""
    network = nn.Module()
    network.to_q = nn.Conv2d(4, 4, 1)
    network.other = nn.ModuleDict({"to_q": nn.Conv2d(4, 4, 1, groups=4)})
    Adapters(network, rank=3, seed=0)
    assert type(network.other["to_q"]) is nn.Conv2d


def test_a_network_without_such_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="no attention layer"):
        Adapters(nn.Sequential(nn.Linear(3, 3)), rank=2, seed=0, layers="attention")


def test_the_moving_average_forgets_its_start() -> None:
    """Decay 2/11, 3/12, then 4/13: after values 0 | 1, 1, 1 the average is 1 - 2/11 * 3/12 * 4/13."""
    parameter = nn.Parameter(torch.zeros(2))
    average = MovingAverage([parameter], decay=0.99)
    with torch.no_grad():
        parameter.fill_(1.0)
    for _ in range(3):
        average.update()
    assert average.values[0].tolist() == pytest.approx([1 - 2 / 11 * 3 / 12 * 4 / 13] * 2)


def test_the_moving_average_never_decays_faster_than_asked() -> None:
    """From n = 890 on (1 + n) / (10 + n) exceeds .99, so a step moves it by exactly a hundredth."""
    parameter = nn.Parameter(torch.zeros(1))
    average = MovingAverage([parameter])
    average.steps = 2000
    with torch.no_grad():
        parameter.fill_(1.0)
    average.update()
    assert average.values[0].item() == pytest.approx(0.01)
