"""Synthetic circuits.parquet and samples.parquet beside a synthetic sweep."""

from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd
from synthetic import write_parquet

from analysis.read import CIRCUIT_COLUMNS, CIRCUITS_SCHEMA, SAMPLES_SCHEMA

# metric -> score of a trained (True) or untrained (False) model of N parameters at D tokens.
Scores = Callable[[dict], dict[str, float]]


def models(runs: pd.DataFrame) -> Iterable[dict]:
    """Every run of a sweep, and the untrained model of every trunk, as rows without a score."""
    names = ["run_id", "trunk_id", "n_total", "seed", "tokens"]
    yield from runs[names].to_dict("records")
    for row in runs.drop_duplicates("trunk_id")[names].to_dict("records"):
        yield {**row, "run_id": None, "tokens": 0}


def circuits_frame(
    runs: pd.DataFrame, heads: Scores, whole: Scores = lambda model: {}, layers: int = 2
) -> pd.DataFrame:
    """Two heads a layer: the second of the last layer has the scores `heads`, others a tenth.

    Of structure a trained model has its best head's score, and what it is above both controls.
    """
    rows = []
    for model in models(runs):
        common = {**dict.fromkeys(CIRCUIT_COLUMNS), **model, "n_layers": layers}
        for metric, value in heads(model).items():
            rows += [
                {
                    **common,
                    "layer": layer,
                    "head": head,
                    "metric": metric,
                    "value": (own := value if (layer, head) == (layers - 1, 1) else value / 10),
                    "low": own - 0.02,
                    "high": own + 0.02,
                    "null_value": 0.014,
                    "baseline": 0.2 if metric.startswith("structure_") else None,
                }
                for layer in range(layers)
                for head in range(2)
            ]
        if model["run_id"] is not None:
            control = heads({**model, "run_id": None, "tokens": 0})
            for metric, value in heads(model).items():
                if metric.startswith("structure_"):
                    rows += [{**common, **row} for row in _verdict(metric, value, control[metric])]
        for metric, value in whole(model).items():
            ends = {"low": value - 0.1, "high": value + 0.1, "null_value": 0.0}
            rows.append({**common, "metric": metric, "value": value, **ends})
    integers = {"layer": "Int64", "head": "Int64"}
    floats = dict.fromkeys(("value", "low", "high", "null_value", "baseline"), "float64")
    return pd.DataFrame(rows, columns=[*CIRCUIT_COLUMNS]).astype(integers | floats)


def _verdict(metric: str, value: float, untrained: float) -> Iterable[dict]:
    short = metric.removeprefix("structure_")
    for name, own in (
        (metric, value),
        (f"over_offset_{short}", value - 0.2),
        (f"over_untrained_{short}", value - untrained),
    ):
        ends = {"low": own - 0.02, "high": own + 0.02, "null_value": 0.014}
        yield {"metric": name, "value": own, **ends, "baseline": 0.2 if name == metric else None}


def write_circuits(folder: Path, frame: pd.DataFrame) -> None:
    write_parquet(frame, folder / "circuits.parquet", CIRCUITS_SCHEMA)


def write_samples(folder: Path, frame: pd.DataFrame, how: str = "greedy") -> None:
    write_parquet(frame, folder / "samples.parquet", SAMPLES_SCHEMA, {"how": how})
