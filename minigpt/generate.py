"""The command that writes text with a trained model.

`python -m minigpt.generate --checkpoint F --prompt S` goes on from a prompt; `--export` writes the
weights for other programs.
"""

import argparse
import codecs
import io
import os
import sys
import unicodedata
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path

import safetensors.torch
from pydantic import ValidationError

from minigpt import checkpoint
from minigpt.beam import Beam, search
from minigpt.checkpoint import CheckpointError, DamagedError
from minigpt.config import ModelConfig
from minigpt.data import BYTE_VOCABULARY, END_OF_TEXT
from minigpt.decode import DecodeError, Sampling, Token, check, continuations
from minigpt.model import MiniGPT

SUFFIX = ".safetensors"


class ExportError(ValueError):
    """A place where no weights can be written."""


def main(argv: list[str] | None = None) -> int:
    """Write text with a trained model, or its weights for other programs."""
    args = _parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # not every terminal has every character
    try:
        return _run(args)
    except (DecodeError, ExportError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return 1
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _run(args: argparse.Namespace) -> int:
    if not args.prompt and args.export is None:
        raise DecodeError("there is nothing to do; give --prompt TEXT, or --export FILE")
    how = _how(args)
    model = load(args.checkpoint)
    context = model.config.seq_len
    # Arguments are bytes to begin with, not all of them UTF-8.
    prompts = [os.fsencode(prompt) for prompt in args.prompt]
    tokens = generated(model, prompts, context if args.tokens is None else args.tokens, how)
    if args.export is not None:
        export(model, args.export)
    if prompts:
        _show(prompts, tokens, context)
    return 0


def _how(args: argparse.Namespace) -> Sampling | Beam:
    """How tokens are chosen; raises DecodeError for what is no choice."""
    sampling = Sampling(
        temperature=args.temperature, top_k=args.top_k, top_p=args.top_p, seed=args.seed
    )
    if args.beam is None:
        if args.length_penalty is not None:
            raise DecodeError(
                f"length_penalty = {args.length_penalty} has no effect without a beam; give "
                "--beam WIDTH too, or leave it out"
            )
        return sampling
    if args.temperature > 0:
        raise DecodeError(
            f"beam = {args.beam} draws nothing, and temperature = {args.temperature} is for "
            "drawing; leave one of them out"
        )
    return Beam(width=args.beam, length_penalty=args.length_penalty or 0.0)


def load(path: Path) -> MiniGPT:
    """The model of a run's final weights, `runs/<sweep>/trunks/<trunk>/<run_id>.pt`.

    Raises CheckpointError for a file that holds none, or none whose tokens are bytes.
    """
    rule = "give the final weights of a run, runs/<sweep>/trunks/<trunk>/<run_id>.pt"
    if not path.is_file():
        raise CheckpointError(f"{path}: {'not a' if path.exists() else 'no such'} file; {rule}")
    try:
        values = checkpoint.load(path)
    except DamagedError as error:
        kind = type(error.__cause__).__name__
        raise CheckpointError(
            f"{path}: damaged, or no checkpoint of ours ({kind}); {rule}"
        ) from None
    if "config" not in values:
        raise CheckpointError(
            f"{path}: holds no config, as the states in which training goes on do (latest.pt, "
            f"trunk-*.pt); {rule}"
        )
    try:
        config = ModelConfig.model_validate_json(values["config"])
        model = MiniGPT(config)
        model.load_state_dict(values["model"])
    except (ValidationError, RuntimeError, KeyError, TypeError) as error:
        told = "; ".join(line.strip() for line in str(error).splitlines()[:3])
        raise CheckpointError(
            f"{path}: not a model of this version ({told}); use the version that wrote it"
        ) from None
    if config.vocab_size != BYTE_VOCABULARY:
        raise CheckpointError(
            f"{path}: vocab_size = {config.vocab_size}, and the tokens that can be written as text "
            f"are {BYTE_VOCABULARY}, the bytes and <|endoftext|>; give a model of such tokens"
        )
    return model.eval()


def export(model: MiniGPT, path: Path) -> None:
    """Write the weights as safetensors, with the ModelConfig as JSON in the metadata's `config`.

    The file appears whole or not at all, in the place of one that is there. Raises ExportError for
    a path that cannot be one.
    """
    if path.suffix != SUFFIX:
        raise ExportError(f"{path}: weights are exported as {SUFFIX}; give a name that ends in it")
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise ExportError(f"{path}: {what}; give a file in a folder that exists")
    metadata = {"format": "pt", "config": model.config.model_dump_json()}
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(safetensors.torch.save(model.state_dict(), metadata))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def generated(
    model: MiniGPT, prompts: Sequence[bytes], tokens: int, how: Sampling | Beam
) -> Iterable[Token]:
    """The tokens that go on from the prompts, at most `tokens` each.

    Drawn ones come as they are drawn. With a beam one prompt is searched after the other, and the
    best continuation that was found comes as a whole. Raises DecodeError for a prompt that is empty
    or too long, before anything is generated.
    """
    texts = [list(prompt) for prompt in prompts]
    if isinstance(how, Sampling):
        return continuations(model, texts, tokens=tokens, end=END_OF_TEXT, sampling=how)
    check(model, texts, tokens)
    return _searched(model, texts, tokens, how)


def _searched(
    model: MiniGPT, texts: Sequence[Sequence[int]], tokens: int, beam: Beam
) -> Generator[Token]:
    for prompt, text in enumerate(texts):
        best = search(model, text, tokens=tokens, end=END_OF_TEXT, beam=beam)[0]
        for token in best.tokens[:-1]:
            yield Token(prompt, token, None)
        yield Token(prompt, best.tokens[-1], best.stop)


def _show(prompts: Sequence[bytes], tokens: Iterable[Token], context: int) -> None:
    """Print each prompt and what goes on from it: one as it appears, several when all are whole."""
    alone, full = len(prompts) == 1, []
    decoders = [codecs.getincrementaldecoder("utf-8")("replace") for _ in prompts]
    texts = [
        _visible(decoder.decode(prompt)) for decoder, prompt in zip(decoders, prompts, strict=True)
    ]
    if alone:
        print(texts[0], end="", flush=True)
    for token in tokens:
        raw = b"" if token.id == END_OF_TEXT else bytes([token.id])
        text = _visible(decoders[token.prompt].decode(raw, final=token.stop is not None))
        texts[token.prompt] += text
        if alone:
            print(text, end="", flush=True)
        if token.stop == "context":
            full.append(token.prompt + 1)
    if alone:
        print()
    else:
        for number, text in enumerate(texts, 1):
            print(f"--- {number} of {len(texts)}\n{text}")
    if full:
        which = "" if alone else f" in {', '.join(map(str, full))}"
        sys.stdout.flush()
        print(f"stopped{which}: the model's context of {context} tokens is full", file=sys.stderr)


def _visible(text: str) -> str:
    """`text` with the characters replaced that would steer a terminal."""
    steers = (unicodedata.category(c) == "Cc" and c not in "\n\t" for c in text)
    return "".join("\ufffd" if s else c for s, c in zip(steers, text, strict=True))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m minigpt.generate", description=main.__doc__)
    add = parser.add_argument
    told = "a run's final weights, runs/<sweep>/trunks/<trunk>/<run_id>.pt"
    add("--checkpoint", type=Path, required=True, metavar="FILE", help=told)
    told = "text to go on from; several are generated as one batch"
    add("--prompt", action="append", default=[], metavar="TEXT", help=told)
    told = "at most N new tokens (default: until the end of the text, or of the model's context)"
    add("--tokens", type=int, metavar="N", help=told)
    told = "0 takes the most probable token (default), 1 draws from the model's distribution"
    add("--temperature", type=float, default=0.0, metavar="T", help=told)
    add("--top-k", type=int, metavar="K", help="draw among the K most probable tokens")
    told = "draw among the fewest most probable tokens that make up the share P"
    add("--top-p", type=float, metavar="P", help=told)
    add("--seed", type=int, default=0, help="of what is drawn, for each prompt (default: 0)")
    told = "search for the most probable text with WIDTH hypotheses"
    add("--beam", type=int, metavar="WIDTH", help=told)
    told = "how much the beam favours longer texts (default: 0; usual: 0.6)"
    add("--length-penalty", type=float, metavar="ALPHA", help=told)
    told = f"write the weights and their config to FILE{SUFFIX}"
    add("--export", type=Path, metavar=f"FILE{SUFFIX}", help=told)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
