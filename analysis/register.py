"""Predictions written down before the run exists, and scored when it does.

A prediction file carries a hash of its own content and of the rows it was made from, so that
nobody can change it later without notice. Scores are appended to calibration.jsonl beside it.
"""

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from analysis.fitsjson import finite, write_json
from analysis.load import Study
from analysis.read import DataError
from analysis.rows import SAME

SCHEMA = "prediction/1"
LOG = "calibration.jsonl"


def digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of the content as canonical JSON, without its own hash."""
    plain = {k: v for k, v in content.items() if k != "sha256"}
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def rows_digest(study: Study) -> str:
    """SHA-256 of N, D, C, L and trunk of every row that a law was fitted to."""
    rows = study.train
    parts = (rows.N, rows.D, rows.C, rows.L, rows.trunk.astype(float))
    return hashlib.sha256(np.stack(parts).astype("<f8").tobytes()).hexdigest()


def measured(study: Study, N: float, D: float) -> np.ndarray:
    """Losses of the source's runs at N, D (both within 1 %), held out or not."""
    rows = study.rows
    near = (np.abs(np.log(rows.N / N)) <= SAME) & (np.abs(np.log(rows.D / D)) <= SAME)
    return rows.L[near]


def register(file: Path, prediction: dict[str, Any], study: Study) -> str:
    """Write the prediction with its hash; DataError where the run or the file exists already."""
    N, D = prediction["params"], prediction["tokens"]
    if file.exists():
        raise DataError(
            f"{file}: exists already, and a registered prediction is never overwritten; "
            "name another file"
        )
    if len(measured(study, N, D)):
        raise DataError(
            f"{study.source}: has a run at N = {N:.6g}, D = {D:.6g} already: a prediction after "
            "the fact proves nothing; predict a run that does not exist yet"
        )
    content = {
        "schema": SCHEMA,
        **prediction,
        "source": study.source,
        "fitted_rows": len(study.train),
        "fitted_rows_sha256": rows_digest(study),
        "registered": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    content = finite(content)
    content["sha256"] = digest(content)
    write_json(file, content)
    return content["sha256"]


def read_prediction(file: Path) -> dict[str, Any]:
    """A registered prediction; DataError where it is none or was changed since."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"{file}: cannot be read ({error.strerror}); write one with --register {file}"
        ) from error
    except ValueError as error:
        raise DataError(f"{file}: not JSON ({error}); write one with --register FILE") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise DataError(f"{file}: not a registered prediction; write one with --register FILE")
    if content.get("sha256") != digest(content):
        raise DataError(
            f"{file}: its content does not match its hash {content.get('sha256')}: it was changed "
            "after it was registered and proves nothing; register a new prediction"
        )
    return content


def score(file: Path, study: Study) -> dict[str, Any]:
    """Compare with the run that now exists and append to the calibration log beside the file."""
    content = read_prediction(file)
    N, D = content["params"], content["tokens"]
    found = measured(study, N, D)
    if not len(found):
        rows = study.rows
        gap = np.hypot(np.log(rows.N / N), np.log(rows.D / D))
        i = int(np.argmin(gap))
        raise DataError(
            f"{study.source}: has no run at N = {N:.6g}, D = {D:.6g} (within 1 %); the nearest has "
            f"N = {rows.N[i]:.6g}, D = {rows.D[i]:.6g}; train it and score again"
        )
    loss = float(np.exp(np.log(found).mean()))
    entry: dict[str, Any] = {
        "sha256": content["sha256"],
        "params": N,
        "tokens": D,
        "measured": loss,
        "runs": len(found),
        "predicted": content["loss"],
        "error": content["loss"] / loss - 1,
        "level": content["level"],
    }
    for name in ("loss_interval_noise", "loss_interval_misfit"):
        low, high = content[name]
        inside = None if low is None or high is None else low <= loss <= high
        entry[name.replace("loss_interval", "inside")] = inside
    log = file.with_name(LOG)
    if not any(e["sha256"] == entry["sha256"] and e["measured"] == loss for e in read_log(log)):
        entry["scored"] = datetime.now(UTC).isoformat(timespec="seconds")
        with log.open("a", encoding="utf-8") as out:
            out.write(json.dumps(entry, ensure_ascii=False) + "\n")
    return entry


def read_log(log: Path) -> list[dict[str, Any]]:
    """The scores so far; DataError for a line that is none."""
    if not log.exists():
        return []
    entries = []
    for i, line in enumerate(log.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            entry = json.loads(line)
            entry["sha256"], entry["measured"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{log}, line {i}: not a score ({error}); remove the line") from error
        entries.append(entry)
    return entries
