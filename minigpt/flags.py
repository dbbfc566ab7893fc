"""The flags of `python -m minigpt.train`, and the configs that they stand for. No torch."""

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from minigpt.config import DataConfig, LearningRates, ModelConfig, ScheduleConfig, TrainConfig
from minigpt.data import CorpusInfo, windows
from minigpt.sources import TRAINED
from minigpt.tokenizer import TokenizerError
from minigpt.vocabulary import check_size

MODEL = {"d_model": 128, "n_layers": 2, "seq_len": 256}
TOY_MODEL = {"d_model": 64, "n_layers": 1, "seq_len": 64}
D_HEAD = 32
TOKENS, TOY_TOKENS, TOY_VOCABULARY = 4_000_000, 200_000, 64
BATCH_TOKENS = 2_048
VOCABULARY = 2_048  # of a tokenizer that is trained
BASE_RATE, BASE_WIDTH = 0.04, 8  # the rule of configs/quick.toml
WARMUP_STEPS = 10  # or a quarter of the steps, where that is less
POINTS = 10  # of the curve
EVAL_TOKENS, CURVE_EVAL_TOKENS = 262_144, 32_768
# What the parts of the project that know config files say, as the command line says it.
AS_FLAGS = {
    "data.path": "--text",
    "data.column=": "--column ",
    "data.column": "--column",
    "data.val_fraction": "--val-fraction",
    "data.tokenizer": "--tokenizer",
    "vocab_size": "--vocab-size",
    "data.source = 'text'": "--text",
}
C = TypeVar("C", DataConfig, ModelConfig, TrainConfig)


class FlagError(ValueError):
    """A flag, or flags together, with which no model can be trained."""


def as_flags(message: str) -> str:
    """A message of keys in a config file as one of flags."""
    for key, flag in AS_FLAGS.items():
        message = message.replace(key, flag)
    return message


def name(args: argparse.Namespace) -> str:
    """What the model's folder is called where nothing is said."""
    if args.text is None:
        return "stdlib"
    path = Path(args.text[0])
    return re.sub(r"[^\w.-]+", "-", path.stem or path.resolve().name).strip("-.") or "text"


def of_text(args: argparse.Namespace) -> DataConfig:
    """The text to train on; how much of it is held out for evaluation is not known yet.

    Raises FlagError for a vocabulary that the tokenizer cannot have.
    """
    tokenizer, size = args.tokenizer or "bytes", args.vocab_size
    trained = tokenizer in TRAINED
    if size is not None and not trained:
        raise FlagError(
            f"--vocab-size {size} is for a tokenizer that is trained; give --tokenizer bpe or "
            "wordpiece, or leave it out"
        )
    size = size or (VOCABULARY if trained else None)
    if size is not None:
        try:
            check_size(tokenizer, size)
        except TokenizerError as error:
            raise FlagError(as_flags(str(error))) from None
    if args.text is None and args.column is not None:
        raise FlagError(f"--column {args.column} belongs to --text with .jsonl or .parquet files")
    values: dict[str, Any] = {"tokenizer": tokenizer, "vocab_size": size}
    values |= {"val_fraction": args.val_fraction, "column": args.column}
    if args.text is not None:
        path = args.text[0] if len(args.text) == 1 else args.text
        values |= {"source": "text", "path": path}
    values |= {"eval_tokens": 1, "curve_eval_tokens": 1}
    return _checked(DataConfig, values)


def held_out(config: DataConfig, info: CorpusInfo, seq_len: int) -> DataConfig:
    """The text with as many tokens to evaluate on as are wanted, or as there are."""
    tokens = min(EVAL_TOKENS, info.val_tokens - 1)
    for kind, windows_of in (("held-out", tokens + 1), ("training", info.train_tokens)):
        if windows(windows_of, seq_len) < 1:
            raise FlagError(
                f"--seq-len {seq_len}: the {windows_of:,} {kind} tokens of {info.origin} hold no "
                "such sequence; give more --text or a shorter --seq-len"
            )
    curve = min(tokens, max(seq_len, CURVE_EVAL_TOKENS))
    return config.model_copy(update={"eval_tokens": tokens, "curve_eval_tokens": curve})


def of_toy(args: argparse.Namespace, seq_len: int) -> DataConfig:
    """What stands in the place of text; refuses flags without effect on random tokens."""
    for name in ("text", "column", "out", "prompt", "tokenizer"):
        if getattr(args, name) is not None:
            raise FlagError(f"--{name} has no effect on the random tokens of --toy; leave it out")
    return DataConfig(eval_tokens=128 * seq_len, curve_eval_tokens=32 * seq_len)


