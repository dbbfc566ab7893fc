"""SweepConfig: one strict TOML file plus KEY=VALUE; every mistake is one clear message."""

import difflib
import tomllib
import types
import typing
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from experiments.rules import BatchRule, ConstantBatch, ConstantRate, LearningRateRule
from minigpt.config import (
    Count,
    DataConfig,
    Frozen,
    ModelConfig,
    Positive,
    PositiveFloat,
    ScheduleConfig,
)

Scalar = bool | int | float | str
MODEL_KEYS = (*ModelConfig.model_fields, "d_head")


class ConfigError(ValueError):
    """A mistake of the user: the message has file, key, value, rule and remedy."""


class TrainSection(Frozen):
    """How every model of the sweep is trained; `experiments.plan` resolves the rules per size."""

    optimizer: Literal["adamw", "adam"] = "adamw"
    batch: BatchRule = ConstantBatch(rule="constant", tokens=1024)
    lr: LearningRateRule = ConstantRate(rule="constant", value=1e-3)
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    eps: Annotated[float, Field(gt=0)] = 1e-10
    grad_clip: Annotated[float, Field(gt=0)] | Literal["off"] = 1.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    eval_every_tokens: Positive = 131_072


class Size(Frozen):
    """One rung of the ladder: model keys over those of [model], and its own seeds if any."""

    model: dict[str, Scalar]
    seeds: Annotated[tuple[Count, ...], Field(min_length=1, strict=False)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, values: object) -> object:
        """In the file a size is one flat table."""
        if not isinstance(values, dict) or "model" in values:
            return values
        own = {key: values[key] for key in values if key in cls.model_fields}
        return {"model": {key: values[key] for key in values if key not in own}, **own}

    @field_validator("model")
    @classmethod
    def _keys(cls, model: dict[str, Scalar]) -> dict[str, Scalar]:
        return known_model_keys(model, also=("seeds",))


class Run(Frozen):
    """One explicit run of [[grid.runs]]: model keys, a horizon, and what differs from [train]."""

    model: dict[str, Scalar]
    tokens: Positive
    seed: Count | None = None
    lr: PositiveFloat | None = None
    lr_multiplier: PositiveFloat = 1.0
    batch_tokens: Positive | None = None
    holdout: bool = False

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, values: object) -> object:
        """In the file a run is one flat table."""
        if not isinstance(values, dict) or "model" in values:
            return values
        own = {key: values[key] for key in values if key in cls.model_fields}
        return {"model": {key: values[key] for key in values if key not in own}, **own}

    @field_validator("model")
    @classmethod
    def _keys(cls, model: dict[str, Scalar]) -> dict[str, Scalar]:
        return known_model_keys(model, also=tuple(set(cls.model_fields) - {"model"}))


