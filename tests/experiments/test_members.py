"""Models side by side in a sweep: the same rows, whatever happens on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch._inductor.exc import InductorError

from experiments import capacity, pack, trunk
from experiments.spec import TrunkSpec
from minigpt.stack import Stack
from minigpt.state import Job
from minigpt.step import Single

Sweep = Callable[..., tuple[int, str, str]]
SEEDS = "grid.seeds=[0, 1, 2]"
ONE_SIZE = "grid.sizes=[{ d_model = 8 }]"
SELDOM = "launch.checkpoint_seconds=60"
LOSSES = ["val_loss", "val_loss_se", "train_loss", "val_bpb"]


def results(runs: Path, name: str) -> pd.DataFrame:
    frame = pd.read_parquet(runs / name / "results.parquet")
    return frame.sort_values(["d_model", "seed", "lr_multiplier", "tokens"]).reset_index(drop=True)


def assert_alike(one: pd.DataFrame, two: pd.DataFrame) -> None:
    """The same runs, with the same losses but for rounding."""
    same = ["run_id", "trunk_id", "status", "tokens", "seed", "eval_tokens", "epochs"]
    pd.testing.assert_frame_equal(one[same], two[same])
    pd.testing.assert_frame_equal(one[LOSSES], two[LOSSES], rtol=2e-3)


def test_the_rows_are_those_of_models_alone(sweep: Sweep, micro: Path) -> None:
    """Seeds, rates and the branches of a trunk, at most five at a time."""
    words = (SEEDS, "grid.lr_multipliers=[0.5, 1]", ONE_SIZE, SELDOM)
    code, out, err = sweep("run", micro, *words, "name=beside", "launch.members=5")
    assert code == 0, (out, err)
    code, out, err = sweep("run", micro, *words, "name=alone")
    assert code == 0, (out, err)
    runs = micro.parent / "runs"
    beside, alone = results(runs, "beside"), results(runs, "alone")
    assert_alike(beside, alone)
    assert set(alone["members"]) == {1}
    assert sorted(beside["members"]) == [2] * 2 + [5] * 10  # the longer branches first
    curves = [pd.read_parquet(runs / name / "curves.parquet") for name in ("beside", "alone")]
    one, two = (
        c.sort_values(["trunk_id", "step", "run_id"]).reset_index(drop=True) for c in curves
    )
    same = ["trunk_id", "run_id", "step", "tokens", "lr"]
    pd.testing.assert_frame_equal(one[same], two[same])
    pd.testing.assert_frame_equal(
        one[["train_loss", "val_loss"]], two[["train_loss", "val_loss"]], rtol=2e-3
    )
    logs = "".join(path.read_text() for path in runs.glob("beside/trunks/*/log.txt"))
    assert "trunk from step 0 of 160, beside 4 others" in logs


def test_what_is_there_already_is_not_trained_again(sweep: Sweep, micro: Path) -> None:
    """A run more, and a horizon more, of a sweep that models alone began."""
    runs = micro.parent / "runs"
    assert sweep("run", micro, "grid.seeds=[0, 1]", "grid.tokens=[6400]", ONE_SIZE)[0] == 0
    before = {p: p.read_bytes() for p in runs.glob("micro/trunks/*/[0-9a-f]*.json")}
    assert len(before) == 2
    longer = (SEEDS, "grid.tokens=[6400, 9600, 12800]", ONE_SIZE, SELDOM)
    assert sweep("run", micro, *longer, "launch.members=8")[0] == 0
    assert {p: p.read_bytes() for p in before} == before
    assert sweep("run", micro, *longer, "name=alone")[0] == 0
    assert_alike(results(runs, "micro"), results(runs, "alone"))


def test_one_that_fails_and_one_that_diverges_leave_the_rest(sweep: Sweep, micro: Path) -> None:
    words = ("grid.seeds=[0, 1]", "grid.lr_multipliers=[1, 1e7]", SELDOM, "launch.members=8")
    code, _, err = sweep("plan", micro, ONE_SIZE, *words, "--json", micro.parent / "plan.json")
    assert code == 0, err
    planned = json.loads((micro.parent / "plan.json").read_text())["runs"]
    bad = next(r["trunk_id"] for r in planned if r["seed"] == 1 and r["lr_multiplier"] == 1)
    folder = micro.parent / "runs" / "micro" / "trunks" / bad
    folder.mkdir(parents=True)
    (folder / "latest.pt").write_bytes(b"no checkpoint")
    code, _, err = sweep("run", micro, ONE_SIZE, *words)
    assert code == 1
    assert "damaged" in err
    frame = results(micro.parent / "runs", "micro")
    states = frame.groupby(["seed", "lr_multiplier"])["status"].agg(list)
    assert states[0, 1] == ["ok", "ok"]
    assert states[1, 1] == ["failed", "failed"]
    assert states[0, 1e7] == states[1, 1e7] == ["diverged", "diverged"]
    (folder / "latest.pt").unlink()
    assert sweep("run", micro, ONE_SIZE, *words, "--retry-failed")[0] == 1  # two diverged
    assert sweep("run", micro, ONE_SIZE, *words[:3], "name=alone")[0] == 1
    runs = micro.parent / "runs"
    ok = [results(runs, name) for name in ("micro", "alone")]
    assert_alike(*(f[f["lr_multiplier"] == 1].reset_index(drop=True) for f in ok))
    # How large a loss has grown by then is chance; that it has by then is not.
    steps = [[reason.partition(" by ")[2] for reason in f["reason"].dropna()] for f in ok]
    assert steps[0] == steps[1] == ["step 10 (limit 3 ln V = 16.65)"] * 4


@pytest.mark.slow
def test_killed_at_any_moment_the_same_command_goes_on(sweep: Sweep, micro: Path) -> None:
    """SIGKILL, then ctrl-C: in the midst of trunks and of branches."""
    runs = micro.parent / "runs"
    words = [SEEDS, "grid.tokens=[12800, 25600]", ONE_SIZE]
    own = ["launch.members=8", "launch.executor=local", "launch.slots=1"]
    own += ["launch.checkpoint_seconds=0.3"]
    stopped = 0
    for i in range(5):
        process = subprocess.Popen(
            [sys.executable, "-m", "experiments.sweep", "run", micro, *words, *own],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        time.sleep(4.5 + i)
        if process.poll() is None:
            stopped += 1
            os.killpg(process.pid, signal.SIGKILL if i % 2 == 0 else signal.SIGINT)
        process.communicate()
        if len(list(runs.glob("micro/trunks/*/[0-9a-f]*.json"))) == 6:
            break
    assert stopped > 0
    code, out, err = sweep("run", micro, *words, *own)
    assert code == 0, (out, err)
    assert sweep("run", micro, *words, "name=alone")[0] == 0
    assert_alike(results(runs, "micro"), results(runs, "alone"))
    assert not list(runs.glob("micro/trunks/*/latest-*.pt"))  # of branches, each gone with its end


# Which trunks go together


def test_packs_hold_one_shape_and_give_every_worker_something(
    plan: Callable[..., list[TrunkSpec]],
) -> None:
    trunks = plan("grid.seeds=[0, 1, 2, 3]", "grid.lr_multipliers=[0.5, 1]")
    assert [len(p) for p in pack.packs(trunks, 1, 2)] == [1] * 16
    for workers in (1, 2, 3, 5, 16, 40):
        packs = pack.packs(trunks, None, workers)
        assert sorted(t.trunk_id for p in packs for t in p) == sorted(t.trunk_id for t in trunks)
        assert all(len({t.model.model_dump_json() for t in p}) == 1 for p in packs)
        assert len(packs) == min(16, max(2, workers))
        costs = [sum(t.cost() for t in p) for p in packs]
        assert costs == sorted(costs, reverse=True)


def test_models_with_dropout_are_trained_one_by_one_and_their_rows_say_so(
    sweep: Sweep, micro: Path, plan: Callable[..., list[TrunkSpec]]
) -> None:
    """Beside others that are trained together."""
    sizes = "grid.sizes=[{ d_model = 8 }, { d_model = 16, dropout = 0.1 }]"
    words = ("grid.seeds=[0, 1]", "grid.tokens=[1600, 3200]", sizes, SELDOM)
    packs = pack.packs(plan(*words), None, 1)
    assert [sorted(t.model.dropout for t in p) for p in packs] == [[0.1], [0.1], [0.0, 0.0]]
    code, out, err = sweep("run", micro, *words, "launch.members=8")
    assert code == 0, (out, err)
    frame = results(micro.parent / "runs", "micro")
    assert list(frame["dropout"]) == [0.0] * 4 + [0.1] * 4
    assert list(frame["members"]) == [4] * 4 + [1] * 4
    code, out, err = sweep("run", micro, *words, "name=alone")
    assert code == 0, (out, err)
    alone = results(micro.parent / "runs", "alone")
    assert_alike(frame, alone)
    assert list(frame["val_loss"][4:]) == list(alone["val_loss"][4:])  # of the same masks
    code, out, _ = sweep("plan", micro, *words, "launch.members=8", "name=new")
    assert out.count("side by side: d_model 8") == 1
    assert "side by side: d_model 16" not in out


# How many fit


def test_members_are_what_the_measured_memory_holds(
    plan: Callable[..., list[TrunkSpec]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of one takes 3 GB, a step of two 5: each more takes 2, of 0.8 of what is free."""
    taken = {1: 3e9, 2: 5e9}
    monkeypatch.setattr(capacity, "memory", lambda job, models: taken[models])
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (50e9, 80e9))

    class Job:
        device = "cuda:0"

    assert capacity.members(Job, 1, 100)[0] == 1 + int((40 - 3) / 2)  # type: ignore[arg-type]
    assert capacity.members(Job, 4, 100)[0] == 1 + int((10 - 3) / 2)  # type: ignore[arg-type]
    assert capacity.members(Job, 1, 7)[0] == 7  # type: ignore[arg-type]
    assert capacity.members(Job, 10, 7)[0] == 1  # type: ignore[arg-type]
    told = capacity.members(Job, 1, 100)[1]  # type: ignore[arg-type]
    assert told == "up to 19 models side by side: 2.0 GB each, of 40.0 GB"


