"""What is on disk is whole: half-written lines and files are never read as results."""

import json
from pathlib import Path

import pyarrow.parquet as pq

from experiments import schema, store


def test_a_half_written_line_is_not_read_and_repeats_count_once(tmp_path: Path) -> None:
    first = {"run_id": None, "step": 10, "val_loss": 2.0}
    again = {"run_id": None, "step": 10, "val_loss": 2.0}
    branch = {"run_id": "a", "step": 10, "val_loss": 1.9}
    lines = "\n".join(json.dumps(v) for v in (first, branch, again))
    (tmp_path / "evals.jsonl").write_text(lines + '\n{"run_id": null, "st')
    assert store.read_evals(tmp_path) == [again, branch]


def test_locks_exclude_and_end_with_their_holder(tmp_path: Path) -> None:
    with store.locked(tmp_path) as first, store.locked(tmp_path) as second:
        assert first
        assert not second
    with store.locked(tmp_path) as third:
        assert third


def test_every_column_has_unit_and_doc() -> None:
    for kind in (schema.RESULTS, schema.CURVES, schema.SAMPLES, schema.CIRCUITS):
        for field in kind:
            assert field.metadata is not None
            assert field.metadata[b"doc"], field.name
            assert b"unit" in field.metadata, field.name


def test_files_carry_their_schema(sweep, micro: Path) -> None:
    sweep("run", micro, "grid.tokens=[6400]")
    folder = micro.parent / "runs" / "micro"
    for name, kind in (("results", schema.RESULTS), ("curves", schema.CURVES)):
        stored = pq.read_schema(folder / f"{name}.parquet")
        assert stored.equals(kind, check_metadata=True)
