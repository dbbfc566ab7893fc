"""Tables of other people: a ladder of sizes and horizons under foreign names, as a file."""

import numpy as np
import pandas as pd

from analysis.load import Columns

MAPPED = Columns(n="n", d="d", loss="loss")


def grid(sizes=6, horizons=5, **changes):
    """A foreign table of a ladder of sizes and horizons; `changes`: column -> {row: value}."""
    n, d = np.meshgrid(1e6 * 2.0 ** np.arange(sizes), 2e7 * 2.0 ** np.arange(horizons))
    frame = pd.DataFrame({"n": n.T.ravel(), "d": d.T.ravel()})
    frame["loss"] = 1.7 + 400 / frame["n"] ** 0.34 + 410 / frame["d"] ** 0.28
    for column, cells in changes.items():
        values = frame[column].astype(object)
        for row, value in cells.items():
            values[row] = value
        frame[column] = values
    return frame


def csv(folder, frame):
    frame.to_csv(folder / "t.csv", index=False)
    return folder / "t.csv"


def excluded(study):
    return {e["row"]: e["reason"] for e in study.excluded}
