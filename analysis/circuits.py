"""What the heads of a sweep's models do, over their size and training: circuits.parquet.

Scores are of one head, or of the whole model (head is null); rows without a run are the untrained
models that the trained ones are compared with.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis.interval import Interval
from analysis.read import CIRCUIT_COLUMNS, CIRCUITS_SCHEMA, read_beside

COMMAND = "python -m experiments.circuits"
INDUCTION = 0.3  # score above which a head is an induction head
DROP = "repeat_loss_drop"
ABLATIONS = {
    "ablated": "induction heads",
    "control": "as many others",
    "previous": "previous-token heads",
}
RELATIONS = {
    "structure_bracket": "matching bracket",
    "structure_previous_use": "identifier's previous use",
    "structure_binding": "identifier's binding",
    "structure_definition": "enclosing def or class",
    "structure_statement": "start of the statement",
    "structure_parent": "parent node",
    "structure_paragraph": "start of the paragraph",
    "structure_heading": "heading",
}


@dataclass(frozen=True)
class Circuits:
    """Rows of circuits.parquet by models of the main recipe: trained, and the untrained controls.

    `notes` name what is left out and why.
    """

    trained: pd.DataFrame
    untrained: pd.DataFrame
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Onset:
    """Where induction emerges in models of N parameters: D of the first head above the threshold.

    `D` is (last horizon below, first horizon above], the union over the seeds: an end is open where
    a seed is above at its first horizon, or below at its last one. `best` and `heads` (how many are
    above) are of the largest D, means over the seeds.
    """

    N: float
    layers: int
    seeds: int
    emerged: int
    D: Interval
    last: float
    best: float
    heads: float


@dataclass(frozen=True)
class Ablation:
    """Repeat-loss drop at the largest D of one size, means over seeds: `whole`, and what is `left`
    of it without heads of a kind.

    `share` that these heads take away: None where the drop itself is not above 0 by its interval.
    """

    N: float
    D: float
    whole: float
    left: dict[str, float | None]
    share: dict[str, float | None]


@dataclass(frozen=True)
class Relation:
    """A relation of source text in the largest model: its best head, and what the model knows.

    `share` of the positions, with its interval, is of heads that were chosen on other documents;
    so are the best fixed offset (`baseline`) and the `untrained` model's. `emerges` is whether it
    is above both beyond the intervals of the differences; None where these are not known.
    """

    name: str
    head: str
    share: float
    interval: Interval
    baseline: float | None
    untrained: float | None
    emerges: bool | None


def read(folder: Path) -> pd.DataFrame | None:
    """Rows of the folder's circuits.parquet, None without it; DataError for one that is damaged."""
    remedy = f"make it again with `{COMMAND} {folder}`"
    table = read_beside(folder / "circuits.parquet", CIRCUITS_SCHEMA, CIRCUIT_COLUMNS, remedy)
    return None if table is None else table.to_pandas()


def select(rows: pd.DataFrame, runs: pd.DataFrame) -> Circuits:
    """The rows of finished runs of the main recipe; `runs` are the rows of results.parquet."""
    of_run = rows["run_id"].notna()
    known = rows["run_id"].isin(runs["run_id"])
    kept = runs[(runs["status"] == "ok") & (runs["arm"] == "main")]
    trained = rows[of_run & rows["run_id"].isin(kept["run_id"]) & rows["value"].notna()]
    sizes = trained["n_total"].unique()
    untrained = rows[~of_run & rows["n_total"].isin(sizes) & rows["value"].notna()]
    notes = []
    if strange := rows.loc[of_run & ~known, "run_id"].nunique():
        notes.append(
            f"{strange} of the {rows['run_id'].nunique()} runs in circuits.parquet are not in "
            "results.parquet and are left out"
        )
    return Circuits(trained, untrained, tuple(notes))


