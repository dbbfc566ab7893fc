"""A grid that is not trained yet: its rows, from a plan file or a table without losses."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.checks import MIN_STEPS
from analysis.columns import OWN, Columns, letters, row_ids, trunks
from analysis.flops import FlopsPerToken
from analysis.read import DataError, read_table
from analysis.rows import Rows, distinct
from analysis.shapes import Ladder, ladder

PLAN_SCHEMA = "plan/1"
NEEDED = ("run_id", "trunk_id", "n_total", "tokens", "flops_exact")


@dataclass(frozen=True)
class Planned:
    """Runs that will carry the fit (`rows`, no losses), those left out and why, and their cost.

    `cooldown`: share of a run's tokens that it does not share with its trunk; 1: runs of their own.
    `ladder`: the shapes of the sweep, or why there are none.
    """

    name: str
    rows: Rows
    left_out: dict[str, int]
    cooldown: float
    ladder: Ladder | str
    notes: tuple[str, ...] = ()

    @property
    def flops(self) -> FlopsPerToken:
        """FLOPs per token along the planned sizes."""
        rows = self.rows
        return FlopsPerToken.from_rows(rows.N, rows.D, rows.C, "flops_exact")

    def cost(self, rows: Rows) -> float:
        """FLOPs of rows, horizons of a trunk sharing all but their cooldown."""
        total = 0.0
        for trunk in np.unique(rows.trunk):
            mine = rows.trunk == trunk
            D = np.sort(rows.D[mine])
            before = (1 - self.cooldown) * np.concatenate([[0.0], D[:-1]])
            total += float((rows.C / rows.D)[mine].mean() * (D - before).sum())
        return total


def planned(path: Path, columns: Columns) -> Planned:
    """Read a plan (`experiments.sweep plan CONFIG --json FILE`) or a table; losses are not read.

    DataError for a file that is no plan, or has no run to fit.
    """
    if path.suffix == ".json":
        frame, name, notes = _plan(path), path.stem, ()
        arrays = {k: frame[OWN[k]].to_numpy(float) for k in "NDC"}
        trunk, own = frame["trunk_id"].astype(str), True
    else:
        frame, schema, _, file = read_table(path)
        if OWN["L"] not in frame and not columns.loss:
            frame = frame.assign(**{OWN["L"]: np.nan})  # nothing to read, nothing to miss
        found = letters(file, frame, columns, schema is not None)
        arrays, notes = found.arrays, found.notes
        trunk, _ = trunks(frame, found, columns)
        name, own = path.stem if path.is_file() else path.name, schema is not None
    ids, why = row_ids(frame), _left_out(frame, own)
    for letter in "NDC":
        bad = np.flatnonzero(~(np.isfinite(arrays[letter]) & (arrays[letter] > 0)))
        if len(bad):
            raise DataError(
                f"{path}: {letter} of {ids[bad[0]]} is {arrays[letter][bad[0]]}, not a positive "
                "number; correct it or plan the grid again"
            )
    keep = why.isna().to_numpy()
    if not keep.any():
        raise DataError(f"{path}: no run to fit among {len(frame)}; plan runs of the main recipe")
    codes = pd.factorize(trunk[keep])[0]
    N, D, C = (arrays[k][keep] for k in "NDC")
    rows = Rows(N, D, C, np.full(len(N), np.nan), trunk=codes)
    share, note = cooldown(frame[keep], codes)
    left_out = {str(k): int(v) for k, v in why.dropna().value_counts().items()}
    return Planned(name, rows, left_out, share, ladder(frame), (*notes, *note))


def cooldown(frame: pd.DataFrame, trunk: np.ndarray) -> tuple[float, tuple[str, ...]]:
    """Share of a run's tokens that is its own, and what that rests on where no column says."""
    if len(np.unique(trunk)) == len(trunk):
        return 1.0, ()
    if "cooldown_tokens" in frame and "branch" in frame:
        branch = frame["branch"].astype(str).str.lower().isin(["true", "1", "1.0"])
        share = (frame["cooldown_tokens"] / frame["tokens"])[branch].astype(float)
        return (float(share.median()), ()) if len(share) else (1.0, ())
    note = "no column says how runs share a trunk: its horizons are taken as checkpoints of one run"
    return 0.0, (note,)