class Grid(Frozen):
    """The axes: every size × horizon × seed × rate multiplier × batch, and the explicit runs.

    Horizons are `tokens` or `tokens_per_param` (times n_total). `holdout` lists partial matches,
    such as {d_model = 128} or {tokens = 3e6}: runs that match one are trained but kept out of every
    fit.
    """

    sizes: Annotated[tuple[Size, ...], Field(strict=False)] = ()
    tokens: Annotated[tuple[Positive, ...], Field(strict=False)] = ()
    tokens_per_param: Annotated[tuple[PositiveFloat, ...], Field(strict=False)] = ()
    seeds: Annotated[tuple[Count, ...], Field(min_length=1, strict=False)] = (0,)
    lr_multipliers: Annotated[tuple[PositiveFloat, ...], Field(min_length=1, strict=False)] = (1.0,)
    batch_tokens: Annotated[tuple[Positive, ...], Field(strict=False)] = ()
    holdout: Annotated[tuple[dict[str, Scalar], ...], Field(strict=False)] = ()
    runs: Annotated[tuple[Run, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.sizes and bool(self.tokens) == bool(self.tokens_per_param):
            raise ValueError(
                "sizes need horizons: give exactly one of tokens = [...] and tokens_per_param = "
                "[...]"
            )
        if not self.sizes and not self.runs:
            raise ValueError("the grid is empty: give sizes with tokens, or [[grid.runs]]")
        known = (*MODEL_KEYS, "tokens", "seed")
        for match in self.holdout:
            for key in match:
                if key not in known:
                    raise ValueError(f"holdout: {unknown(key, known)}")
        return self


class LaunchSection(Frozen):
    """Where runs execute; nothing here changes a result, so it may change between calls."""

    executor: Literal["inline", "local"] = "local"
    slots: Literal["auto"] | Positive = "auto"
    threads_per_slot: Positive = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    checkpoint_seconds: Annotated[float, Field(gt=0)] = 60.0


class SweepConfig(Frozen):
    """A whole sweep. Its folder is `<runs_dir>/<name>`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    runs_dir: str = "runs"
    model: dict[str, Scalar] = Field(default_factory=dict)
    data: DataConfig = DataConfig()
    train: TrainSection = TrainSection()
    schedule: ScheduleConfig = ScheduleConfig()
    grid: Grid
    launch: LaunchSection = LaunchSection()

    @field_validator("model")
    @classmethod
    def _keys(cls, model: dict[str, Scalar]) -> dict[str, Scalar]:
        return known_model_keys(model)

    @property
    def folder(self) -> Path:
        """The sweep's folder."""
        return Path(self.runs_dir, self.name)


def load(path: Path, overrides: list[str] | None = None) -> SweepConfig:
    """Read the TOML file at `path`, apply overrides such as "grid.seeds=[0, 1]", check everything.

    Raises ConfigError naming file, key, value, rule and remedy.
    """
    try:
        table = tomllib.loads(path.read_text())
    except FileNotFoundError:
        near = difflib.get_close_matches(
            path.name, [p.name for p in Path("configs").glob("*.toml")]
        )
        hint = f"; did you mean configs/{near[0]}?" if near else "; shipped configs are in configs/"
        raise ConfigError(f"{path}: no such config file{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    for override in overrides or []:
        _override(table, override)
    return parse(table, where=str(path))


def parse(table: dict, where: str) -> SweepConfig:
    """Check a table of settings; `where` names its origin in messages."""
    try:
        return SweepConfig.model_validate(table)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{where}: {_message(e)}" for e in error.errors())) from None


def known_model_keys(model: dict[str, Scalar], also: tuple[str, ...] = ()) -> dict[str, Scalar]:
    """Return `model` if all its keys are a model's; ValueError with the nearest name otherwise."""
    for key in model:
        if key not in MODEL_KEYS:
            raise ValueError(unknown(key, (*MODEL_KEYS, *also)))
    return model


def unknown(key: str, choices: typing.Iterable[str]) -> str:
    """The message for an unknown key: the nearest known name, or all of them."""
    choices = sorted(choices)
    near = difflib.get_close_matches(key, choices, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(choices)}"
    return f"unknown key '{key}'; {hint}"


def _override(table: dict, override: str) -> None:
    key, found, value = override.partition("=")
    if not found or not key:
        raise ConfigError(f"override {override!r}: write KEY=VALUE, such as grid.seeds=[0,1]")
    *parents, last = key.strip().split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise ConfigError(f"override {override!r}: '{parent}' is no table of settings")
    try:
        table[last] = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        table[last] = value.strip()


def _message(error: typing.Any) -> str:
    """One pydantic error as key, value, rule."""
    loc = [part for part in error["loc"] if not str(part).startswith("function-")]
    key = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in loc).lstrip(".")
    if error["type"] == "extra_forbidden":
        *parents, last = loc
        where = f" in [{'.'.join(map(str, parents))}]" if parents else ""
        return unknown(str(last), _fields_at(parents)) + where
    if error["type"] == "missing":
        return f"missing key '{key}'"
    rule = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{key}: {rule}" if key else rule
    return f"{key} = {error['input']!r}: {rule[0].lower()}{rule[1:]}"


def _fields_at(loc: list) -> list[str]:
    """Names of the fields of the config object at `loc`."""
    found: list[type[BaseModel]] = [SweepConfig]
    for part in loc:
        if isinstance(part, int):
            continue
        tagged = [m for m in found if part in _tags(m)]
        annotations = [m.model_fields[part].annotation for m in found if part in m.model_fields]
        found = tagged or [model for a in annotations for model in _models(a)]
    return [name for model in found for name in model.model_fields]


def _tags(model: type[BaseModel]) -> tuple:
    rule = model.model_fields.get("rule")
    return typing.get_args(rule.annotation) if rule else ()


def _models(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if isinstance(annotation, types.GenericAlias | types.UnionType) or typing.get_origin(
        annotation
    ):
        return [m for a in typing.get_args(annotation) for m in _models(a)]
    return []