def best(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The score of each model as a row: the whole model's, or else the highest of its heads."""
    part = rows[rows["metric"] == metric]
    whole = part[part["head"].isna()]
    part = part if whole.empty else whole
    highest = part.groupby(["n_total", "seed", "tokens"])["value"].idxmax()
    return part.loc[highest].sort_values(["n_total", "seed", "tokens"])


def induction_heads(rows: pd.DataFrame) -> pd.DataFrame:
    """How many heads of each model are induction heads, as `value`."""
    part = rows[rows["metric"] == "induction"]
    count = (part["value"] > INDUCTION).groupby([part["n_total"], part["seed"], part["tokens"]])
    return count.sum().rename("value").reset_index()


def over_seeds(models: pd.DataFrame) -> pd.DataFrame:
    """Mean, least and greatest `value` over the seeds, by n_total and tokens."""
    grouped = models.groupby(["n_total", "tokens"])["value"]
    return grouped.agg(["mean", "min", "max"]).reset_index()


def onsets(found: Circuits) -> list[Onset]:
    """One per size, smallest first; none without induction scores."""
    scores, counts = best(found.trained, "induction"), induction_heads(found.trained)
    return [
        _onset(N, scores[scores["n_total"] == N], counts[counts["n_total"] == N])
        for N in sorted(scores["n_total"].unique())
    ]


def _onset(N: float, scores: pd.DataFrame, counts: pd.DataFrame) -> Onset:
    lows: list[float | None] = []
    highs: list[float | None] = []
    for _, model in scores.sort_values("tokens").groupby("seed"):
        D, above = model["tokens"].to_numpy(float), model["value"].to_numpy() > INDUCTION
        first = int(above.argmax()) if above.any() else len(D)
        lows.append(float(D[first - 1]) if first else None)
        highs.append(float(D[first]) if first < len(D) else None)
    low, high = [d for d in lows if d is not None], [d for d in highs if d is not None]
    ends = Interval(
        min(low) if len(low) == len(lows) else None, max(high) if len(high) == len(highs) else None
    )
    last = scores["tokens"].max()
    return Onset(
        N=float(N),
        layers=int(scores["n_layers"].iloc[0]),
        seeds=len(lows),
        emerged=len(high),
        D=ends,
        last=float(last),
        best=float(scores.loc[scores["tokens"] == last, "value"].mean()),
        heads=float(counts.loc[counts["tokens"] == last, "value"].mean()),
    )


def ablations(found: Circuits) -> list[Ablation]:
    """One per size whose induction heads were ablated, smallest first."""
    names = {f"{DROP}_{kind}": kind for kind in ABLATIONS}
    drops = found.trained[found.trained["metric"].isin([DROP, *names])]
    models = drops.pivot_table(
        index=["n_total", "tokens", "run_id"], columns="metric", values="value"
    )
    models = models.rename(columns=names).reindex(columns=[DROP, *ABLATIONS])
    models = models.dropna(subset=[DROP, "ablated"]).reset_index()
    models = models[models["tokens"] == models.groupby("n_total")["tokens"].transform("max")]
    return [_ablation(drops, models[models["n_total"] == N]) for N in models["n_total"].unique()]


def _ablation(drops: pd.DataFrame, models: pd.DataFrame) -> Ablation:
    whole = float(models[DROP].mean())
    # A kind of head that only some of the seeds have is compared with nothing.
    left = {kind: _known(models[kind].mean(skipna=False)) for kind in ABLATIONS}
    own = drops[drops["run_id"].isin(models["run_id"]) & (drops["metric"] == DROP)]
    share: dict[str, float | None] = dict.fromkeys(left)
    if (own["low"] > 0).all():
        share = {kind: None if v is None else 1 - v / whole for kind, v in left.items()}
    N, D = float(models["n_total"].iloc[0]), float(models["tokens"].iloc[0])
    return Ablation(N, D, whole, left, share)


def relations(found: Circuits) -> tuple[float, float, list[Relation]]:
    """N and D of the largest model (its first seed, its largest D), and each relation in it."""
    rows = found.trained[found.trained["metric"].str.startswith("structure_")]
    if rows.empty:
        return 0.0, 0.0, []
    rows = rows[rows["n_total"] == rows["n_total"].max()]
    rows = rows[rows["seed"] == rows["seed"].min()]
    rows = rows[rows["tokens"] == rows["tokens"].max()]
    model = found.trained[found.trained["run_id"] == rows["run_id"].iloc[0]]
    names = list(dict.fromkeys([*RELATIONS, *sorted(rows["metric"].unique())]))
    return (
        float(rows["n_total"].iloc[0]),
        float(rows["tokens"].iloc[0]),
        [_relation(name, model) for name in names if name in set(rows["metric"])],
    )


def _relation(metric: str, model: pd.DataFrame) -> Relation:
    own = model["metric"] == metric
    head = model[own & model["head"].notna()].sort_values("value").iloc[-1].to_dict()
    row = best(model, metric).iloc[-1].to_dict()
    short = metric.removeprefix("structure_")
    over = {
        control: model[model["metric"] == f"over_{control}_{short}"].to_dict("records")
        for control in ("offset", "untrained")
    }
    lows = [_known(each[0]["low"]) if each else None for each in over.values()]
    value = float(row["value"])
    return Relation(
        name=RELATIONS.get(metric, short),
        head=f"{int(head['layer'])}.{int(head['head'])}",  # from 0, as the literature has it
        share=value,
        interval=Interval(_known(row["low"]), _known(row["high"])),
        baseline=_known(row["baseline"]),
        untrained=value - float(over["untrained"][0]["value"]) if over["untrained"] else None,
        emerges=None if None in lows else all(low > 0 for low in lows if low is not None),
    )


def _known(value: float) -> float | None:
    return None if pd.isna(value) else float(value)
