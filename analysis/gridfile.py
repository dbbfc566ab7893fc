"""A sweep's config with further runs, as the TOML that `experiments.sweep run` takes.

A started sweep may only grow its grid, so the file repeats the config of the sweep's folder and
adds [[grid.runs]].
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analysis.nextruns import Advice
from analysis.offers import SAME, Size
from analysis.read import DataError
from analysis.shapes import Ladder

BARE = re.compile(r"^[A-Za-z0-9_-]+$")


def extended(config: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], title: str) -> str:
    """The TOML of `config` (as in sweep.json) with `runs` behind its own; `title` as a comment."""
    grid = dict(config["grid"])
    own = [_flat(run) for run in grid.pop("runs", ())]
    grid["sizes"] = [_flat(size) for size in grid.get("sizes", ())]
    lines = [*(f"# {line}" for line in title.splitlines())]
    tables = {"grid": grid, **{k: v for k, v in config.items() if k != "grid"}}
    lines += [f"{k} = {_value(v)}" for k, v in config.items() if not isinstance(v, dict)]
    for name in (k for k in config if isinstance(config[k], dict)):
        lines += ["", f"[{name}]"]
        lines += [f"{k} = {_value(v)}" for k, v in tables[name].items() if v not in (None, [])]
        if name == "grid":
            for run in [*own, *runs]:
                pairs = [f"{k} = {_value(v)}" for k, v in run.items() if v is not None]
                lines += ["", "[[grid.runs]]", *pairs]
    return "\n".join(lines) + "\n"


def _flat(cells: Mapping[str, Any]) -> dict[str, Any]:
    """A size or run of the config as the file writes it: model keys beside the others."""
    rest = {k: v for k, v in cells.items() if k != "model" and v is not None}
    return {**cells.get("model", {}), **rest}


def _value(value: Any) -> str:
    """A TOML value; a table is inline."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)  # a JSON string is a TOML basic string
    if isinstance(value, Mapping):
        inside = ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items() if v is not None)
        return f"{{ {inside} }}"
    if isinstance(value, list | tuple):
        if value and all(isinstance(v, Mapping) for v in value):
            return "[\n" + "".join(f"  {_value(v)},\n" for v in value) + "]"
        return f"[{', '.join(_value(v) for v in value)}]"
    return repr(value)


def _key(key: str) -> str:
    return key if BARE.match(key) else json.dumps(key)


def grid_runs(advice: Advice, config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The choice as entries of [[grid.runs]]: model keys, tokens, seed, lr_multiplier."""
    state, frame = advice.state, advice.study.table
    seeds = config["grid"].get("seeds") or [0]
    label: dict[int, tuple[int, dict[str, Any]]] = {}
    for i, trunk in enumerate(advice.existing):
        row = frame[frame["trunk"].astype(str) == trunk].iloc[0]
        label[i] = int(row["seed"]), _keys(config, advice, advice.sizes[state.trunks[i].kind])
    used: dict[int, set[int]] = {}
    multipliers = set(frame.loc[frame["row"].isin(advice.study.used["row"]), "lr_multiplier"])
    rate = multipliers.pop() if len(multipliers) == 1 else 1.0
    runs = []
    for one in state.bought:
        size = advice.sizes[one.kind]
        if one.new:
            near = np.abs(np.log(frame["N"].to_numpy(float) / size.N)) < SAME
            taken = used.setdefault(one.kind, set(frame["seed"][near].dropna().astype(int)))
            seed = next(s for s in range(min(seeds), 10**6) if s not in taken)
            taken.add(seed)
            label[one.trunk] = seed, _keys(config, advice, size)
        seed, keys = label[one.trunk]
        extra = {} if rate == 1.0 else {"lr_multiplier": float(rate)}
        for cell in one.cells:
            runs.append({**keys, "tokens": int(state.market.D[cell]), "seed": seed, **extra})
    return runs


def _keys(config: Mapping[str, Any], advice: Advice, size: Size) -> dict[str, Any]:
    """Model keys of a size in the sweep's own words: those of its sizes, moved to the width."""
    grid = config["grid"]
    entries = [dict(e["model"]) for e in (*grid.get("sizes", ()), *grid.get("runs", ()))]
    if not isinstance(advice.ladder, Ladder) or size.d_model is None:
        frame = advice.study.table
        rows = frame[np.abs(np.log(frame["N"].astype(float) / size.N)) < SAME]
        match = [e for e in entries if all(rows[k].iloc[0] == v for k, v in e.items() if k in rows)]
        if not match:
            raise DataError(f"N = {size.N:.0f}: no size of the sweep's config has this shape")
        return match[0]
    shape = advice.ladder.shape(size.d_model)
    for entry in entries:
        if all(shape.get(k, v) == v for k, v in entry.items()):
            return entry
    width = size.d_model
    nearest = min(entries, key=lambda e: abs(np.log(e.get("d_model", 1) / width)))
    return {k: shape.get(k, v) for k, v in nearest.items()} | {"d_model": width}
