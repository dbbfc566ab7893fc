"""What models of a sweep write after the same prompts, over size and training: samples.parquet."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.read import SAMPLE_COLUMNS, SAMPLES_SCHEMA, read_beside
from analysis.words import amount

COMMAND = "python -m experiments.samples"
MAX_TEXT = 600  # characters of a cell: the page stays small, the file has the rest
MAX_SIZES, MAX_HORIZONS = 10, 6
Size = tuple[int, int]  # N and vocabulary
Texts = dict[Size, dict[int, str]]  # of one prompt: size -> D -> text


@dataclass(frozen=True)
class Sample:
    """What one model goes on with; `cut` where the cell has not all of it."""

    D: str
    text: str
    cut: bool


@dataclass(frozen=True)
class Prompt:
    """One prompt with a row of samples per size, smallest first; None where there is none."""

    text: str
    rows: tuple[tuple[str, tuple[Sample | None, ...]], ...]


@dataclass(frozen=True)
class Samples:
    """All prompts; `how` the tokens were chosen, `left_out` what of the file is not shown."""

    prompts: tuple[Prompt, ...]
    how: str
    left_out: tuple[str, ...]


def read(folder: Path) -> tuple[pd.DataFrame, str] | None:
    """The folder's samples.parquet and how its text was chosen, None without the file.

    DataError for one that is damaged.
    """
    remedy = f"make it again with `{COMMAND} {folder}`"
    table = read_beside(folder / "samples.parquet", SAMPLES_SCHEMA, SAMPLE_COLUMNS, remedy)
    if table is None:
        return None
    return table.to_pandas(), (table.schema.metadata or {}).get(b"how", b"").decode()


def select(rows: pd.DataFrame, how: str, runs: pd.DataFrame) -> Samples:
    """A table of sizes by horizons for each prompt; `runs` are the rows of results.parquet.

    Of several seeds of a size the first speaks.
    """
    words = runs.get("vocab_size", pd.Series(0, index=runs.index))
    vocabulary = dict(zip(runs["run_id"], words, strict=True))
    texts: dict[str, Texts] = {}
    for row in rows.sort_values("seed", kind="stable").to_dict("records"):
        if row["run_id"] in vocabulary:
            size = (row["n_total"], vocabulary[row["run_id"]])
            own = texts.setdefault(row["prompt"], {}).setdefault(size, {})
            own.setdefault(row["tokens"], row["text"])
    sizes = sorted({size for found in texts.values() for size in found})
    shown = _spread(sizes, MAX_SIZES)
    most = max((len(own) for found in texts.values() for own in found.values()), default=0)
    left_out = []
    if len(shown) < len(sizes):
        left_out.append(f"{len(shown)} of {len(sizes)} sizes are shown")
    if most > MAX_HORIZONS:
        left_out.append(f"{MAX_HORIZONS} of {most} horizons are shown")
    if strange := rows.loc[~rows["run_id"].isin(runs["run_id"]), "run_id"].nunique():
        left_out.append(
            f"{strange} of {rows['run_id'].nunique()} runs in samples.parquet are not in "
            "results.parquet and are left out"
        )
    prompts = [Prompt(visible(text), _table(found, shown)) for text, found in texts.items()]
    return Samples(tuple(prompts), how, tuple(left_out))


def _table(
    found: Texts, sizes: Sequence[Size]
) -> tuple[tuple[str, tuple[Sample | None, ...]], ...]:
    """A row of cells per size; horizons stand below each other where all sizes share them."""
    horizons = sorted({D for own in found.values() for D in own})
    several = len({words for _, words in sizes}) > 1
    table = []
    for n, words in sizes:
        own = found.get((n, words), {})
        at = horizons if len(horizons) <= MAX_HORIZONS else _spread(sorted(own), MAX_HORIZONS)
        name = f"N = {amount(n)}" + (f", vocabulary {words:,}" if several else "")
        table.append((name, tuple(_sample(D, own[D]) if D in own else None for D in at)))
    return tuple(table)


def visible(text: str) -> str:
    """`text` without the characters that steer a terminal or a page: only tabs and line ends."""
    return "".join(
        "\ufffd" if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in text
    )


def _sample(D: float, text: str) -> Sample:
    text = visible(text)
    return Sample(f"D = {amount(D)}", text[:MAX_TEXT], len(text) > MAX_TEXT)


def _spread(values: Sequence, count: int) -> list:
    """The first, the last and evenly many between, `count` at most."""
    places = np.linspace(0, len(values) - 1, min(count, len(values))).round().astype(int)
    return [values[i] for i in places]