def _plan(path: Path) -> pd.DataFrame:
    remedy = "write one with `python -m experiments.sweep plan CONFIG --json FILE`"
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; {remedy}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a plan ({error}); {remedy}") from error
    schema = plan.get("schema") if isinstance(plan, dict) else None
    if schema != PLAN_SCHEMA:
        raise DataError(f"{path}: schema is {schema!r}, a plan has {PLAN_SCHEMA!r}; {remedy}")
    frame = pd.DataFrame(plan.get("runs") or [])
    missing = [key for key in NEEDED if key not in frame]
    if missing:
        raise DataError(f"{path}: its runs lack {', '.join(missing)}; {remedy}")
    for key in NEEDED[2:]:
        frame[key] = pd.to_numeric(frame[key], errors="coerce")
    return frame


def _left_out(frame: pd.DataFrame, own: bool) -> pd.Series:
    """Why a run will not carry the fit: the first rule of `analysis.load` that it breaks."""
    why = pd.Series([None] * len(frame), index=frame.index, dtype=object)
    rules = {}
    if "holdout" in frame:
        rules["held out"] = frame["holdout"].astype(str).str.lower().isin(["true", "1", "1.0"])
    if own and "arm" in frame:
        rules["of another recipe"] = frame["arm"] != "main"
    if "status" in frame:
        rules["diverged or failed"] = frame["status"].isin(["diverged", "failed"])
    if "steps" in frame:
        steps = pd.to_numeric(frame["steps"], errors="coerce")
        rules[f"shorter than {MIN_STEPS} steps"] = steps < MIN_STEPS
    for reason, mask in rules.items():
        why[mask & why.isna()] = reason
    return why


def repeated(plan: Planned, seeds: int, sizes: int) -> Rows:
    """The grid with at least `seeds` trunks at each of its `sizes` cheapest sizes."""
    rows, extra = plan.rows, []
    size, label = rows.size, int(rows.trunk.max()) + 1
    for level in range(min(sizes, int(size.max()) + 1)):
        here = np.unique(rows.trunk[size == level])
        longest = max(here, key=lambda t: (rows.trunk == t).sum())
        for _ in range(seeds - len(here)):
            part = rows.take(rows.trunk == longest)
            extra.append(replace(part, trunk=np.full(len(part), label)))
            label += 1
    return joined(rows, extra)


def wider(plan: Planned, steps: tuple[int, ...]) -> Rows:
    """The grid with sizes beyond it: `steps` rungs above (positive) or below (negative).

    Rungs are those of the ladder, by its median ratio, as buildable shapes where it has any; tokens
    are those of the nearest size, or of its D/N where that is what the sizes share.
    """
    rows, extra = plan.rows, []
    size = rows.size
    N = np.array([np.median(rows.N[size == k]) for k in range(int(size.max()) + 1)])
    ratio = float(np.exp(np.median(np.diff(np.log(N))))) if len(N) > 1 else 2.0
    shares = len(distinct(rows.D / rows.N)) < len(distinct(rows.D))
    for label, step in enumerate(steps, int(rows.trunk.max()) + 1):
        edge = len(N) - 1 if step > 0 else 0
        part = rows.take(rows.trunk == rows.trunk[size == edge][0])
        n = N[edge] * ratio**step
        if isinstance(plan.ladder, Ladder):
            n = plan.ladder.N(plan.ladder.nearest(n))
        if min(abs(np.log(n / N))) < 0.01:
            continue
        D = part.D * (n / part.N if shares else 1.0)
        per_token = np.exp(plan.flops(np.array([np.log(n)]))[0])
        trunk = np.full(len(D), label)
        extra.append(Rows(np.full(len(D), float(n)), D, D * per_token, part.L, trunk))
    return joined(rows, extra)


def stretched(plan: Planned, factors: Sequence[float]) -> Rows:
    """The grid with every trunk also at `factors` times its longest horizon."""
    rows, extra = plan.rows, []
    order = np.lexsort((-rows.D, rows.trunk))
    last = order[np.unique(rows.trunk[order], return_index=True)[1]]
    part = rows.take(np.isin(np.arange(len(rows)), last))
    for i, factor in enumerate(factors, 1):
        alone = plan.cooldown == 1  # runs that share nothing are trunks of their own
        trunk = part.trunk + i * (int(rows.trunk.max()) + 1) * alone
        extra.append(Rows(part.N, factor * part.D, factor * part.C, part.L, trunk))
    return joined(rows, extra)


def joined(rows: Rows, extra: list[Rows]) -> Rows:
    """Rows with others behind them; trunk labels are kept."""
    every = [rows, *extra]
    return Rows(
        *(np.concatenate([getattr(r, k) for r in every]) for k in ("N", "D", "C", "L")),
        trunk=np.concatenate([r.trunk for r in every]),
    )
