"""Two processes for one model on this machine, through torchrun: one process's losses."""

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

from experiments import store
from experiments.prepare import prepare

Sweep = Callable[..., tuple[int, str, str]]
WORDS = ("grid.sizes=[{ d_model = 16 }]", "launch.executor=local", "launch.slots=1")
TWO = ("launch.ranks=2", "name=two")


def losses(micro: Path, name: str) -> pd.DataFrame:
    frame = pd.read_parquet(micro.parent / "runs" / name / "results.parquet")
    return frame.sort_values("tokens").reset_index(drop=True)


def test_two_ranks_equal_one_process(sweep: Sweep, micro: Path) -> None:
    assert sweep("run", micro, *WORDS, "launch.executor=inline")[0] == 0
    code, out, err = sweep("run", micro, *WORDS, *TWO)
    assert code == 0, (out, err)
    one, two = losses(micro, "micro"), losses(micro, "two")
    assert set(two["world_size"]) == {2}
    assert list(two["run_id"]) == list(one["run_id"])  # ranks are no part of what is trained
    for column in ("val_loss", "val_loss_se", "train_loss"):
        assert list(two[column]) == pytest.approx(list(one[column]), rel=1e-4)
    assert "2 ok" in sweep("status", micro.parent / "runs" / "two")[1]


@pytest.mark.slow
def test_ctrl_c_saves_and_the_same_command_goes_on(sweep: Sweep, micro: Path) -> None:
    words = [str(micro), *WORDS, *TWO, "grid.tokens=[192_000]", "data.max_epochs=3"]
    words += ["launch.checkpoint_seconds=600"]
    code = "import sys; from experiments.sweep import main; sys.exit(main(sys.argv[1:]))"
    # A shell starts background jobs with SIGINT ignored, and children inherit that: undo it.
    code = f"import signal; signal.signal(2, signal.default_int_handler); {code}"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "run", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    trunks = micro.parent / "runs" / "two" / "trunks"
    deadline = time.monotonic() + 120
    while not any("from step" in path.read_text() for path in trunks.glob("*/log.txt")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, (out, err)
    assert "Traceback" not in err
    (status,) = trunks.glob("*/status.json")
    assert json.loads(status.read_text())["state"] == "stopped"
    assert (status.parent / "latest.pt").exists()
    told = sweep("run", *words)
    assert told[0] == 0, told
    assert "from step 0 " not in (status.parent / "log.txt").read_text().splitlines()[-2]
    assert list(losses(micro, "two")["status"]) == ["ok"]


def test_a_rank_that_fails_says_why(sweep: Sweep, micro: Path) -> None:
    config, _, (trunk,) = prepare(micro, [*WORDS, *TWO])
    folder = store.trunk_folder(config.folder, trunk.trunk_id)
    folder.mkdir(parents=True)
    (folder / "latest.pt").write_bytes(b"no checkpoint")
    code, _, err = sweep("run", micro, *WORDS, *TWO)
    assert code == 1
    assert "rank 0 of 2: DamagedError" in err
    assert "damaged" in err