def model(args: argparse.Namespace, vocab_size: int) -> ModelConfig:
    """The model, its defaults those of text or of `--toy`."""
    values = {"preset": args.preset, "dropout": args.dropout, "vocab_size": vocab_size}
    for name, value in (MODEL if args.toy is None else TOY_MODEL).items():
        values[name] = value if getattr(args, name) is None else getattr(args, name)
    values["n_heads"] = args.n_heads or max(1, values["d_model"] // D_HEAD)
    return _checked(ModelConfig, values)


def training(args: argparse.Namespace, model: ModelConfig, tokens: int, device: str) -> TrainConfig:
    """The optimisation: the quick sweep's, in bfloat16 on a GPU."""
    batch, seq_len = args.batch_tokens, model.seq_len
    if batch % seq_len:
        raise FlagError(
            f"--batch-tokens {batch} is not a multiple of --seq-len {seq_len}; "
            f"use {max(1, round(batch / seq_len)) * seq_len}"
        )
    if tokens < 2 * batch:
        raise FlagError(
            f"--tokens {tokens} are less than two steps of --batch-tokens {batch}; give more "
            "tokens or a smaller batch"
        )
    warmup = min(WARMUP_STEPS, tokens // batch // 4) * batch
    if args.lr is not None and not 0 < args.lr < math.inf:
        raise FlagError(f"--lr {args.lr} is no rate; give a number above 0")
    inverse = LearningRates.inverse_width(BASE_RATE, BASE_WIDTH, model.d_model)
    values: dict[str, Any] = {
        "lr": inverse if args.lr is None else LearningRates.constant(args.lr),
        "schedule": ScheduleConfig(warmup_tokens=warmup),
        "batch_tokens": batch,
        "beta2": 0.99,
        "seed": args.seed,
        "dtype": "bfloat16" if device == "cuda" else "float32",
        "eval_every_tokens": -(-tokens // (POINTS * batch)) * batch,
    }
    return _checked(TrainConfig, values)


def _checked(kind: type[C], values: dict[str, Any]) -> C:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = "-".join(str(part) for part in first["loc"]).replace("_", "-")
        rule = first["msg"].removeprefix("Value error, ")
        raise FlagError(f"--{key} {first['input']}: {rule}" if key else rule) from None


def parser(description: str | None) -> argparse.ArgumentParser:
    """All flags; those that have another default with `--toy` are None where they are not given."""
    made = argparse.ArgumentParser(prog="python -m minigpt.train", description=description)
    text = made.add_argument_group("text")
    told = "text files, folders or globs (default: the Python standard library's source)"
    text.add_argument("--text", nargs="+", metavar="PATH", help=told)
    text.add_argument("--column", help="the text's column in .jsonl and .parquet files")
    told = "bytes (default); bpe or wordpiece, trained on the text; or the path of a tokenizer.json"
    text.add_argument("--tokenizer", metavar="KIND", help=told)
    told = f"ids of bpe or wordpiece (default: {VOCABULARY:,}), of --toy ({TOY_VOCABULARY})"
    text.add_argument("--vocab-size", type=_whole(2), metavar="V", help=told)
    told = "share of the documents, or of blocks of a long one, held out (default: 0.12)"
    text.add_argument("--val-fraction", type=float, default=0.12, metavar="F", help=told)
    shape = made.add_argument_group("model")
    told = "gpt (default): RMSNorm, rotary positions; vaswani: as in the paper of 2017"
    shape.add_argument("--preset", choices=("gpt", "vaswani"), default="gpt", help=told)
    for name, value in MODEL.items():
        told = f"default: {value:,}, with --toy {TOY_MODEL[name]:,}"
        shape.add_argument(f"--{name.replace('_', '-')}", type=_whole(1), metavar="N", help=told)
    told = f"default: d_model / {D_HEAD}"
    shape.add_argument("--n-heads", type=_whole(1), metavar="N", help=told)
    shape.add_argument("--dropout", type=float, default=0.0, metavar="P", help="default: 0")
    how = made.add_argument_group("training")
    told = f"tokens to train on (default: {TOKENS:,}, with --toy {TOY_TOKENS:,})"
    how.add_argument("--tokens", type=_whole(1), metavar="D", help=told)
    told = f"tokens of one step (default: {BATCH_TOKENS:,})"
    how.add_argument("--batch-tokens", type=_whole(1), default=BATCH_TOKENS, metavar="N", help=told)
    told = (
        f"peak rate of all parameters (default: {BASE_RATE:g}, of hidden matrices "
        f"{BASE_RATE * BASE_WIDTH:g} / d_model)"
    )
    how.add_argument("--lr", type=float, metavar="RATE", help=told)
    told = "of weights, order, masks and what is drawn (default: 0)"
    how.add_argument("--seed", type=_whole(0), default=0, metavar="N", help=told)
    told = "default: auto, a GPU if there is one"
    how.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help=told)
    told = "the model's folder (default: models/stdlib, or models/ and the name of the text)"
    made.add_argument("--out", type=Path, metavar="FOLDER", help=told)
    told = "text that the sample at the end goes on from"
    made.add_argument("--prompt", metavar="TEXT", help=told)
    told = "random tokens in place of text: fresh ones cannot be learned, a fixed set can by heart"
    made.add_argument("--toy", choices=("fresh", "fixed"), help=told)
    return made


def _whole(least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        """2e6 is a whole number too."""
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (value.is_integer() and least <= value < 2**63):
            raise argparse.ArgumentTypeError(f"{text!r}: give a whole number of at least {least}")
        return int(value)

    return read
