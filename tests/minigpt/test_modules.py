"""Layers: their gradients, for one model and for several."""

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from minigpt.layers import Embedding, LayerNorm, Linear, RMSNorm


def made(kind: str) -> tuple[nn.Module, torch.Tensor]:
    """A layer in double precision with random weights, and an input for it."""
    torch.manual_seed(0)
    layers = {
        "linear": Linear(6, 5),
        "linear without bias": Linear(6, 5, bias=False),
        "layer norm": LayerNorm(6),
        "rms norm": RMSNorm(6, eps=1e-6),
    }
    layer = layers[kind].double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer, torch.randn(4, 3, 6, dtype=torch.float64, requires_grad=True)


KINDS = ["linear", "linear without bias", "layer norm", "rms norm"]


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_differences(kind: str) -> None:
    layer, x = made(kind)
    names = [name for name, _ in layer.named_parameters()]

    def call(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *layer.parameters()))
    stacked = [torch.stack([p, p.flip(0), 2 * p]).detach() for p in layer.parameters()]
    x_stacked = torch.stack([x, 2 * x, x - 1]).detach().requires_grad_()
    assert torch.autograd.gradcheck(call, (x_stacked, *(s.requires_grad_() for s in stacked)))


@pytest.mark.parametrize("kind", KINDS)
def test_several_are_each_what_it_is_alone(kind: str) -> None:
    layer, x = made(kind)
    weights = {name: torch.randn(5, *p.shape).double() for name, p in layer.named_parameters()}
    x_M = torch.randn(5, *x.shape, dtype=torch.float64)
    together = functional_call(layer, weights, (x_M,))
    for i in range(5):
        alone = functional_call(layer, {name: w[i] for name, w in weights.items()}, (x_M[i],))
        torch.testing.assert_close(together[i], alone)


def test_embeddings_of_several_are_summed_apart() -> None:
    layer = Embedding(7, 4)
    table = torch.randn(3, 7, 4, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(0, 7, (3, 2, 6))
    weights = torch.randn(3, 2, 6, 4, dtype=torch.float64)
    found = functional_call(layer, {"weight": table}, (ids,))
    (own,) = torch.autograd.grad((found * weights).sum(), table)
    for i in range(3):
        one = table[i].detach().requires_grad_()
        alone = F.embedding(ids[i], one)
        assert torch.equal(found[i], alone)
        (expected,) = torch.autograd.grad((alone * weights[i]).sum(), one)
        torch.testing.assert_close(own[i], expected)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_rms_norm_is_that_of_torch(scale: float) -> None:
    layer, x = made("rms norm")
    x = (x * scale).detach().requires_grad_()
    assert isinstance(layer, RMSNorm)
    g = torch.randn(x.shape, dtype=torch.float64)
    expected = F.rms_norm(x, [6], layer.weight, 1e-6)
    found = layer(x)
    torch.testing.assert_close(found, expected)
    for own, other in zip(
        torch.autograd.grad(found, [x, layer.weight], g),
        torch.autograd.grad(expected, [x, layer.weight], g),
        strict=True,
    ):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-12 / scale)
