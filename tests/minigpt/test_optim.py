"""Parameter groups, their rates, weight decay and clipping."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt import optim
from minigpt.config import LearningRates, ModelConfig, ScheduleConfig, TrainConfig
from minigpt.model import MiniGPT

RATES = LearningRates(hidden=0.1, embedding=0.2, head=0.3, vector=0.4)


def model(preset: str, positions: str) -> MiniGPT:
    return MiniGPT(
        ModelConfig(
            preset=preset,
            d_model=8,
            n_layers=2,
            n_heads=2,
            vocab_size=11,
            seq_len=4,
            positions=positions,
        )
    )


@pytest.fixture(params=["gpt-rotary", "vaswani-learned", "vaswani-sinusoidal"])
def net(request):
    return model(*request.param.split("-"))


def config(**changes) -> TrainConfig:
    return TrainConfig(lr=RATES, schedule=ScheduleConfig(), batch_tokens=8, **changes)


def fill_gradients(net: MiniGPT, seed: int = 0) -> None:
    draw = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        p.grad = torch.randn(p.shape, generator=draw)


def test_every_parameter_is_in_exactly_one_group(net):
    groups = optim.parameter_groups(net)
    grouped = [id(p) for parameters in groups.values() for p in parameters]
    assert sorted(grouped) == sorted(id(p) for p in net.parameters())
    assert list(groups) == list(LearningRates.model_fields)


def test_groups_hold_what_their_names_say(net):
    names = {id(p): name for name, p in net.named_parameters()}
    groups = {k: {names[id(p)] for p in v} for k, v in optim.parameter_groups(net).items()}
    assert groups["head"] == {"head.weight"}
    positions = {"position"} if net.config.positions == "learned" else set()
    assert groups["embedding"] == {"embedding.weight"} | positions
    assert groups["hidden"] == {
        f"blocks.{i}.{matrix}.weight"
        for i in range(2)
        for matrix in ("attention.qkv", "attention.out", "mlp.up", "mlp.down")
    }
    assert all("norm" in name or name.endswith("bias") for name in groups["vector"])


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_first_step_moves_every_group_by_its_own_rate(net, kind):
    """Adam's first step is −rate · sign(gradient), whatever the gradient's size."""
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    fill_gradients(net)
    made = optim.optimizer(net, config(optimizer=kind))
    made.step()
    after = dict(net.named_parameters())
    names = {id(p): name for name, p in after.items()}
    for group, parameters in optim.parameter_groups(net).items():
        for p in parameters:
            expected = before[names[id(p)]] - getattr(RATES, group) * p.grad.sign()
            torch.testing.assert_close(p.detach(), expected, rtol=1e-5, atol=1e-5)


def test_weight_decay_shrinks_matrices_only(net):
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optim.optimizer(net, config(weight_decay=0.5)).step()
    rates = {"head": RATES.head, "embedding": RATES.embedding, "position": RATES.embedding}
    for name, p in net.named_parameters():
        rate = rates.get(name.split(".")[0], RATES.hidden)
        left = 1 - rate * 0.5 if p.ndim == 2 else 1.0
        torch.testing.assert_close(p.detach(), before[name] * left)


def test_set_rates_scales_each_peak(net):
    made = optim.optimizer(net, config())
    optim.set_rates(made, RATES, 0.5)
    optim.set_rates(made, RATES, 0.25)  # of the peak, not of the rate before
    rates = {group["name"]: group["lr"] for group in made.param_groups}
    assert rates == pytest.approx(
        {"hidden": 0.025, "embedding": 0.05, "head": 0.075, "vector": 0.1}
    )


@settings(max_examples=30)
@given(limit=st.floats(1e-3, 1e3), seed=st.integers(0, 2**31))
def test_clip_bounds_the_global_norm_and_keeps_the_direction(limit, seed):
    net = model("gpt", "rotary")
    fill_gradients(net, seed)
    before = torch.cat([p.grad.flatten() for p in net.parameters()])
    optim.clip(net, limit)
    after = torch.cat([p.grad.flatten() for p in net.parameters()])
    assert after.norm().item() <= limit * (1 + 1e-4)
    scale = min(1.0, limit / before.norm().item())
    torch.testing.assert_close(after, before * scale, rtol=1e-4, atol=1e-6)


def test_no_limit_leaves_gradients_alone(net):
    fill_gradients(net)
    before = [p.grad.clone() for p in net.parameters()]
    optim.clip(net, None)
    assert all(map(torch.equal, before, (p.grad for p in net.parameters())))
