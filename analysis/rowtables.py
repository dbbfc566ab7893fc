"""Tables with a line per run, held out, fitted or left out; and where the runs come from."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
from markupsafe import Markup

from analysis.result import Analysis
from analysis.words import amount, compute, number, span

MAX_RUNS = 1000  # a page with more rows no longer opens quickly; the files have them all
RUN_COLUMNS = (
    ("row", "run"), ("N", "N"), ("D", "D"), ("C", "C (FLOPs)"), ("seed", "seed"), ("arm", "arm"),
    ("steps", "steps"), ("L", "loss"), ("val_bpb", "bits/byte"), ("status", "status"),
    ("cpu_seconds", "CPU s"),
)  # fmt: skip
LIBRARIES = ("numpy", "scipy", "pandas", "matplotlib")


@dataclass(frozen=True)
class Table:
    """A table of text cells."""

    head: tuple[str, ...]
    body: tuple[tuple[str, ...], ...]


def signed(x: float, digits: int = 2) -> str:
    """A number with its sign."""
    return f"{x:+.{digits}f}".replace("-", "−") if np.isfinite(x) else "–"


def best_bold(cells: Sequence[str], errors: Sequence[float]) -> list[str]:
    """The cells, those that show the least error in bold."""
    finite = [i for i, e in enumerate(errors) if np.isfinite(e)]
    least = cells[min(finite, key=lambda i: errors[i])] if finite else None
    return [Markup("<b>{}</b>").format(c) if c == least else c for c in cells]


def holdout(analysis: Analysis) -> Table | None:
    """Held-out rows: measured, predicted with its interval, and errors beside the baselines'."""
    held = analysis.holdout
    if held is None:
        return None
    names = [analysis.selected, *held.baselines]
    ids = analysis.study.used["row"][analysis.study.holdout].tolist()
    body = []
    for i, (measured, ends) in enumerate(zip(held.rows.L, analysis.holdout_intervals, strict=True)):
        predicted = [float(held.predictions[k][i]) for k in names]
        errors = (signed(100 * (p / measured - 1)) for p in predicted)
        body.append(
            (ids[i], amount(held.rows.N[i]), amount(held.rows.D[i]), number(measured),
             number(predicted[0]), span(ends), *errors)
        )  # fmt: skip
    errors = [held.error(k) for k in names]
    mean = best_bold([f"{100 * e:.2f}" for e in errors], errors)
    body.append(("mean |error|, %", "", "", "", "", "", *mean))
    told = {"largest": "largest size, %", "log-linear": "log-linear, %"}
    heads = ("error, %", *(told[k] for k in names[1:]))
    return Table(("run", "N", "D", "measured", "predicted", "interval, noise", *heads), tuple(body))


def leverage(analysis: Analysis) -> Table | None:
    """Fitted rows by how far log L* at ten times the compute moves without them, farthest first."""
    found, train = analysis.leverage, analysis.study.train
    if found is None:
        return None
    ids = analysis.study.used["row"][~analysis.study.holdout].tolist()
    order = np.argsort(-np.nan_to_num(np.abs(found.shift)), kind="stable")[:MAX_RUNS]
    return Table(
        ("run", "N", "D", "loss", "leverage (hat)", "shift (SE)"),
        tuple(
            (ids[i], amount(train.N[i]), amount(train.D[i]), number(train.L[i]),
             f"{found.hat[i]:.3f}", signed(found.shift[i]))
            for i in map(int, order)
        ),
    )  # fmt: skip


def runs(analysis: Analysis) -> Table:
    """Every row of the source, used or not."""
    study = analysis.study
    why = {e["row"]: e["reason"] for e in study.excluded}
    columns = [(c, h) for c, h in RUN_COLUMNS if c in study.table]
    body = []
    for row in study.table.head(MAX_RUNS).to_dict("records"):
        cells = [_cell(c, row[c]) for c, _ in columns]
        use = "held out" if row.get("holdout") is True else "fitted"
        body.append((*cells, why.get(row["row"], use)))
    return Table((*(h for _, h in columns), "use"), tuple(body))


def _cell(column: str, value: object) -> str:
    if column in ("N", "D", "C") and isinstance(value, float):
        return compute(value) if column == "C" else amount(value)
    if column in ("L", "val_bpb", "cpu_seconds") and isinstance(value, float):
        return number(value)
    if isinstance(value, float):
        return f"{value:g}" if value == value else "–"
    return "–" if value is None else str(value)


def excluded(analysis: Analysis) -> Table:
    """Rows left out, and why."""
    found = analysis.study.excluded[:MAX_RUNS]
    return Table(("row", "reason"), tuple((e["row"], e["reason"]) for e in found))


def flagged(analysis: Analysis) -> Table:
    """Rows that are used with a doubt."""
    found = analysis.study.flagged[:MAX_RUNS]
    return Table(("row", "flag", "why"), tuple((f["row"], f["flag"], f["reason"]) for f in found))


def provenance(analysis: Analysis) -> Table:
    """Source, units, notes, versions."""
    study = analysis.study
    pairs = [("source", study.source), *study.units.items(), *study.provenance.items()]
    pairs += [("FLOPs per token", analysis.flops.label), *(("note", n) for n in study.notes)]
    pairs += [("python", platform.python_version())]
    pairs += [(name, version(name)) for name in LIBRARIES]
    return Table(("what", "value"), tuple((str(k), str(v)) for k, v in pairs))
