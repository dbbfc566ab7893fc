"""SweepConfig: one strict TOML file plus KEY=VALUE; every mistake is one clear message."""

import difflib
import tomllib
import types
import typing
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator

from experiments.axes import Grid, Scalar, known_model_keys, unknown
from experiments.resources import LaunchSection
from experiments.rules import BatchRule, ConstantBatch, ConstantRate, LearningRateRule
from minigpt.config import (
    DataConfig,
    Frozen,
    Optimisation,
    PositiveFloat,
    ScheduleConfig,
)

PLAIN = {  # pydantic's words, in those of a TOML file
    "valid dictionary or object to extract fields from": "table such as { rule = 'constant', ... }",
    "valid tuple": "list",
    "Tuple": "List",
}


class ConfigError(ValueError):
    """A mistake of the user: the message has file, key, value, rule and remedy."""


class TrainSection(Optimisation):
    """How every model of the sweep is trained; `experiments.plan` resolves the rules per size."""

    batch: BatchRule = ConstantBatch(rule="constant", tokens=1024)
    lr: LearningRateRule = ConstantRate(rule="constant", value=1e-3)
    grad_clip: PositiveFloat | Literal["off"] = 1.0


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

    @field_validator("runs_dir")
    @classmethod
    def _home(cls, runs_dir: str) -> str:
        return str(Path(runs_dir).expanduser())

    @field_validator("data")
    @classmethod
    def _vocabulary(cls, data: DataConfig) -> DataConfig:
        if data.trains_tokenizer and data.vocab_size is not None:
            raise ValueError(
                f"vocab_size = {data.vocab_size}: a {data.tokenizer} tokenizer has the ids of its "
                "model; set vocab_size in [model] or in grid.sizes"
            )
        return data

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
    tags = {"str", "tuple", "list", "table"}  # names for the types of a union
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
