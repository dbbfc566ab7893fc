"""The models of a grid: [model] overlaid with the keys of a size or a run, checked."""

from pydantic import ValidationError

from experiments.axes import Scalar
from experiments.config import ConfigError, SweepConfig
from minigpt.config import ModelConfig
from minigpt.tokenizer import TokenizerError
from minigpt.vocabulary import check_size


def vocabularies(config: SweepConfig) -> list[int | None]:
    """The vocabulary sizes that need a tokenizer each, in the order of the grid; else None alone.

    Raises ConfigError for a size that no tokenizer can have, or a model without one.
    """
    if not config.data.trains_tokenizer:
        return [None]
    sizes = [(size.model, f"grid.sizes[{i}]") for i, size in enumerate(config.grid.sizes)]
    runs = [(run.model, f"grid.runs[{i}]") for i, run in enumerate(config.grid.runs)]
    models = [model_of(config, None, own, where) for own, where in (*sizes, *runs)]
    return list(dict.fromkeys(model.vocab_size for model in models))


def model_of(
    config: SweepConfig, least: int | None, own: dict[str, Scalar], where: str
) -> ModelConfig:
    """[model] overlaid with one size's keys, checked; `d_head` stands for d_model / n_heads.

    A model knows `least` tokens or more; where that is None, its vocabulary is a tokenizer's.
    """
    for table, place in ((own, where), (config.model, "[model]")):
        if {"d_head", "n_heads"} <= table.keys():
            raise ConfigError(f"{place}: d_head and n_heads say the same thing; give one of them")
    values = {**config.model, **own}
    if least is not None:
        values = {"vocab_size": least, **values}
    elif "vocab_size" not in values:
        raise ConfigError(
            f"{where}: missing key 'vocab_size' (here or in [model]): data.tokenizer = "
            f"'{config.data.tokenizer}' is trained to as many ids as its models have"
        )
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
    if least is None:
        try:
            check_size(config.data.tokenizer, model.vocab_size)
        except TokenizerError as error:
            raise ConfigError(f"{where}: {error}") from None
    elif model.vocab_size < least:
        whose = "data.vocab_size" if config.data.source == "tokens" else "the byte vocabulary"
        whose = "that of data.tokenizer" if config.data.tokenizer != "bytes" else whose
        raise ConfigError(
            f"{where}: vocab_size = {model.vocab_size} is smaller than {whose}; "
            f"use {least} or leave it out"
        )
    return model
