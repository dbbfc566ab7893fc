"""The life of a sweep through its command: run, resume, extend, fail, refuse."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

Sweep = Callable[..., tuple[int, str, str]]


def results(runs: Path, name: str = "micro") -> pd.DataFrame:
    frame = pd.read_parquet(runs / name / "results.parquet")
    return frame.sort_values(["d_model", "seed", "tokens"]).reset_index(drop=True)


def run_files(runs: Path, name: str = "micro") -> dict[str, bytes]:
    found = (runs / name / "trunks").glob("*/[0-9a-f]*.json")
    return {path.name: path.read_bytes() for path in found}


# A shell starts background jobs with SIGINT ignored, and children inherit that: undo it first.
MAIN = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from experiments.sweep import main; sys.exit(main(sys.argv[1:]))"
)


def command(*words: object, **popen: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", MAIN, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **popen,  # type: ignore[call-overload]
    )


def test_run_writes_whole_rows_and_a_second_run_trains_nothing(sweep: Sweep, micro: Path) -> None:
    code, out, err = sweep("run", micro)
    assert code == 0, err
    assert out.splitlines()[-1].startswith("next: python -m analysis.report")
    runs = micro.parent / "runs"
    frame = results(runs)
    assert list(frame["status"]) == ["ok"] * 4
    assert list(frame["tokens"]) == [6400, 12800] * 2
    assert list(frame["horizon_index"]) == [0, 1] * 2
    assert (frame["val_loss"] < 5.0).all()
    assert (frame["val_loss_se"] > 0).all()
    assert (frame["eval_tokens"] == 1024).all()
    assert (
        frame["n_total"]
        == frame[["n_embedding", "n_position", "n_non_embedding", "n_head"]].sum(axis=1)
    ).all()
    assert frame["mfu"].isna().all()
    before = run_files(runs)
    code, out, _ = sweep("run", micro)
    assert code == 0
    assert "4 finished before, 0 trunks to train" in out
    assert run_files(runs) == before


def test_curves_tell_trunk_from_branch(sweep: Sweep, micro: Path) -> None:
    sweep("run", micro)
    folder = micro.parent / "runs" / "micro"
    curves, frame = pd.read_parquet(folder / "curves.parquet"), results(micro.parent / "runs")
    trunk, branch = curves[curves["run_id"].isna()], curves[curves["run_id"].notna()]
    assert len(trunk) > 0
    assert len(branch) > 0
    assert trunk["horizon_index"].isna().all()
    first_cooldown = (frame["tokens"] - frame["cooldown_tokens"]).min()
    peak = frame.set_index("run_id")["lr"]
    assert (branch["tokens"] > first_cooldown).all()
    assert (branch["lr"].to_numpy() < peak.loc[branch["run_id"]].to_numpy()).all()
    assert not curves.duplicated(["trunk_id", "run_id", "step"]).any()


def test_extension_trains_the_addition_only(sweep: Sweep, micro: Path) -> None:
    runs = micro.parent / "runs"
    sweep("run", micro)
    before = run_files(runs)
    longer = "grid.tokens=[6400, 9600, 12800, 19200]"
    larger = "grid.sizes=[{ d_model = 8 }, { d_model = 16 }, { d_model = 24 }]"
    code, out, err = sweep("run", micro, longer, larger)
    assert code == 0, err
    assert "12 runs, 4 finished before" in out
    after = run_files(runs)
    assert len(after) == 12
    assert {name: after[name] for name in before} == before
    sweep("run", micro, longer, larger, "name=fresh")
    columns = ["run_id", "tokens", "val_loss", "train_loss", "val_bpb"]
    pd.testing.assert_frame_equal(
        results(runs)[columns], results(runs, "fresh")[columns], check_exact=True
    )


def test_a_run_that_left_the_plan_stays_with_that_reason(sweep: Sweep, micro: Path) -> None:
    sweep("run", micro)
    sweep("run", micro, "grid.tokens=[6400]", "grid.sizes=[{ d_model = 8 }]")
    frame = results(micro.parent / "runs")
    assert list(frame["status"]) == ["ok", "unplanned", "unplanned", "unplanned"]
    assert set(frame["reason"].dropna()) == {"no longer in the plan of this sweep"}
    sweep("run", micro)
    assert list(results(micro.parent / "runs")["status"]) == ["ok"] * 4


def test_sigkill_then_the_same_command_is_bit_identical(sweep: Sweep, micro: Path) -> None:
    runs = micro.parent / "runs"
    size = "grid.sizes=[{ d_model = 16 }]"
    tokens = "grid.tokens=[25600, 51200]"
    sweep("run", micro, size, tokens, "name=whole")
    killed = 0
    for _ in range(12):
        process = command("run", micro, size, tokens, start_new_session=True)
        # From the moment a checkpoint or a result appears, kill at some point of the training.
        seen, deadline = run_state(runs), time.monotonic() + 60
        while process.poll() is None and run_state(runs) == seen and time.monotonic() < deadline:
            time.sleep(0.01)
        if process.poll() is None:
            time.sleep(0.05 * killed)
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        process.communicate()
        if process.returncode == 0 or killed == 3:
            break
    assert killed >= 1
    code, _, err = sweep("run", micro, size, tokens)
    assert code == 0, err
    columns = ["run_id", "tokens", "val_loss", "val_loss_se", "train_loss", "val_bpb"]
    pd.testing.assert_frame_equal(
        results(runs)[columns], results(runs, "whole")[columns], check_exact=True
    )
    curve = ["run_id", "step", "train_loss", "val_loss"]
    whole, resumed = (
        pd.read_parquet(runs / name / "curves.parquet")[curve] for name in ("whole", "micro")
    )
    pd.testing.assert_frame_equal(resumed, whole, check_exact=True)


def run_state(runs: Path) -> list[tuple[str, int]]:
    found = (runs / "micro" / "trunks").glob("*/*.pt")
    return sorted((path.name, path.stat().st_mtime_ns) for path in found)


def interrupt(process: subprocess.Popen[str], micro: Path) -> tuple[Path, str]:
    """Press ctrl-C once a trunk trains; the trunks' folder and what the command printed."""
    trunks = micro.parent / "runs" / "micro" / "trunks"
    deadline = time.monotonic() + 60
    while not list(trunks.glob("*/status.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, (out, err)
    assert "Traceback" not in err
    assert list(trunks.glob("*/latest.pt"))
    return trunks, out


def test_interrupt_saves_and_exits_130(sweep: Sweep, micro: Path) -> None:
    long = "grid.tokens=[51200]"
    process = command(
        "run",
        micro,
        long,
        "launch.executor=local",
        "launch.slots=1",
        "launch.checkpoint_seconds=600",
    )
    trunks, out = interrupt(process, micro)
    assert "the same command again goes on" in out
    states = [json.loads(path.read_text())["state"] for path in trunks.glob("*/status.json")]
    assert "stopped" in states
    assert sweep("run", micro, long)[0] == 0


def test_interrupt_of_the_inline_executor_saves_between_two_steps(
    sweep: Sweep, micro: Path
) -> None:
    long = "grid.tokens=[51200]"
    process = command("run", micro, long, "launch.checkpoint_seconds=600")
    interrupt(process, micro)
    sweep("run", micro, long)
    sweep("run", micro, long, "name=whole")
    runs = micro.parent / "runs"
    columns = ["run_id", "val_loss", "train_loss"]
    pd.testing.assert_frame_equal(
        results(runs)[columns], results(runs, "whole")[columns], check_exact=True
    )


def test_local_slots_give_the_rows_of_inline(sweep: Sweep, micro: Path) -> None:
    sweep("run", micro, "name=inline")
    process = command("run", micro, "launch.executor=local", "launch.slots=2")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, (out, err)
    runs = micro.parent / "runs"
    columns = ["run_id", "val_loss", "train_loss"]
    pd.testing.assert_frame_equal(
        results(runs)[columns], results(runs, "inline")[columns], check_exact=True
    )


def test_a_killed_worker_fails_its_trunk_and_the_rest_goes_on(sweep: Sweep, micro: Path) -> None:
    words = (micro, "grid.tokens=[6400, 51200]", "launch.executor=local", "launch.slots=1")
    process = command("run", *words)
    trunks = micro.parent / "runs" / "micro" / "trunks"
    deadline, victim = time.monotonic() + 60, None
    while victim is None and time.monotonic() < deadline:
        time.sleep(0.02)
        for path in trunks.glob("*/status.json"):
            victim = json.loads(path.read_text())
    assert victim is not None
    os.kill(victim["pid"], signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, (out, err)
    assert "killed by SIGKILL" in err
    frame = results(micro.parent / "runs")
    assert len(frame) == 4  # a failed run keeps its row
    assert (frame["status"] == "ok").sum() >= 2  # the other trunk is whole
    assert frame.loc[frame["status"] == "failed", "reason"].str.contains("SIGKILL").all()
    code, out, err = sweep("run", micro, "grid.tokens=[6400, 51200]", "--retry-failed")
    assert code == 0, (out, err)
    assert list(results(micro.parent / "runs")["status"]) == ["ok"] * 4


def test_divergence_is_a_row_not_a_crash(sweep: Sweep, micro: Path) -> None:
    code, out, err = sweep("run", micro, "train.lr.value=1e4", "train.grad_clip=off")
    assert code == 1, (out, err)
    frame = results(micro.parent / "runs")
    assert list(frame["status"]) == ["diverged"] * 4
    assert frame["val_loss"].isna().all()
    assert frame["reason"].str.contains("training loss .* by step").all()
    code, out, _ = sweep("run", micro, "train.lr.value=1e4", "train.grad_clip=off")
    assert code == 1
    assert "0 trunks to train" in out


def test_a_changed_config_is_refused_by_key(sweep: Sweep, micro: Path) -> None:
    sweep("run", micro, "grid.tokens=[6400]")
    code, _, err = sweep(
        "run", micro, "grid.tokens=[6400]", "train.beta2=0.99", "data.eval_tokens=512"
    )
    assert code == 2
    assert "train.beta2 = 0.95 there, 0.99 now" in err
    assert "data.eval_tokens = 1024 there, 512 now" in err
    assert "name=NEW" in err
    code, _, _ = sweep("plan", micro, "grid.tokens=[6400]", "train.beta2=0.99")
    assert code == 2


def test_changed_text_is_refused(sweep: Sweep, micro: Path, tmp_path: Path, text: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    for path in text.iterdir():
        (own / path.name).write_bytes(path.read_bytes())
    where = (f"data.path={str(own)!r}", "grid.tokens=[6400]")
    assert sweep("run", micro, *where)[0] == 0
    (own / "00.txt").write_text("other words " * 500)
    code, _, err = sweep("run", micro, *where)
    assert code == 2
    assert "is not the same" in err


def test_two_runs_of_one_sweep_exclude_each_other(sweep: Sweep, micro: Path) -> None:
    from experiments import store

    folder = micro.parent / "runs" / "micro"
    folder.mkdir(parents=True)
    with store.locked(folder) as free:
        assert free
        code, _, err = sweep("run", micro)
    assert code == 2
    assert "another run of this sweep is going on" in err


def test_status_and_collect_read_a_folder(sweep: Sweep, micro: Path) -> None:
    sweep("run", micro)
    folder = micro.parent / "runs" / "micro"
    code, out, _ = sweep("status", folder, "--json")
    rows = json.loads(out)
    assert code == 0
    assert [row["state"] for row in rows] == ["ok"] * 4
    assert all(row["step"] == row["steps"] for row in rows)
    one = rows[0]["run_id"]
    assert one in sweep("status", folder, one)[1]
    code, _, err = sweep("status", folder, "nonesuch")
    assert code == 2
    assert "nonesuch" in err
    (folder / "results.parquet").unlink()
    assert sweep("collect", folder)[0] == 0
    assert len(results(micro.parent / "runs")) == 4
    code, _, err = sweep("collect", micro.parent)
    assert code == 2
    assert "no sweep.json" in err
    assert rows[0]["run_id"] in sweep("logs", folder)[1]


def test_plan_tells_what_exists(sweep: Sweep, micro: Path) -> None:
    code, out, _ = sweep("plan", micro)
    assert code == 0
    assert out.count("missing") == 4
    sweep("run", micro)
    out = sweep("plan", micro, "grid.tokens=[6400, 12800, 19200]")[1]
    assert out.count("missing") == 2
    assert "core-minutes" in out
    assert "times less than each run alone" in out


def test_overrides_may_follow_options(sweep: Sweep, micro: Path) -> None:
    code, out, _ = sweep("run", micro, "--retry-failed", "grid.tokens=[6400]", "name=other")
    assert code == 0
    assert "other: 2 runs" in out
    with pytest.raises(SystemExit) as error:
        sweep("run", micro, "--nope")
    assert error.value.code == 2


def test_a_folder_that_cannot_be_written_is_bad_input(sweep: Sweep, micro: Path) -> None:
    code, _, err = sweep("run", micro, "runs_dir=/proc/nope")
    assert code == 2
    assert "runs_dir = '/proc/nope'" in err
    assert str(micro) in err


def test_without_a_verb_and_without_anything(sweep: Sweep, micro: Path) -> None:
    assert sweep(micro, "grid.tokens=[6400]")[0] == 0
    code, _, err = sweep()
    assert code == 2
    assert "usage" in err


def test_experiments_run_trains_one_trunk(
    sweep: Sweep, micro: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from experiments.run import main

    sweep("run", micro)
    folder = micro.parent / "runs" / "micro"
    trunk = next(iter((folder / "trunks").iterdir()))
    before = run_files(micro.parent / "runs")
    for path in trunk.glob("[0-9a-f]*.json"):
        path.unlink()
    (trunk / "latest.pt").unlink(missing_ok=True)
    assert main([str(trunk)]) == 0
    after = run_files(micro.parent / "runs")
    losses = [
        {name: json.loads(f)["val_loss"] for name, f in files.items()} for files in (before, after)
    ]
    assert losses[0] == losses[1]
    assert main([str(folder)]) == 2
    assert "spec.json: [Errno 2]" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small file system")
def test_a_full_disk_ends_with_the_reason_and_nothing_half_written(
    sweep: Sweep, micro: Path, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(small)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.decode().strip()}")
    try:
        code, _, err = sweep("run", micro, f"runs_dir={str(small)!r}", "grid.seeds=[0, 1, 2]")
        assert code == 1, err
        assert "No space left" in err
        for path in small.rglob("[0-9a-f]*.json"):
            json.loads(path.read_text())
    finally:
        # Lazily: this process keeps the shards of its last sweeps mapped.
        subprocess.run(["umount", "--lazy", str(small)], check=True)
