"""What a model, its data and its training are: frozen, checked, free of torch."""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from minigpt.frozen import Count, Frozen, Positive, PositiveFloat, whole
from minigpt.sources import DataConfig as DataConfig  # of a file of its own, and no less a config

Strategy = Literal["ddp", "fsdp"]  # copies of a model on several ranks, or shards of it


class ModelConfig(Frozen):
    """Shape of one MiniGPT.

    `gpt`: pre-norm RMSNorm, rotary positions, QK-norm, no biases, zero-initialised residual
    outputs. `vaswani`: post-norm LayerNorm, token embedding × √d_model plus positions, biases,
    ReLU. `d_ff` is 4·d_model unless given. The output head is never tied to the embedding.

    `dropout` is the probability p of Vaswani et al. 2017, §5.4, in both presets: of what enters the
    first block, and of every sublayer's output before it is added. Attention weights and what is
    inside a sublayer are never dropped. A dump without it is one of a model without dropout.
    """

    preset: Literal["gpt", "vaswani"] = "gpt"
    d_model: Positive
    n_layers: Positive
    n_heads: Positive
    d_ff: Positive
    vocab_size: Positive
    seq_len: Positive
    activation: Literal["relu", "relu2", "gelu"]
    positions: Literal["rotary", "learned", "sinusoidal"]
    # Left out where it is 0, so that hashes of models without it are what they have always been.
    dropout: Annotated[float, Field(ge=0, lt=1, exclude_if=lambda p: p == 0)] = 0.0

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, values: object) -> object:
        """Fill what the preset decides, so that a stored config is always whole."""
        if not isinstance(values, dict):
            return values
        preset = values.get("preset", "gpt")
        filled: dict[str, object] = {
            "activation": "relu" if preset == "vaswani" else "relu2",
            "positions": "learned" if preset == "vaswani" else "rotary",
        }
        if preset == "vaswani":
            filled |= {"vocab_size": 1000, "d_model": 128, "n_layers": 2, "n_heads": 4}
        filled |= values
        d_model = whole(filled.get("d_model"))
        if isinstance(d_model, int):
            filled.setdefault("d_ff", 4 * d_model)
        return filled

    @model_validator(mode="after")
    def _shapes(self) -> Self:
        if self.d_model % self.n_heads:
            raise ValueError(
                f"n_heads = {self.n_heads} does not divide d_model = {self.d_model}; "
                f"choose n_heads among {_divisors(self.d_model)}"
            )
        if self.preset == "gpt" and self.positions != "rotary":
            raise ValueError(
                f"positions = '{self.positions}' belongs to preset 'vaswani'; "
                "preset 'gpt' has 'rotary'"
            )
        if self.preset == "vaswani" and self.positions == "rotary":
            raise ValueError(
                "positions = 'rotary' belongs to preset 'gpt'; "
                "preset 'vaswani' has 'learned' or 'sinusoidal'"
            )
        if self.preset == "vaswani" and self.activation != "relu":
            raise ValueError(
                f"activation = '{self.activation}' belongs to preset 'gpt'; "
                "preset 'vaswani' has 'relu'"
            )
        if self.positions == "rotary" and (self.d_model // self.n_heads) % 2:
            raise ValueError(
                f"rotary positions turn pairs of channels: d_model / n_heads = "
                f"{self.d_model // self.n_heads} must be even"
            )
        return self

    @property
    def d_head(self) -> int:
        """Channels of one attention head."""
        return self.d_model // self.n_heads


WSD_KEYS = ("trunk", "power", "power_tokens", "cooldown", "cooldown_fraction")
COSINE_KEYS = ("final_fraction",)


class ScheduleConfig(Frozen):
    """Learning-rate factor over a run, as numbers (see `minigpt.schedule`).

    `wsd`: the trunk is `constant` or `power` (min(1, (power_tokens/tokens)^power)); a horizon's
    branch cools down over the last `cooldown_fraction` of its tokens by `1-sqrt` or `linear`.
    `cosine`: each horizon is a run of its own that ends at `final_fraction` of the peak.
    """

    kind: Literal["wsd", "cosine"] = "wsd"
    warmup_tokens: Count = 0
    trunk: Literal["constant", "power"] = "constant"
    power: Annotated[float, Field(gt=0, le=1)] = 0.5
    power_tokens: Positive | None = None
    cooldown: Literal["1-sqrt", "linear"] = "1-sqrt"
    cooldown_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    final_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _kind(self) -> Self:
        """Refuse what the other kind would have used: a setting without effect is a mistake."""
        cosine = self.kind == "cosine"
        for key in WSD_KEYS if cosine else COSINE_KEYS:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(
                    f"{key} belongs to kind = '{'wsd' if cosine else 'cosine'}', not to "
                    f"'{self.kind}'; remove it"
                )
        if (self.trunk == "power") != (self.power_tokens is not None):
            raise ValueError(
                "power_tokens belongs to trunk = 'power': give both (the tokens after which the "
                "rate falls) or neither"
            )
        return self


class LearningRates(Frozen):
    """Peak learning rate of each parameter group, resolved to numbers."""

    hidden: PositiveFloat
    embedding: PositiveFloat
    head: PositiveFloat
    vector: PositiveFloat

    @classmethod
    def inverse_width(cls, value: float, base_width: int, d_model: int) -> Self:
        """Hidden matrices at value·base_width/d_model, all other parameters at `value`.

        With Adam this is the per-layer exponent under which the best rate transfers across widths
        in the standard parameterisation (Everett et al. 2024, arXiv 2407.05872; Yang et al. 2022,
        arXiv 2203.03466, table 8).
        """
        hidden = value * base_width / d_model
        return cls(hidden=hidden, embedding=value, head=value, vector=value)

    @classmethod
    def constant(cls, value: float) -> Self:
        """Every parameter at `value`."""
        return cls(hidden=value, embedding=value, head=value, vector=value)


class Optimisation(Frozen):
    """What a sweep's config and a trunk's spec both say of the optimiser."""

    optimizer: Literal["adamw", "adam"] = "adamw"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    eps: PositiveFloat = 1e-10
    dtype: Literal["float32", "bfloat16"] = "float32"
    eval_every_tokens: Positive = 131_072

    @model_validator(mode="after")
    def _adam(self) -> Self:
        if self.optimizer == "adam" and self.weight_decay:
            raise ValueError(
                f"weight_decay = {self.weight_decay} belongs to optimizer = 'adamw'; "
                "for 'adam' set it to 0"
            )
        return self


class TrainConfig(Optimisation):
    """The optimisation of one trunk, every rule already resolved to a number."""

    lr: LearningRates
    schedule: ScheduleConfig
    batch_tokens: Positive
    grad_clip: PositiveFloat | None = 1.0
    seed: Count = 0


def steps_of(tokens: int, batch_tokens: int) -> int:
    """Optimiser steps that train `tokens`, rounded to the nearest whole step."""
    return max(1, math.floor(tokens / batch_tokens + 0.5))


def sequences_per_rank(batch_tokens: int, seq_len: int, ranks: int) -> int:
    """Sequences of every step's batch that each of `ranks` processes trains on.

    Raises ValueError where the ranks do not divide the batch: it is the same for any number.
    """
    sequences = batch_tokens // seq_len
    if sequences % ranks:
        possible = [k for k in _divisors(sequences) if k < ranks]
        raise ValueError(
            f"batch_tokens = {batch_tokens} is {sequences} sequences of seq_len = {seq_len}, which "
            f"{ranks} ranks do not divide; choose the number of ranks among {possible}, or "
            f"batch_tokens as a multiple of {ranks * seq_len}"
        )
    return sequences // ranks


def _divisors(n: int) -> list[int]:
    return [k for k in range(1, n + 1) if n % k == 0]
