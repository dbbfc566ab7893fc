"""The command that trains one model on text, for those who want a model and not a law.

`python -m minigpt.train` trains on the standard library's source, `--text PATH ...` on other text;
ctrl-C saves, and the same command goes on. `--toy` trains on random tokens, of which it is known
what can be learned. Exit codes: 0 all well, 1 diverged or not as it must be, 2 bad input, 130
interrupted.
"""

import argparse
import math
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import torch
from rich.console import Console

from minigpt import data, flags, generate, loop, recipe, sample, text, toy, weights
from minigpt.checkpoint import CheckpointError
from minigpt.config import DataConfig
from minigpt.counts import parameter_counts
from minigpt.data import CorpusInfo, DataError
from minigpt.decode import DecodeError
from minigpt.event import Result
from minigpt.flags import FlagError
from minigpt.lines import Share
from minigpt.process import hearing, settle
from minigpt.recipe import FolderError, Recipe
from minigpt.schedule import horizon
from minigpt.state import Job
from minigpt.tokenizer import BYTES, Tokenizer
from minigpt.watch import Watch

MODELS = Path("models")


def main(argv: Sequence[str] | None = None) -> int:
    """Train one model on text, or on random tokens, and show what it writes."""
    args = flags.parser(main.__doc__).parse_args(argv)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    settle(None)
    try:
        return (_on_text if args.toy is None else _on_random_tokens)(args, console)
    except DataError as error:
        print(f"error: {flags.as_flags(str(error))}", file=sys.stderr)
        return 2
    except (FlagError, FolderError, CheckpointError, DecodeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (torch.OutOfMemoryError, MemoryError):
        told = "out of memory; give a smaller --batch-tokens, --d-model or --n-layers"
        print(f"error: {told}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _on_text(args: argparse.Namespace, console: Console) -> int:
    """Train, go on, or say how it ended; then what the model writes."""
    device = _device(args.device)
    folder = MODELS / flags.name(args) if args.out is None else args.out
    recipe.check(folder)
    source, tokens = flags.of_text(args), args.tokens or flags.TOKENS
    model = flags.model(args, BYTES.vocab_size)  # its shape is checked before a text is read
    train = flags.training(args, model, tokens, device)
    inside = folder.resolve().is_relative_to(MODELS.resolve())
    written = MODELS if inside else folder  # models are no text
    corpus = data.prepare(source, folder / recipe.SHARDS, leave_out=written)
    tokenizer = corpus.tokenizer
    assert tokenizer is not None  # it is text
    model = model.model_copy(update={"vocab_size": tokenizer.vocab_size})
    wanted = Recipe(
        model=model,
        data=flags.held_out(source, corpus.info, model.seq_len),
        data_sha256=corpus.info.data_sha256,
        val_sha256=corpus.info.val_sha256,
        train=train,
        tokens=tokens,
    )
    python = _is_python(source, written)
    default = sample.default_prompt(corpus, tokenizer, model.seq_len, python)
    prompt = default if args.prompt is None else os.fsencode(args.prompt)
    sample.check(tokenizer, prompt, model.seq_len)
    recipe.enter(folder, wanted)
    job = Job(
        model=model, data=wanted.data, train=train, corpus=corpus, folder=folder, device=device
    )
    console.print(_described(corpus.info, tokenizer, job, tokens))
    result = recipe.ended(folder, wanted)
    if result is None:
        try:
            result = _trained(job, tokens, console)
        except KeyboardInterrupt:
            console.print(f"stopped; what was trained is in {folder}, and the same command goes on")
            raise
        recipe.end(folder, wanted, result)
    if result.status != "ok":
        told = f"error: {result.status}: {result.reason}; give a lower --lr, and another --out"
        print(told, file=sys.stderr)
        return 1
    console.print(_losses(result))
    _show(job, prompt, python, console)
    return 0


def _on_random_tokens(args: argparse.Namespace, console: Console) -> int:
    """Train on fresh or fixed random tokens; whether the losses are as they must be."""
    device, V = _device(args.device), args.vocab_size or flags.TOY_VOCABULARY
    model, tokens = flags.model(args, V), args.tokens or flags.TOY_TOKENS
    source, train = flags.of_toy(args, model.seq_len), flags.training(args, model, tokens, device)
    with tempfile.TemporaryDirectory() as folder:
        corpus = toy.corpus(
            args.toy,
            vocab_size=V,
            tokens=horizon(train.schedule, tokens, train.batch_tokens).stop * train.batch_tokens,
            seq_len=model.seq_len,
            held_out=source.eval_tokens,
        )
        job = Job(
            model=model,
            data=source,
            train=train,
            corpus=corpus,
            folder=Path(folder),
            device=device,
        )
        result = _trained(job, tokens, console)
    good, rule = toy.verdict(args.toy, result, V)
    if result.status == "ok":
        console.print(
            f"training loss {result.train_loss:.4f}, held out {result.val_loss:.4f} ± "
            f"{result.val_loss_se:.4f} nats per token; ln V = ln {V} = {math.log(V):.4f}"
        )
    console.print(f"{'as it must be' if good else 'NOT as it must be'}: {rule}")
    return 0 if good else 1


def _trained(job: Job, tokens: int, console: Console) -> Result:
    """Train to the end. A signal ends it between two steps, saved, with KeyboardInterrupt."""
    batch = job.train.batch_tokens
    at = horizon(job.train.schedule, tokens, batch)
    events = loop.train(job, at, job.folder / recipe.WEIGHTS)
    with hearing() as heard, Watch(at.stop, batch, console) as watch, closing(events):
        for event in events:
            watch.hear(event)
            if isinstance(event, Result):
                return event
            if heard:
                raise KeyboardInterrupt
    raise AssertionError("training ends with a result")


def _device(asked: str) -> str:
    found = torch.cuda.is_available()
    if asked == "cuda" and not found:
        raise FlagError(
            "--device cuda: torch sees no GPU; use --device cpu, or install a CUDA build of torch"
        )
    return "cuda" if found and asked != "cpu" else "cpu"


def _is_python(source: DataConfig, leave_out: Path) -> bool:
    return all(path.suffix == ".py" for path in text.files(source, leave_out)[0])


# What is said


def _described(info: CorpusInfo, tokenizer: Tokenizer, job: Job, tokens: int) -> str:
    model, batch = job.model, job.train.batch_tokens
    steps = horizon(job.train.schedule, tokens, batch).stop
    skipped = f"; {len(info.skipped)} files are no text" if info.skipped else ""
    return (
        f"text: {info.origin}: {info.train_tokens:,} tokens ({tokenizer.kind}) to train on, "
        f"{info.val_tokens:,} held out{skipped}\n"
        f"model: {model.preset}, d_model {model.d_model}, {model.n_layers} layers, "
        f"{model.n_heads} heads, context {model.seq_len}: {parameter_counts(model).total:,} "
        "parameters\n"
        f"training: {steps * batch:,} tokens ({steps * batch / info.train_tokens:.2g} times the "
        f"text) in {steps:,} steps on {job.device}; folder {job.folder}"
    )


def _losses(result: Result) -> str:
    se = "" if result.val_loss_se is None else f" ± {result.val_loss_se:.4f}"
    bits = "" if result.val_bpb is None else f", {result.val_bpb:.3f} bits per byte"
    return (
        f"held-out loss {result.val_loss:.4f}{se} nats per token{bits}, over "
        f"{result.eval_tokens:,} tokens; trained in {result.seconds / 60:.1f} min"
    )


def _show(job: Job, prompt: bytes, python: bool, console: Console) -> None:
    """Write a sample, the share of lines that are Python, and the command that writes more."""
    path, seed = job.folder / recipe.WEIGHTS, job.train.seed
    model, tokenizer = weights.load(path)
    assert tokenizer is not None  # it was trained on text
    model.to(job.device)
    written = sample.text(model, tokenizer, prompt, seed).decode(errors="replace")
    (job.folder / recipe.SAMPLE).write_text(written)
    console.print(f"--- a sample, at temperature {sample.TEMPERATURE:g}")
    console.print(generate.visible(written))
    console.print("---")
    if python and sample.has_lines(tokenizer):
        own, drawn, held_out = sample.python_lines(model, tokenizer, job.corpus, seed)
        console.print(
            f"lines that Python's tokenize accepts: {_share(own)} of the model's, "
            f"{_share(drawn)} of unigram lines as long, {_share(held_out)} of held-out text"
        )
    words = ["python", "-m", "minigpt.generate", "--checkpoint", str(path), "--prompt"]
    words += [os.fsdecode(prompt), "--temperature", f"{sample.TEMPERATURE:g}"]
    console.print("next: " + shlex.join(words))


def _share(share: Share | None) -> str:
    if share is None:
        return "none"
    se = "" if share.se is None else f" ± {share.se:.1%}"
    return f"{share.value:.1%}{se} ({share.lines})"


if __name__ == "__main__":
    raise SystemExit(main())