# Memory that does not suffice


def test_a_stack_too_large_for_memory_is_trained_in_smaller_ones(
    sweep: Sweep, micro: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most two models, and at most two sequences a pass: everything is trained all the same."""
    whole = Stack._step

    def limited(stack: Stack) -> torch.Tensor:
        if len(stack.feed.windows_MB) > 2:
            raise torch.OutOfMemoryError("no memory for a third")
        return whole(stack)

    monkeypatch.setattr(Stack, "_step", limited)
    words = (SEEDS, ONE_SIZE, SELDOM)
    assert sweep("run", micro, *words, "launch.members=8", "name=beside")[0] == 0
    assert sweep("run", micro, *words, "name=alone")[0] == 0
    runs = micro.parent / "runs"
    beside = results(runs, "beside")
    assert set(beside["members"]) == {1, 2}
    assert_alike(beside, results(runs, "alone"))


def test_one_model_too_large_for_memory_takes_more_passes(
    sweep: Sweep, micro: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Single.step

    def limited(single: Single, factors: Sequence[float]) -> torch.Tensor:
        if single.job.passes < 4:  # of 4 sequences a step
            raise torch.OutOfMemoryError("no memory for two sequences")
        return whole(single, factors)

    assert sweep("run", micro, SELDOM, "name=whole")[0] == 0
    monkeypatch.setattr(Single, "step", limited)
    assert sweep("run", micro, SELDOM, "name=split")[0] == 0
    runs = micro.parent / "runs"
    split, expected = results(runs, "split"), results(runs, "whole")
    assert set(split["micro_batch"]) == {16}
    assert set(expected["micro_batch"]) == {64}
    assert_alike(split, expected)
    monkeypatch.setattr("experiments.trunk._in_more_passes", lambda hand, error: False)
    code, _, err = sweep("run", micro, SELDOM, "name=small")
    assert code == 1
    assert "no memory for two sequences" in err


# A machine without a compiler


def test_what_cannot_be_compiled_is_trained_as_it_is(
    sweep: Sweep, micro: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(model: object) -> None:
        raise InductorError(RuntimeError("Failed to find C compiler"), None)

    monkeypatch.setattr(trunk, "Job", lambda **values: Job(**{**values, "compiled": True}))
    monkeypatch.setattr("minigpt.regions.compiled", broken)
    words = (SEEDS, ONE_SIZE, SELDOM)
    code, _, err = sweep("run", micro, *words, "launch.members=8", "name=beside")
    assert code == 0, err
    monkeypatch.undo()
    assert sweep("run", micro, *words, "name=alone")[0] == 0
    runs = micro.parent / "runs"
    assert_alike(results(runs, "beside"), results(runs, "alone"))
    logs = [path.read_text() for path in runs.glob("beside/trunks/*/log.txt")]
    assert all("could not be compiled: " in log for log in logs)


# What the plan says


def test_plan_shows_and_measures_models_side_by_side(sweep: Sweep, micro: Path) -> None:
    words = ("plan", micro, SEEDS, ONE_SIZE, "launch.executor=local")
    assert "side by side" not in sweep(*words)[1]
    code, out, err = sweep(*words, "launch.members=4", "--measure")
    assert code == 0, err
    assert "d_model 8, 3 trunks, then 6 branches, at most 4 at a time" in out
    ((place, shapes),) = json.loads((micro.parent / "runs" / "speed.json").read_text()).items()
    assert "4 members" in place
    assert [rate["members"] for rate in shapes.values()] == [4]
    # A GPU is not here to be asked how much it holds.
    out = sweep(*words, "launch.device=cuda")[1]
    assert "at most 6 at a time (or what the GPU's memory holds: `plan --measure`)" in out
