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

from minigpt.beam import Beam, search
from minigpt.checkpoint import CheckpointError
from minigpt.decode import DecodeError, Sampling, Token, check, continuations
from minigpt.model import MiniGPT
from minigpt.tokenizer import Tokenizer, TokenizerError, from_file
from minigpt.weights import SUFFIX, ExportError, export, load


def main(argv: list[str] | None = None) -> int:
    """Write text with a trained model, or its weights for other programs."""
    args = _parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # not every terminal has every character
    try:
        return _run(args)
    except (DecodeError, ExportError, CheckpointError, TokenizerError) as error:
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
    model, stored = load(args.checkpoint)
    tokenizer = _tokenizer(args.checkpoint, model, stored, args.tokenizer)
    context = model.config.seq_len
    # Arguments are bytes to begin with, not all of them UTF-8.
    prompts = [os.fsencode(prompt) for prompt in args.prompt]
    tokens: Iterable[Token] = ()
    if tokenizer is not None:
        limit = context if args.tokens is None else args.tokens
        tokens = generated(model, tokenizer, prompts, limit, how)
    elif prompts:
        raise CheckpointError(
            f"{args.checkpoint}: was trained on ready-made tokens, and what text they stand for is "
            "not known; give --tokenizer FILE, the tokenizer.json that made them"
        )
    if args.export is not None:
        export(model, args.export)
    if tokenizer is not None and prompts:
        _show(prompts, tokens, tokenizer, context)
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


def _tokenizer(
    path: Path, model: MiniGPT, stored: Tokenizer | None, given: Path | None
) -> Tokenizer | None:
    """The checkpoint's tokenizer, which the one that the user gives must be.

    Where none is stored it must have the ids of the model.
    """
    if given is None:
        return stored
    found = from_file(given)
    if stored is not None and found.sha256 != stored.sha256:
        raise CheckpointError(
            f"{path}: holds a tokenizer of its own ({_told(stored)}), and --tokenizer {given} is "
            f"another ({_told(found)}); leave --tokenizer out"
        )
    if found.vocab_size != model.config.vocab_size and stored is None:
        raise CheckpointError(
            f"{path}: vocab_size = {model.config.vocab_size:,}, and --tokenizer {given} has "
            f"{found.vocab_size:,} ids: it is not the one that made its tokens; give that one"
        )
    return found


def _told(tokenizer: Tokenizer) -> str:
    digits = "" if tokenizer.sha256 is None else f" {tokenizer.sha256[:12]}"
    return f"{tokenizer.kind}{digits}, {tokenizer.vocab_size:,} ids"


def generated(
    model: MiniGPT,
    tokenizer: Tokenizer,
    prompts: Sequence[bytes],
    tokens: int,
    how: Sampling | Beam,
) -> Iterable[Token]:
    """The tokens that go on from the prompts, at most `tokens` each; `tokenizer.decode` reads them.

    Drawn ones come as they are drawn. With a beam one prompt is searched after the other, and the
    best continuation that was found comes as a whole. Raises DecodeError for a prompt that is
    empty, too long or not of the tokenizer's characters, before anything is generated.
    """
    texts = []
    for number, prompt in enumerate(prompts, 1):
        which = "the prompt" if len(prompts) == 1 else f"prompt {number} of {len(prompts)}"
        texts.append(encoded(tokenizer, prompt, which))
    end = tokenizer.end_of_text
    if isinstance(how, Sampling):
        return continuations(model, texts, tokens=tokens, end=end, sampling=how)
    check(model, texts, tokens)
    return _searched(model, texts, tokens, end, how)


def encoded(tokenizer: Tokenizer, prompt: bytes, which: str) -> list[int]:
    """The tokens of a prompt, `which` in messages.

    Raises DecodeError for one with characters that the tokenizer does not know.
    """
    try:
        unknown = tokenizer.unknown(prompt)
        if not unknown:
            return tokenizer.encode(prompt)
    except TokenizerError as error:
        raise DecodeError(f"{which}: {error}") from None
    told = ", ".join(map(repr, unknown[:8])) + (", ..." if len(unknown) > 8 else "")
    raise DecodeError(
        f"{which} has {told}, which the model's {tokenizer.kind} tokenizer does not know; leave "
        "that out, or train with a tokenizer that knows all text (bytes, bpe)"
    )


def _searched(
    model: MiniGPT, texts: Sequence[Sequence[int]], tokens: int, end: int, beam: Beam
) -> Generator[Token]:
    for prompt, text in enumerate(texts):
        best = search(model, text, tokens=tokens, end=end, beam=beam)[0]
        for token in best.tokens[:-1]:
            yield Token(prompt, token, None)
        yield Token(prompt, best.tokens[-1], best.stop)


def _show(
    prompts: Sequence[bytes], tokens: Iterable[Token], tokenizer: Tokenizer, context: int
) -> None:
    """Print each prompt and what goes on from it: one as it appears, several when all are whole."""
    alone, full = len(prompts) == 1, []
    decoders = [codecs.getincrementaldecoder("utf-8")("replace") for _ in prompts]
    texts = [
        visible(decoder.decode(prompt)) for decoder, prompt in zip(decoders, prompts, strict=True)
    ]
    if alone:
        print(texts[0], end="", flush=True)
    for token in tokens:
        raw, last = tokenizer.decode([token.id]), token.stop is not None
        text = visible(decoders[token.prompt].decode(raw, final=last))
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


def visible(text: str) -> str:
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
    told = "of a model that was trained on ready-made tokens: the tokenizer.json that made them"
    add("--tokenizer", type=Path, metavar="FILE", help=told)
    told = f"write the weights and their config to FILE{SUFFIX}"
    add("--export", type=Path, metavar=f"FILE{SUFFIX}", help=told)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
