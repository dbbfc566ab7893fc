"""Closed-form counts against the modules themselves and against torch's own FLOP counter."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from minigpt.config import ModelConfig
from minigpt.counts import flops_per_token, parameter_counts
from minigpt.loss import cross_entropy
from minigpt.model import MiniGPT


@st.composite
def shapes(draw):
    """Any model of either preset, heads of an even number of channels."""
    preset = draw(st.sampled_from(["gpt", "vaswani"]))
    n_heads = draw(st.integers(1, 4))
    return ModelConfig(
        preset=preset,
        d_model=n_heads * 2 * draw(st.integers(1, 8)),
        n_layers=draw(st.integers(1, 3)),
        n_heads=n_heads,
        d_ff=draw(st.integers(1, 96)),
        vocab_size=draw(st.integers(2, 300)),
        seq_len=draw(st.integers(1, 48)),
        activation="relu" if preset == "vaswani" else draw(st.sampled_from(["relu2", "gelu"])),
        positions="rotary" if preset == "gpt" else draw(st.sampled_from(["learned", "sinusoidal"])),
    )


def group_of(name: str) -> str:
    """The group that a parameter's name says it belongs to."""
    if "norm" in name:  # also the one inside attention
        return "norm"
    groups = ("embedding", "position", "attention", "mlp", "head")
    return next(group for group in groups if group in name.split("."))


@settings(max_examples=60)
@given(shapes())
def test_each_group_counts_the_modules_own_parameters(config):
    counts = parameter_counts(config)
    own = dict.fromkeys(("embedding", "position", "attention", "mlp", "norm", "head"), 0)
    for name, parameter in MiniGPT(config).named_parameters():
        own[group_of(name)] += parameter.numel()
    assert own == {group: getattr(counts, group) for group in own}
    assert counts.total == sum(own.values())
    assert counts.non_embedding == own["attention"] + own["mlp"] + own["norm"]
    assert counts.matmul == own["attention"] + own["mlp"] + own["head"]


@settings(max_examples=40)
@given(shapes())
def test_six_n_and_matmul_by_definition(config):
    counts, flops = parameter_counts(config), flops_per_token(config)
    assert flops.six_n == 6 * counts.total
    assert flops.matmul == 6 * (counts.attention + counts.mlp + counts.head)


@settings(max_examples=25)
@given(shapes(), st.integers(1, 3))
def test_exact_flops_agree_with_torch(config, batch_size):
    tokens_BT = torch.zeros(batch_size, config.seq_len, dtype=torch.long)
    model = MiniGPT(config)
    # The CPU's fused attention kernel is unknown to the counter; the plain one is two products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        cross_entropy(model(tokens_BT), tokens_BT).backward()
    measured = counter.get_total_flops() / tokens_BT.numel()
    assert flops_per_token(config).exact == pytest.approx(measured, rel=0.01)


def test_counts_of_one_model_by_hand():
    config = ModelConfig(
        d_model=8, n_layers=2, n_heads=2, d_ff=16, vocab_size=10, seq_len=4, preset="gpt"
    )
    counts = parameter_counts(config)
    assert (counts.embedding, counts.position, counts.head) == (80, 0, 80)
    assert (counts.attention, counts.mlp) == (2 * 4 * 64, 2 * 2 * 8 * 16)
    assert counts.norm == 2 * (8 + 8 + 4) + 8  # two gains and one QK gain a block, one at the end
    assert flops_per_token(config).exact == 6 * (512 + 512 + 80) + 12 * 2 * 4 * 8
