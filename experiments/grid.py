"""The cells of a sweep's grid: sizes × horizons × seeds × rates × batches, and the explicit
runs."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from pydantic import ValidationError

from experiments.config import ConfigError, Scalar, SweepConfig
from minigpt.config import ModelConfig
from minigpt.counts import parameter_counts
from minigpt.data import BYTE_VOCABULARY


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One wished-for run; `lr` and `batch_tokens` are None where the rules decide."""

    model: ModelConfig
    tokens: int
    seed: int
    lr: float | None
    lr_multiplier: float
    batch_tokens: int | None
    arm: str
    holdout: bool


def cells(config: SweepConfig) -> list[Cell]:
    """Every cell of the sweep, its model checked.

    Raises ConfigError for a model that cannot be built or a holdout that matches nothing.
    """
    found = [*_of_sizes(config), *_of_runs(config)]
    for match in config.grid.holdout:
        if not any(_matches(match, cell) for cell in found):
            raise ConfigError(
                f"grid.holdout: {match} matches no run; it must equal a size's keys, tokens or seed"
            )
    return [
        replace(cell, holdout=True)
        if any(_matches(match, cell) for match in config.grid.holdout)
        else cell
        for cell in found
    ]


def _of_sizes(config: SweepConfig) -> Iterator[Cell]:
    grid = config.grid
    for i, size in enumerate(grid.sizes):
        model = _model(config, size.model, f"grid.sizes[{i}]")
        n_total = parameter_counts(model).total
        horizons = grid.tokens or tuple(round(r * n_total) for r in grid.tokens_per_param)
        for seed in size.seeds or grid.seeds:
            for multiplier in grid.lr_multipliers:
                for batch in grid.batch_tokens or (None,):
                    arm = [f"lr*{multiplier:g}"] if multiplier != 1 else []
                    arm += [f"batch={batch}"] if batch not in (None, *grid.batch_tokens[:1]) else []
                    for tokens in horizons:
                        yield Cell(
                            model=model,
                            tokens=tokens,
                            seed=seed,
                            lr=None,
                            lr_multiplier=multiplier,
                            batch_tokens=batch,
                            arm=" ".join(arm) or "main",
                            holdout=False,
                        )


def _of_runs(config: SweepConfig) -> Iterator[Cell]:
    """Explicit runs; the second recipe for a model and seed is an arm of its own, not main."""
    grid = config.grid
    usual_batch = grid.batch_tokens[0] if grid.batch_tokens else None
    main: dict[tuple[ModelConfig, int], tuple] = {
        (cell.model, cell.seed): (None, usual_batch)
        for cell in _of_sizes(config)
        if cell.arm == "main"
    }
    for i, run in enumerate(grid.runs):
        model = _model(config, run.model, f"grid.runs[{i}]")
        seed = grid.seeds[0] if run.seed is None else run.seed
        recipe = (run.lr, run.batch_tokens or usual_batch)
        arm = [f"lr*{run.lr_multiplier:g}"] if run.lr_multiplier != 1 else []
        if main.setdefault((model, seed), recipe) != recipe:
            arm += [f"lr={run.lr:g}"] if run.lr is not None else []
            arm += [f"batch={run.batch_tokens}"] if run.batch_tokens is not None else []
        yield Cell(
            model=model,
            tokens=run.tokens,
            seed=seed,
            lr=run.lr,
            lr_multiplier=run.lr_multiplier,
            batch_tokens=run.batch_tokens or usual_batch,
            arm=" ".join(arm) or "main",
            holdout=run.holdout,
        )


def _matches(match: dict[str, Scalar], cell: Cell) -> bool:
    values = {**cell.model.model_dump(), "d_head": cell.model.d_head}
    values |= {"tokens": cell.tokens, "seed": cell.seed}
    return all(values[key] == value for key, value in match.items())


def _model(config: SweepConfig, own: dict[str, Scalar], where: str) -> ModelConfig:
    """[model] overlaid with one size's keys, checked; `d_head` stands for d_model / n_heads."""
    for table, place in ((own, where), (config.model, "[model]")):
        if {"d_head", "n_heads"} <= table.keys():
            raise ConfigError(f"{place}: d_head and n_heads say the same thing; give one of them")
    values = {"vocab_size": BYTE_VOCABULARY, **config.model, **own}
    if "d_head" in values and "n_heads" in values:  # the size's own key decides
        values.pop("n_heads" if "d_head" in own else "d_head")
    if "d_head" in values and "d_model" in values:
        d_head, d_model = values.pop("d_head"), values["d_model"]
        if not isinstance(d_head, int | float) or not isinstance(d_model, int | float):
            raise ConfigError(
                f"{where}: d_head = {d_head!r} and d_model = {d_model!r} are integers"
            )
        if d_head < 1 or d_model % d_head:
            raise ConfigError(
                f"{where}: d_head = {d_head!r} does not divide d_model = {d_model!r}; "
                "choose a multiple of d_head for d_model"
            )
        values["n_heads"] = int(d_model // d_head)
    try:
        model = ModelConfig.model_validate({k: v for k, v in values.items() if k != "d_head"})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        rule = first["msg"].removeprefix("Value error, ")
        told = f"{key} = {first['input']!r}: {rule}" if key else rule
        told = f"missing key '{key}' (here or in [model])" if first["type"] == "missing" else told
        raise ConfigError(f"{where}: {told}") from None
    if model.vocab_size < BYTE_VOCABULARY:
        raise ConfigError(
            f"{where}: vocab_size = {model.vocab_size} is smaller than the byte vocabulary; "
            f"use {BYTE_VOCABULARY} or leave it out"
        )
    return model
