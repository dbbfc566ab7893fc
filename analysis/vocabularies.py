"""Models of several vocabularies side by side, in bits per byte: their losses do not compare."""

import pandas as pd

from analysis.rowtables import Table, best_bold
from analysis.words import amount, compute, number

NEEDED = ("vocab_size", "val_bpb", "n_non_embedding", "bytes", "status", "arm")
OWN_ARM = r"main|vocab=\d+"  # what differs from the main grid is the vocabulary alone


def table(runs: pd.DataFrame) -> Table | None:
    """Each shape of model with each vocabulary at its largest D, means over seeds, the fewest bits
    of a shape bold; None where `runs`, the rows of results.parquet, have one vocabulary."""
    if not {*NEEDED} <= {*runs}:
        return None
    runs = runs[(runs["status"] == "ok") & runs["arm"].str.fullmatch(OWN_ARM).fillna(False)]
    runs = runs[runs["val_bpb"].notna()]
    if runs["vocab_size"].nunique() < 2:
        return None
    shape = ["n_non_embedding", "vocab_size"]
    last = runs[runs["tokens"] == runs.groupby(shape)["tokens"].transform("max")]
    values = ["n_total", "tokens", "bytes", "flops_exact", "val_bpb", "val_loss"]
    means = last.groupby(shape)[values].mean().reset_index()
    body: list[tuple[str, ...]] = []
    for _, part in means.groupby("n_non_embedding"):
        bits = part["val_bpb"].tolist()
        shown = best_bold([number(b) for b in bits], bits)
        for row, cell in zip(part.to_dict("records"), shown, strict=True):
            counts = (amount(row[name]) for name in ("n_total", "tokens", "bytes"))
            body.append(
                (amount(row["n_non_embedding"]), f"{row['vocab_size']:,}", *counts,
                 compute(row["flops_exact"]), cell, number(row["val_loss"]))
            )  # fmt: skip
    head = ("N without embeddings", "vocabulary", "N", "D", "bytes read", "C (FLOPs)",
            "bits/byte", "nats/token")  # fmt: skip
    return Table(head, tuple(body))
