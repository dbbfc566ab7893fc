"""The loss, also where the logits are never all in memory."""

import pytest
import torch

from minigpt import loss
from minigpt.config import ModelConfig
from minigpt.layers import Linear
from minigpt.loss import IGNORED, cross_entropy, next_token_loss
from minigpt.model import MiniGPT

B, T, D, V = 3, 5, 8, 11


def inputs(lead: tuple[int, ...], bias: bool) -> tuple[torch.Tensor, Linear, torch.Tensor]:
    """x, a head with that axis in front of its weights, targets of which some are IGNORED."""
    torch.manual_seed(sum(lead))
    head = Linear(D, V, bias=bias)
    head.weight = torch.nn.Parameter(torch.randn(*lead, V, D, dtype=torch.float64))
    if bias:
        head.bias = torch.nn.Parameter(torch.randn(*lead, V, dtype=torch.float64))
    x = torch.randn(*lead, B, T, D, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, V, (*lead, B, T))
    if not lead:
        targets[0, :2] = IGNORED
    return x, head, targets


def gradients(value: torch.Tensor, x: torch.Tensor, head: Linear) -> list[torch.Tensor]:
    leaves = [x, *head.parameters()]
    return list(torch.autograd.grad(value.sum(), leaves))


@pytest.mark.parametrize("lead", [(), (1,), (4,)], ids=["one", "stack of one", "stack"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tokens", [1, 4, 15, 100])
def test_in_chunks_the_loss_and_its_gradients_are_the_same(monkeypatch, lead, bias, tokens):
    x, head, targets = inputs(lead, bias)
    whole = next_token_loss(x, head, targets)
    monkeypatch.setitem(loss.LOGITS_BYTES, "cpu", 4 * V * tokens)
    made = []
    chunked = loss._Chunked.apply

    def seen(*arguments):
        made.append(None)
        return chunked(*arguments)

    monkeypatch.setattr(loss._Chunked, "apply", seen)
    found = next_token_loss(x, head, targets)
    assert bool(made) == (tokens < B * T)
    assert found.shape == lead
    torch.testing.assert_close(found, whole, rtol=1e-12, atol=0)
    # Also where what follows weighs the losses.
    weights = torch.arange(1.0, 1 + found.numel(), dtype=torch.float64).view(found.shape)
    for own, other in zip(
        gradients(found * weights, x, head), gradients(whole * weights, x, head), strict=True
    ):
        torch.testing.assert_close(own, other, rtol=1e-10, atol=1e-14)


def test_models_with_losses_of_their_own():
    x, head, targets = inputs((4,), True)
    found = next_token_loss(x, head, targets)
    for i in range(4):
        logits = x[i] @ head.weight[i].T + head.bias[i]
        torch.testing.assert_close(found[i], cross_entropy(logits, targets[i]))


def test_under_autocast_chunks_differ_by_rounding(monkeypatch):
    config = ModelConfig(
        preset="vaswani", d_model=16, n_layers=1, n_heads=2, vocab_size=64, seq_len=16
    )
    model, tokens = MiniGPT(config), torch.randint(0, 64, (8, 16))
    found = []
    for limit in (2**28, 4 * 64 * 20):
        monkeypatch.setitem(loss.LOGITS_BYTES, "cpu", limit)
        with torch.autocast("cpu", torch.bfloat16):
            value = model(tokens, tokens)
        assert value.dtype == torch.float32
        found.append([value.detach(), *torch.autograd.grad(value, list(model.parameters()))])
    for own, other in zip(*found, strict=True):
        scale = float(other.abs().max())
        torch.testing.assert_close(own, other, rtol=0.02, atol=0.01 * scale)
