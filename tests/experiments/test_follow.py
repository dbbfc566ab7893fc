"""Events of trunks in other processes, from what their folders say at each look."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from experiments import store
from experiments.follow import follow
from experiments.spec import Event, TrunkSpec

Expand = Callable[..., list[TrunkSpec]]


def test_progress_results_and_deaths_are_told_once(plan: Expand, tmp_path: Path) -> None:
    one, two, three = plan("grid.seeds=[0, 1, 2]", "grid.sizes=[{ d_model = 8 }]")
    trunks = [one, two, three]
    for trunk in trunks:
        store.write_spec(tmp_path, trunk)
    folders = [store.trunk_folder(tmp_path, trunk.trunk_id) for trunk in trunks]
    ids = [trunk.trunk_id for trunk in trunks]

    def result(k: int, i: int) -> None:
        run = trunks[k].runs[i]
        values = {"status": "ok", "reason": None, "val_loss": 2.0 - i}
        (folders[k] / f"{run.run_id}.json").write_text(json.dumps(values))

    def status(k: int, state: str, step: int, at: str, **more: object) -> None:
        values = {"run_id": trunks[k].runs[0].run_id, "step": step, "train_loss": 2.5, "time": at}
        store.write_status(folders[k], state, **{**values, **more})

    def polls() -> Iterator[set[str]]:
        result(2, 0)  # was there before: not news
        yield set(ids)
        status(0, "running", 10, "2026-01-01T00:00:00+00:00")
        yield set(ids)
        yield set(ids)  # nothing new
        status(0, "running", 30, "2026-01-01T00:00:04+00:00")
        result(0, 0)
        yield set(ids)
        result(0, 1)
        store.write_status(folders[0], "done")
        store.write_status(folders[1], "failed", reason="out of memory")
        yield {ids[2]}
        result(2, 1)
        yield set()

    result(2, 0)
    events = list(follow(trunks, tmp_path, polls()))
    told = [(e.kind, e.trunk_id, e.run_id, e.step) for e in events if e.kind != "overview"]
    runs = [[run.run_id for run in trunk.runs] for trunk in trunks]
    assert told == [
        ("progress", ids[0], runs[0][0], 10),
        ("finished", ids[0], runs[0][0], None),
        ("progress", ids[0], runs[0][0], 30),
        ("finished", ids[0], runs[0][1], None),
        ("failed", ids[1], None, None),
        ("finished", ids[2], runs[2][1], None),
    ]
    progress = [e for e in events if e.kind == "progress"]
    assert progress[0].tokens_per_second is None
    assert progress[1].tokens_per_second == 20 * 64 / 4
    (failed,) = (e for e in events if e.kind == "failed")
    assert failed.reason == "out of memory"
    overviews = [e.reason for e in events if e.kind == "overview"]
    assert overviews[0] == "0 trunks in training, 3 waiting"
    assert overviews[1] == "1 trunks in training, 2 waiting"
    assert isinstance(events[0], Event)
