"""What a person sees of a sweep's progress adds up, in whatever order its runs are trained."""

import io
import itertools
import re
from collections.abc import Callable

import pytest
from rich.console import Console

from experiments import progress
from experiments.spec import Event, RunSpec, TrunkSpec

OK = {"status": "ok", "val_loss": 2.0, "val_bpb": 1.0}


def told(
    trunk: TrunkSpec, legs: list[tuple[RunSpec, int, int, bool]], finished: set[str]
) -> list[int]:
    """Per cent done after every sign of life of legs (run, first step, last step, has ended)."""
    console = Console(file=io.StringIO(), width=200)
    with progress.Progress([trunk], finished, console) as shown:
        for run, first, last, ended in legs:
            for step in range(first, last + 1, 5):
                values = {"trunk_id": trunk.trunk_id, "run_id": run.run_id, "step": step}
                shown.update(Event(kind="progress", train_loss=3.0, **values))
            if ended:
                values = {"trunk_id": trunk.trunk_id, "run_id": run.run_id}
                shown.update(Event(kind="finished", result=OK, **values))
    return [int(share) for share in re.findall(r"(\d+)% done", console.file.getvalue())]  # type: ignore[attr-defined]


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("order", ["one after another", "trunk first"])
def test_the_share_done_grows_to_all(
    plan: Callable[..., list[TrunkSpec]],
    monkeypatch: pytest.MonkeyPatch,
    order: str,
    before: int,
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", -1.0)
    trunk = plan("grid.tokens=[6400, 12800, 25600]")[0]
    runs = trunk.runs[before:]
    at = trunk.runs[before - 1].start if before else 0
    legs = []
    if order == "trunk first":
        legs = [(runs[-1], at, runs[-1].start, False)]
        legs += [(run, run.start, run.stop, True) for run in reversed(runs)]
    else:
        for run in runs:
            legs.append((run, at, run.stop, True))
            at = run.start
    shares = told(trunk, legs, {run.run_id for run in trunk.runs[:before]})
    assert shares == sorted(shares)
    assert shares[0] < 5
    assert shares[-2] > 90
    assert shares[-1] == 100
    assert max(b - a for a, b in itertools.pairwise(shares)) < 10
