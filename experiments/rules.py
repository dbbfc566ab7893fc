"""Batch and learning-rate rules: named objects that become numbers before hashing."""

import math
from typing import Annotated, Literal

from pydantic import Field

from minigpt.config import Frozen, LearningRates, ModelConfig, Positive, PositiveFloat
from minigpt.counts import parameter_counts


class ConstantRate(Frozen):
    """The same peak rate for every parameter and size."""

    rule: Literal["constant"]
    value: PositiveFloat

    def resolve(self, model: ModelConfig, horizons: list[int]) -> LearningRates:
        """Rates of `model`'s groups for a trunk with these horizons (tokens)."""
        return LearningRates.constant(self.value)


class InverseWidthRate(Frozen):
    """Hidden matrices at value·base_width/d_model, all other parameters at `value`."""

    rule: Literal["inverse-width"]
    value: PositiveFloat
    base_width: Positive

    def resolve(self, model: ModelConfig, horizons: list[int]) -> LearningRates:
        """Rates of `model`'s groups for a trunk with these horizons (tokens)."""
        return LearningRates.inverse_width(self.value, self.base_width, model.d_model)


class StepLawRate(Frozen):
    """η = 1.79·N^-0.713·D^0.307 for every parameter (Li et al. 2025, arXiv 2503.04715).

    N is all parameters; D the geometric mean of the trunk's horizons, because one trunk has one
    rate. Fitted between 60M and 1B parameters: below that it is an extrapolation.
    """

    rule: Literal["step-law"]

    def resolve(self, model: ModelConfig, horizons: list[int]) -> LearningRates:
        """Rates of `model`'s groups for a trunk with these horizons (tokens)."""
        N, D = parameter_counts(model).total, _geometric_mean(horizons)
        return LearningRates.constant(1.79 * N**-0.713 * D**0.307)


class ConstantBatch(Frozen):
    """The same number of tokens in every optimiser step."""

    rule: Literal["constant"]
    tokens: Positive

    def resolve(self, model: ModelConfig, horizons: list[int]) -> int:
        """Tokens per step for a trunk with these horizons (tokens)."""
        return self.tokens


class StepLawBatch(Frozen):
    """B = 0.58·D^0.571 tokens (Li et al. 2025, arXiv 2503.04715), as a power of two of sequences.

    D is the geometric mean of the trunk's horizons; the shortest horizon keeps at least 500 steps.
    """

    rule: Literal["step-law"]

    def resolve(self, model: ModelConfig, horizons: list[int]) -> int:
        """Tokens per step for a trunk with these horizons (tokens)."""
        wanted = 0.58 * _geometric_mean(horizons) ** 0.571
        sequences = min(wanted, min(horizons) / 500) / model.seq_len
        return model.seq_len * 2 ** max(0, math.floor(math.log2(max(sequences, 1.0))))


LearningRateRule = Annotated[
    ConstantRate | InverseWidthRate | StepLawRate, Field(discriminator="rule")
]
BatchRule = Annotated[ConstantBatch | StepLawBatch, Field(discriminator="rule")]


def scaled(rates: LearningRates, multiplier: float) -> LearningRates:
    """Every group's rate times `multiplier`."""
    return LearningRates(**{name: rate * multiplier for name, rate in rates.model_dump().items()})


def text(rule: Frozen) -> str:
    """The rule as results record it: its name and its numbers."""
    values = rule.model_dump()
    name = values.pop("rule")
    return f"{name}({', '.join(f'{key}={value:g}' for key, value in values.items())})"


def _geometric_mean(horizons: list[int]) -> float:
    return math.exp(sum(map(math.log, horizons)) / len(horizons))
