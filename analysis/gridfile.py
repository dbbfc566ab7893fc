"""A sweep's config with further runs, as the TOML that `experiments.sweep run` takes.

A started sweep may only grow its grid, so the file repeats the config of the sweep's folder and
adds [[grid.runs]].
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

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
