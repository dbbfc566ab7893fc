"""Several ranks train as one process does: real processes, started by torchrun, over gloo."""

import fcntl
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import ranks
import torch
from ranks import LONG, MODELS, SHORT, events_of, job_in

from minigpt import checkpoint
from minigpt.config import sequences_per_rank
from minigpt.group import LAUNCHER, Group, join
from minigpt.loop import train
from minigpt.model import MiniGPT

SIZE = 2
LOSSES = ("train_loss", "val_loss", "val_loss_se", "val_bpb")


def torchrun(strategy: str, folder: Path) -> None:
    """Run ranks.py to its end, without a word on stderr."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(SIZE), ranks.__file__, strategy, str(folder)),
        ],
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.fixture(scope="module")
def plan(text_config, corpus, tmp_path_factory) -> dict:
    return {
        "data": text_config.model_dump(mode="json"),
        "cache": str(tmp_path_factory.mktemp("shards")),
    }


@pytest.fixture(scope="module")
def one(plan, tmp_path_factory) -> tuple[Path, dict]:
    """Uninterrupted runs of one process: their folder, their events."""
    folder = tmp_path_factory.mktemp("one")
    found = {preset: events_of(job_in(folder / preset, plan, preset=preset)) for preset in MODELS}
    found["half"] = events_of(job_in(folder / "half", plan, dtype="bfloat16"), SHORT)
    return folder, found


@pytest.fixture(scope="module", params=["ddp", "fsdp"])
def several(request, plan, tmp_path_factory) -> tuple[str, Path, list[dict]]:
    """What two ranks did after one process had begun: strategy, folder, every rank's answers.

    Test processes share them: the first to come runs them.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = shared / f"ranks-{request.param}"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "plan.json").exists():
            (folder / "plan.json").write_text(json.dumps(plan))
            for preset in MODELS:
                begun = job_in(folder / f"{preset}-begun", plan, preset=preset)
                events_of(begun, stop=60)
            torchrun(request.param, folder)
    answers = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(SIZE)]
    return request.param, folder, answers


def assert_close(found: list[dict], expected: list[dict], rel: float) -> None:
    """The same events, their losses up to `rel`; without events, the test would say nothing."""
    assert len(found) == len(expected) > 0
    for event, other in zip(found, expected, strict=True):
        losses = {key: other[key] for key in LOSSES if other.get(key) is not None}
        assert event == other | {key: pytest.approx(losses[key], rel=rel) for key in losses}


def layout(values: object) -> object:
    """What a checkpoint is made of: names, types, shapes."""
    if isinstance(values, torch.Tensor):
        return type(values), values.dtype, values.shape, values.device
    if isinstance(values, dict):
        return {key: layout(value) for key, value in values.items()}
    return [layout(value) for value in values] if isinstance(values, list) else type(values)


# As one process


@pytest.mark.parametrize("preset", MODELS)
def test_two_ranks_equal_one_process(one, several, preset):
    """Every event of the run: signs of life, points of the curve, result."""
    kinds = [event["kind"] for event in one[1][preset]]
    assert (kinds.count("Evaluation"), kinds[-1]) == (6, "Result")
    assert_close(several[2][0]["trained"][preset], one[1][preset], rel=1e-5)


def test_weights_equal_those_of_one_process(one, several):
    stored = [checkpoint.load(folder / "gpt" / "weights.pt") for folder in (one[0], several[1])]
    assert layout(stored[0]) == layout(stored[1])
    assert stored[0]["config"] == stored[1]["config"]
    for name, weight in stored[0]["model"].items():
        torch.testing.assert_close(stored[1]["model"][name], weight, rtol=1e-3, atol=1e-4)


def test_bfloat16_too(one, several):
    found, expected = (
        events["half"][-1]["val_loss"] for events in (several[2][0]["trained"], one[1])
    )
    assert found == pytest.approx(expected, rel=5e-3)


def test_dropout_of_ranks_resumes_too(several):
    """Masks of other entries than one process has, and the same again after a stop."""
    found = several[2][0]["trained"]
    whole, again = found["dropout"][-1], found["dropout-closed"][-1]
    assert whole["status"] == "ok"
    for name in LOSSES:
        assert again[name] == pytest.approx(whole[name], rel=1e-6), name
    stored = [
        checkpoint.load(several[1] / name / "weights.pt")["model"]
        for name in ("dropout", "dropout-closed")
    ]
    for name, weight in stored[0].items():
        torch.testing.assert_close(stored[1][name], weight, rtol=1e-4, atol=1e-6)


def test_ranks_yield_the_same_events(several):
    first, second = (answers["trained"] for answers in several[2])
    assert first == second


def test_divergence_is_seen_by_all(several):
    for answers in several[2]:
        result = answers["trained"]["diverged"][-1]
        assert (result["kind"], result["status"]) == ("Result", "diverged")


# Checkpoints


