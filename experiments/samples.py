"""What every model of a sweep writes after the same prompts: `python -m experiments.samples DIR`.

Of models that differ only in seed or recipe one speaks: of the main grid, by the first seed. The
prompts are the beginnings of held-out documents, which no model has seen, or the user's own. Exit
codes: 0 all well, 1 some runs have no weights (the rest is written), 2 bad input, 130 interrupted.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from experiments import schema, store
from experiments.progress import watched
from experiments.spec import RunSpec, TrunkSpec
from experiments.store import StoreError
from experiments.trained import finished, held_out_text
from minigpt import data, generate, weights
from minigpt.checkpoint import CheckpointError
from minigpt.decode import DecodeError, Sampling
from minigpt.model import MiniGPT
from minigpt.tokenizer import Tokenizer
from minigpt.vocabulary import UNKNOWN

TOKENS = 120
TEMPERATURE = 0.8
PROMPTS = 4
PROMPT_BYTES = 24
WORDS = re.compile(r".*\S(?=\s)", re.DOTALL)
NAMED = 5  # of the runs without weights

Found = tuple[TrunkSpec, RunSpec]


def main(argv: Sequence[str] | None = None) -> int:
    """Write samples.parquet into a sweep's folder; returns the exit code."""
    args = _parser().parse_args(argv)
    console = Console(highlight=False, markup=False)
    torch.set_num_threads(1)  # a token of a small model is too little work for several
    try:
        how = Sampling(temperature=args.temperature, seed=args.seed)
        runs = speaking(args.dir)
        prompts = [os.fsencode(prompt) for prompt in args.prompt] or held_out_prompts(
            args.dir, runs
        )
        return write(args.dir, runs, prompts, args.tokens, how, console)
    except (StoreError, data.DataError, DecodeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def speaking(sweep: Path) -> list[Found]:
    """One finished run per model and horizon, those of the shortest context first.

    Raises StoreError for a folder of no sweep, of ready-made tokens or without a finished run.
    """
    found: dict[object, Found] = {}
    runs = finished(sweep)
    for trunk, run in sorted(runs, key=lambda f: (f[0].arm != "main", f[0].train.seed)):
        if trunk.data.source == "tokens":
            raise StoreError(
                f"{sweep}: its models are trained on ready-made tokens (data.source = 'tokens'), "
                "and what text a token stands for is not known; samples need a sweep on text"
            )
        found.setdefault((trunk.model, run.tokens), (trunk, run))
    # A prompt that is too long for any model is too long for the first of them.
    return sorted(found.values(), key=lambda f: (f[0].model.seq_len, f[0].model.vocab_size))


def held_out_prompts(sweep: Path, runs: list[Found]) -> list[bytes]:
    """How the first held-out documents begin; raises DataError where the text is gone."""
    trunk, _ = runs[0]
    try:
        corpus = held_out_text(sweep, trunk)
    except data.DataError as error:
        raise data.DataError(f"{error}; or give prompts of your own with --prompt TEXT") from None
    assert corpus.tokenizer is not None
    at_most = min(PROMPT_BYTES, trunk.model.seq_len // 2)
    found = beginnings(corpus.val, corpus.tokenizer, at_most)
    if not found:
        raise data.DataError(
            f"{sweep}: its held-out text begins with blanks only; give prompts with --prompt TEXT"
        )
    return found


def beginnings(val: np.ndarray, tokenizer: Tokenizer, at_most: int) -> list[bytes]:
    """How the first documents of a held-out shard begin: PROMPTS different ones, whole words.

    `at_most` so many bytes each.
    """
    found: dict[bytes, None] = {}
    stops = np.flatnonzero(val == tokenizer.end_of_text)
    for start, stop in zip((0, *(stops + 1)), (*stops, len(val)), strict=True):
        raw = tokenizer.decode(val[start : min(stop, start + 2 * at_most)].tolist())
        # Blanks as unicode has them: bytes.strip leaves an ideographic space where it is.
        text = raw.decode(errors="ignore").lstrip().encode()
        whole = WORDS.match(text[: at_most + 1].decode(errors="ignore"))
        # Without a blank: as many whole characters as there is room for.
        head = whole[0] if whole else text[:at_most].decode(errors="ignore")
        # What a document had in the place of an unknown word, its WordPiece tokens do not tell.
        if head and UNKNOWN not in head:
            found[head.encode()] = None
        if len(found) == PROMPTS:
            break
    return list(found)


def write(
    sweep: Path,
    runs: Sequence[Found],
    prompts: Sequence[bytes],
    tokens: int,
    how: Sampling,
    console: Console,
) -> int:
    """Let the models go on from the prompts, write what they say; returns the exit code.

    Raises StoreError where no run has weights, DecodeError for a prompt that is empty or too long.
    """
    rows, failed = [], {}
    for trunk, run in watched(runs, "models", console):
        path = store.trunk_folder(sweep, trunk.trunk_id) / f"{run.run_id}.pt"
        try:
            model, tokenizer = weights.load(path)
        except CheckpointError as error:
            failed[run.run_id] = str(error)
            continue
        assert tokenizer is not None  # only models of ready-made tokens have none
        texts = continued(model, tokenizer, prompts, tokens, how)
        rows += [_row(trunk, run, *pair) for pair in zip(prompts, texts, strict=True)]
    if not rows:
        raise StoreError(
            f"{sweep}: none of the {len(runs)} finished runs has weights that can be read, as "
            f"{next(iter(failed.values()))}"
        )
    told = f"drawn at temperature {how.temperature:g}, seed {how.seed}"
    told = f"{told if how.temperature else 'greedy'}, at most {tokens} tokens"
    path = sweep / "samples.parquet"
    rows.sort(key=lambda row: (row["n_total"], row["tokens"]))
    store.write_parquet(path, rows, schema.SAMPLES, {"how": told})
    print(f"{path}: {len(prompts)} prompts, {len(runs) - len(failed)} models; {told}")
    for reason in list(failed.values())[:NAMED]:
        print(f"no sample: {reason}", file=sys.stderr)
    if failed:
        print(
            f"{len(failed)} of {len(runs)} runs have no weights; delete their <run_id>.json and "
            "run the sweep again to train them anew",
            file=sys.stderr,
        )
    print(f"next: python -m analysis.report {sweep}")
    return int(bool(failed))


def continued(
    model: MiniGPT, tokenizer: Tokenizer, prompts: Sequence[bytes], tokens: int, how: Sampling
) -> list[bytes]:
    """What the model says after each prompt, without the prompt."""
    generate.generated(model, tokenizer, prompts, tokens, how)  # names the prompt that cannot be
    texts = []
    for number, prompt in enumerate(prompts):
        # A seed each: with one seed the same draws would make much the same text of all prompts.
        own = replace(how, seed=how.seed + number)
        found = generate.generated(model, tokenizer, [prompt], tokens, own)
        texts.append(tokenizer.decode(token.id for token in found))
    return texts


def _row(trunk: TrunkSpec, run: RunSpec, prompt: bytes, text: bytes) -> dict:
    return {
        "run_id": run.run_id,
        "trunk_id": trunk.trunk_id,
        "n_total": trunk.n_total,
        "seed": trunk.train.seed,
        "tokens": run.tokens,
        "prompt": prompt.decode(errors="replace"),
        "text": text.decode(errors="replace"),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.samples",
        description="What every model of a sweep writes after the same prompts: samples.parquet.",
    )
    add = parser.add_argument
    add("dir", type=Path, metavar="DIR", help="a sweep's folder, such as runs/quick")
    told = f"text to go on from, several times (default: how {PROMPTS} held-out documents begin)"
    add("--prompt", action="append", default=[], metavar="TEXT", help=told)
    told = f"at most N new tokens, or until the context is full (default: {TOKENS})"
    add("--tokens", type=int, default=TOKENS, metavar="N", help=told)
    told = "0 takes the most probable token, 1 draws from the model's own distribution (default: "
    told += f"{TEMPERATURE})"
    add("--temperature", type=float, default=TEMPERATURE, metavar="T", help=told)
    add("--seed", type=int, default=0, metavar="S", help="of what is drawn (default: 0)")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
