"""The [grid] section of a config: sizes, horizons, seeds, rates, and explicit runs."""

import difflib
from collections.abc import Iterable
from typing import Annotated, Self

from pydantic import Discriminator, Field, Tag, model_validator

from minigpt.config import Count, Frozen, ModelConfig, Positive, PositiveFloat

Scalar = bool | int | float | str
MODEL_KEYS = (*ModelConfig.model_fields, "d_head")


class Cells(Frozen):
    """Model keys over those of [model], in the file one flat table with the keys of a subclass."""

    model: dict[str, Scalar]

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, values: object) -> object:
        if not isinstance(values, dict) or "model" in values:
            return values
        own = {key: value for key, value in values.items() if key in cls.model_fields}
        known_model_keys(values.keys() - own.keys(), also=cls.model_fields.keys() - {"model"})
        return {"model": {k: v for k, v in values.items() if k not in own}, **own}


class Size(Cells):
    """One rung of the ladder, with its own seeds if any."""

    seeds: Annotated[tuple[Count, ...], Field(min_length=1, strict=False)] | None = None


class Run(Cells):
    """One explicit run of [[grid.runs]]; `lr` replaces the value of the rule, or the rule.

    Its horizon is `tokens`, or `flops` (training FLOPs, exact convention).
    """

    tokens: Positive | None = None
    flops: PositiveFloat | None = None
    seed: Count | None = None
    lr: PositiveFloat | None = None
    lr_multiplier: PositiveFloat = 1.0
    batch_tokens: Positive | None = None
    holdout: bool = False

    @model_validator(mode="after")
    def _one_horizon(self) -> Self:
        if (self.tokens is None) == (self.flops is None):
            raise ValueError("a run needs a horizon: give exactly one of tokens and flops")
        return self


class Doublings(Frozen):
    """That many horizons, each twice the one before, of which the largest is D_max.

    D_max is the largest power of two of tokens that data.max_epochs of the training text hold.
    """

    doublings: Positive


def _form(value: object) -> str:
    """Which of its two forms `tokens` has, so that a mistake in one is not told of both."""
    return "table" if isinstance(value, dict | Doublings) else "list"


Horizons = Annotated[
    Annotated[tuple[Positive, ...], Field(strict=False), Tag("list")]
    | Annotated[Doublings, Tag("table")],
    Discriminator(_form),
]


class Grid(Frozen):
    """The axes: every size × horizon × seed × rate multiplier × batch, and the explicit runs.

    Horizons are `tokens` (a list, or how many doublings), `tokens_per_param` (times n_total) or
    `flops`: isoFLOP budgets in training FLOPs by the exact convention, which give each size its own
    tokens. `holdout` lists partial matches, such as {d_model = 128} or {tokens = 3e6}: runs that
    match one are trained but kept out of every fit.
    """

    sizes: Annotated[tuple[Size, ...], Field(strict=False)] = ()
    tokens: Horizons = ()
    tokens_per_param: Annotated[tuple[PositiveFloat, ...], Field(strict=False)] = ()
    flops: Annotated[tuple[PositiveFloat, ...], Field(strict=False)] = ()
    seeds: Annotated[tuple[Count, ...], Field(min_length=1, strict=False)] = (0,)
    lr_multipliers: Annotated[tuple[PositiveFloat, ...], Field(min_length=1, strict=False)] = (1.0,)
    batch_tokens: Annotated[tuple[Positive, ...], Field(strict=False)] = ()
    holdout: Annotated[tuple[dict[str, Scalar], ...], Field(strict=False)] = ()
    runs: Annotated[tuple[Run, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _whole(self) -> Self:
        horizons = ("tokens", "tokens_per_param", "flops")
        for axis in (*horizons, "seeds", "lr_multipliers", "batch_tokens"):
            values = getattr(self, axis)
            if isinstance(values, Doublings):
                continue
            twice = [value for i, value in enumerate(values) if value in values[:i]]
            if twice:
                raise ValueError(f"{axis} holds {twice[0]} twice; remove one")
        given = [axis for axis in horizons if getattr(self, axis)]
        if self.sizes and len(given) != 1:
            here = " and ".join(given) or "none"
            raise ValueError(
                "sizes need horizons: give exactly one of tokens = [...], tokens_per_param = [...] "
                f"and flops = [...]; here: {here}"
            )
        if not self.sizes and not self.runs:
            raise ValueError("the grid is empty: give sizes with tokens, or [[grid.runs]]")
        known = (*MODEL_KEYS, "tokens", "flops", "seed")
        for match in self.holdout:
            for key in match:
                if key not in known:
                    raise ValueError(f"holdout: {unknown(key, known)}")
            if not match:
                raise ValueError(
                    "holdout holds {}, which matches every run; name a size or horizon"
                )
        return self


def known_model_keys(keys: Iterable[str], also: Iterable[str] = ()) -> None:
    """Raise ValueError with the nearest name for a key that is no model's."""
    for key in keys:
        if key not in MODEL_KEYS:
            raise ValueError(unknown(key, (*MODEL_KEYS, *also)))


def unknown(key: str, choices: Iterable[str]) -> str:
    """The message for an unknown key: the nearest known name, or all of them."""
    choices = sorted(choices)
    near = difflib.get_close_matches(key, choices, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(choices)}"
    return f"unknown key '{key}'; {hint}"