@pytest.mark.parametrize("preset", MODELS)
def test_run_changes_its_number_of_ranks(one, several, plan, preset, tmp_path):
    """One process to step 60, two ranks to 85, on the branch, and one process again to the end."""
    middle = several[2][0]["trained"][f"{preset}-begun"]
    assert (middle[0]["step"], middle[-1]["step"]) == (60, 85)
    job = job_in(tmp_path, plan, preset=preset)
    for path in (several[1] / f"{preset}-begun").glob("*.pt"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    last = events_of(job)
    assert last[0]["step"] == 85
    assert_close([last[-1]], [one[1][preset][-1]], rel=1e-5)
    whole = [event for event in one[1][preset] if event["kind"] == "Evaluation"]
    points = [event for event in middle + last if event["kind"] == "Evaluation"]
    assert_close(points, whole[-len(points) :], rel=1e-5)


def test_checkpoint_is_the_same_for_any_number_of_ranks(several, plan, tmp_path):
    events_of(job_in(tmp_path, plan), stop=85)
    files = [checkpoint.load(f / "latest.pt") for f in (tmp_path, several[1] / "gpt-begun")]
    assert layout(files[0]) == layout(files[1])
    groups = [file["optimizer"]["param_groups"] for file in files]
    assert groups[0] == groups[1]
    branch = several[1] / "gpt" / f"trunk-{LONG.start:08d}.pt"
    assert checkpoint.load(branch)["step"] == LONG.start


def test_ranks_agree_on_the_clock_every_ten_steps(several):
    assert [answers["saved"] for answers in several[2]] == [20, 20]


# The group


def test_methods_over_two_ranks(several):
    for rank, answers in enumerate(several[2]):
        assert answers["place"] == ["cpu", rank, SIZE]
        assert answers["rows"] == [[0, 1, 2], [3, 4, 5]][rank]
        assert answers["any"] == [False, True, True, True]
        assert answers["sum"] == [2.0, 1.0]
        assert answers["mean"] == 0.5
        assert answers["broadcast"] == {"of": 0}


def test_error_on_one_rank_is_one_on_all(several):
    for rank, answers in enumerate(several[2]):
        errors, another = answers["errors"], f"another rank failed (this is rank {rank} of 2)"
        assert errors["none"] == "no error"
        assert errors["one fails"] == [f"OtherRankError: {another}", "OSError: disk full"][rank]
        assert f"number: {rank} on rank {rank}, 0 on rank 0" in errors["different values"]
        if rank == 0:
            assert "latest.pt: damaged" in errors["damaged checkpoint"]
        else:
            assert errors["damaged checkpoint"] == f"OtherRankError: {another}"


def test_sharded_tensors_are_whole_on_rank_0_alone(several):
    strategy, folder, answers = several
    full = MiniGPT(MODELS["gpt"], seed=5)
    total = sum(p.numel() for p in full.parameters())
    parts = [answer["sharding"] for answer in answers]
    assert [part["plain"] for part in parts] == [[3, 2.0]] * 2
    if strategy == "ddp":
        assert {part["wrapped"] for part in parts} == {"DistributedDataParallel"}
        assert [part["here"] for part in parts] == [total, total]
    else:
        assert {part["wrapped"] for part in parts} == {"FSDPMiniGPT"}
        assert sum(part["here"] for part in parts) == total
        assert max(part["here"] for part in parts) < 0.51 * total
        assert [part["gathered"] for part in parts] == [len(full.state_dict()), 0]
    gathered = checkpoint.load(folder / "gathered.pt")
    assert all(torch.equal(gathered[name], weight) for name, weight in full.state_dict().items())


def test_one_process_is_a_group_that_does_nothing(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    value, model = torch.tensor(2.0), MiniGPT(MODELS["gpt"])
    for size in (None, "1"):
        if size:
            monkeypatch.setenv("WORLD_SIZE", size)
        with join("cpu", "fsdp") as (group, device):
            assert (group, device) == (Group(), "cpu")
            assert not torch.distributed.is_initialized()
        assert group.wrap(model, "cpu") is model
        assert group.mean(value) is group.sum(value) is group.gather(value) is value
        assert group.scatter(value, None, "cpu") is value
        assert (group.any(True), group.any(False)) == (True, False)
        group.agree(3, "step")
        with pytest.raises(OSError, match="disk full"), group.together():
            raise OSError("disk full")


def test_half_a_launcher_is_an_error(monkeypatch):
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with (
        pytest.raises(
            ValueError, match=r"WORLD_SIZE = 4 but RANK, LOCAL_RANK, .* start with torch"
        ),
        join("cpu", "ddp"),
    ):
        pass


# What the ranks divide


def test_ranks_share_a_batch():
    assert [sequences_per_rank(96, 16, ranks) for ranks in (1, 2, 3, 6)] == [6, 3, 2, 1]
    parts = [list(range(6))[Group(rank, 3).rows(6)] for rank in range(3)]
    assert parts == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize("size", [4, 5, 12])
def test_indivisible_batch_is_refused_before_anything_else(plan, tmp_path, size):
    message = (
        rf"batch_tokens = 96 is 6 sequences of seq_len = 16, which {size} ranks do not divide; "
        rf"choose the number of ranks among \[1, 2, 3.*\], or .* a multiple of {16 * size}"
    )
    with pytest.raises(ValueError, match=message):
        sequences_per_rank(96, 16, size)
    job = replace(job_in(tmp_path, plan), group=Group(0, size))
    with pytest.raises(ValueError, match=message):
        next(train(job, LONG, tmp_path / "weights.pt"))
