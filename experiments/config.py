"""SweepConfig: one strict TOML file plus KEY=VALUE; every mistake is one clear message."""

import difflib
import tomllib
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from experiments.rules import BatchRule, ConstantBatch, ConstantRate, LearningRateRule
from minigpt.config import (
    Count,
    DataConfig,
    Frozen,
    ModelConfig,
    Optimisation,
    Positive,
    PositiveFloat,
    ScheduleConfig,
)

Scalar = bool | int | float | str
PLAIN = {  # pydantic's words, in those of a TOML file
    "valid dictionary or object to extract fields from": "table such as { rule = 'constant', ... }",
    "valid tuple": "list",
    "Tuple": "List",
}
MODEL_KEYS = (*ModelConfig.model_fields, "d_head")


class ConfigError(ValueError):
    """A mistake of the user: the message has file, key, value, rule and remedy."""


class TrainSection(Optimisation):
    """How every model of the sweep is trained; `experiments.plan` resolves the rules per size."""

    batch: BatchRule = ConstantBatch(rule="constant", tokens=1024)
    lr: LearningRateRule = ConstantRate(rule="constant", value=1e-3)
    grad_clip: PositiveFloat | Literal["off"] = 1.0


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
    """One explicit run of [[grid.runs]]; `lr` replaces the value of the rule, or the rule."""

    tokens: Positive
    seed: Count | None = None
    lr: PositiveFloat | None = None
    lr_multiplier: PositiveFloat = 1.0
    batch_tokens: Positive | None = None
    holdout: bool = False


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
        for axis in ("tokens", "tokens_per_param", "seeds", "lr_multipliers", "batch_tokens"):
            values = getattr(self, axis)
            twice = [value for i, value in enumerate(values) if value in values[:i]]
            if twice:
                raise ValueError(f"{axis} holds {twice[0]} twice; remove one")
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
            if not match:
                raise ValueError(
                    "holdout holds {}, which matches every run; name a size or horizon"
                )
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

    @field_validator("name")
    @classmethod
    def _name(cls, name: str) -> str:
        if name == "data":
            raise ValueError("'data' is the folder of the token shards; choose another name")
        return name

    @field_validator("model")
    @classmethod
    def _keys(cls, model: dict[str, Scalar]) -> dict[str, Scalar]:
        known_model_keys(model.keys())
        return model

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
        told: dict[str, list[str]] = {}  # a union has one error for each of its types
        errors = error.errors()
        inside = {each["loc"][:-1] for each in errors}
        for each in errors:
            if each["type"] == "too_short" and each["loc"] in inside:
                continue  # a list is "too short" once its only entry is refused
            key, rule = _message(each)
            told.setdefault(key, []).append(rule)
        lines = [
            f"{where}: {key}{', or '.join(dict.fromkeys(rules))}" for key, rules in told.items()
        ]
        raise ConfigError("\n".join(lines)) from None


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


def _message(error: typing.Any) -> tuple[str, str]:
    """One pydantic error as what is wrong (key and value) and the rule."""
    tags = {"str", "tuple"}  # pydantic's names for the types of a union
    loc = [p for p in error["loc"] if isinstance(p, int) or (p.isidentifier() and p not in tags)]
    key = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in loc).lstrip(".")
    if error["type"] == "extra_forbidden":
        *parents, last = loc
        where = f" in [{'.'.join(map(str, parents))}]" if parents else ""
        near, hint = unknown(str(last), _fields_at(parents)).split(";", 1)
        return "", f"{near}{where};{hint}"
    if error["type"] == "missing":
        return "", f"missing key '{key}'"
    rule = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{key}: " if key else "", rule
    for pydantics, ours in PLAIN.items():
        rule = rule.replace(pydantics, ours)
    return f"{key} = {error['input']!r}: ", f"{rule[0].lower()}{rule[1:]}"


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
