"""What a model, its data and its training are: frozen, checked, free of torch."""

import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def _whole(value: object) -> object:
    """Read 2e6 as the integer it is; anything else is left for the type check."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Positive = Annotated[int, BeforeValidator(_whole), Field(gt=0, le=2**63 - 1)]
Count = Annotated[int, BeforeValidator(_whole), Field(ge=0, le=2**63 - 1)]
PositiveFloat = Annotated[float, Field(gt=0)]
Strategy = Literal["ddp", "fsdp"]  # copies of a model on several ranks, or shards of it


class Frozen(BaseModel):
    """A config object: unknown keys and wrong types are errors, fields never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ModelConfig(Frozen):
    """Shape of one MiniGPT.

    `gpt`: pre-norm RMSNorm, rotary positions, QK-norm, no biases, zero-initialised residual
    outputs. `vaswani`: post-norm LayerNorm, token embedding × √d_model plus positions, biases,
    ReLU. `d_ff` is 4·d_model unless given. The output head is never tied to the embedding.
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
        d_model = _whole(filled.get("d_model"))
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


class DataConfig(Frozen):
    """Where the text comes from and how it is split.

    `source = "stdlib"`: the Python standard library's own source text. `source = "libraries"`: that
    and the source text of every installed library. `source = "text"`: the plain-text files, folders
    and globs of `path`. `val_fraction` of the documents (chosen by content hash) is held out; the
    first `eval_tokens` held-out tokens measure every final loss, the first `curve_eval_tokens` the
    points of the training curves. `max_epochs` allows repetition of the training text.
    """

    source: Literal["stdlib", "libraries", "text"] = "stdlib"
    path: str | Annotated[tuple[str, ...], Field(strict=False)] | None = None
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.12
    eval_tokens: Positive = 1_048_576
    curve_eval_tokens: Positive = 32_768
    max_epochs: PositiveFloat = 1.0

    @model_validator(mode="after")
    def _path(self) -> Self:
        if self.source == "text" and not self.path:
            raise ValueError(
                "source = 'text' needs path: a file, a folder, a glob, or a list of them"
            )
        if self.path is not None and "" in (
            (self.path,) if isinstance(self.path, str) else self.path
        ):
            raise ValueError("path holds an empty string; '.' is the current folder")
        if self.source != "text" and self.path is not None:
            raise ValueError("path belongs to source = 'text'; set source = 'text' or remove path")
        if self.curve_eval_tokens > self.eval_tokens:
            raise ValueError(
                f"curve_eval_tokens = {self.curve_eval_tokens} exceeds eval_tokens = "
                f"{self.eval_tokens}"
            )
        return self


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
