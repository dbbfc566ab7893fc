"""Rules become the numbers of the papers they cite."""

import math

import pytest

from experiments import rules
from minigpt.config import ModelConfig
from minigpt.counts import parameter_counts

MODEL = ModelConfig(d_model=64, n_layers=2, n_heads=4, vocab_size=257, seq_len=128)


def test_inverse_width_scales_hidden_matrices_only() -> None:
    rule = rules.InverseWidthRate(rule="inverse-width", value=0.02, base_width=32)
    rates = rule.resolve(MODEL, [1_000_000])
    assert rates.model_dump() == {"hidden": 0.01, "embedding": 0.02, "head": 0.02, "vector": 0.02}
    assert rules.text(rule) == "inverse-width(value=0.02, base_width=32)"
    assert rules.scaled(rates, 0.5).hidden == 0.005


def test_step_law_rate_and_batch() -> None:
    horizons = [10_000_000, 40_000_000]
    N, D = parameter_counts(MODEL).total, 2e7
    rate = rules.StepLawRate(rule="step-law").resolve(MODEL, horizons).hidden
    assert rate == pytest.approx(1.79 * N**-0.713 * D**0.307)
    batch = rules.StepLawBatch(rule="step-law").resolve(MODEL, horizons)
    assert batch <= 0.58 * D**0.571 < 2 * batch
    assert math.log2(batch / MODEL.seq_len).is_integer()


def test_step_law_batch_leaves_500_steps() -> None:
    assert rules.StepLawBatch(rule="step-law").resolve(MODEL, [500_000]) <= 1000
    assert rules.StepLawBatch(rule="step-law").resolve(MODEL, [1_000]) == MODEL.seq_len
