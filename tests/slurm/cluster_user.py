"""The suite as a user of a cluster has it: the command, a config, a folder that nodes see."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
CONFIG = """
name = "it"
runs_dir = "runs"
[model]
preset = "gpt"
n_layers = 1
d_head = 8
seq_len = 32
[data]
source = "text"
path = "text"
val_fraction = 0.2
eval_tokens = 4096
curve_eval_tokens = 1024
max_epochs = 1e6
[train]
batch = { rule = "constant", tokens = 256 }
lr = { rule = "inverse-width", value = 0.02, base_width = 8 }
eval_every_tokens = 65_536
[schedule]
warmup_tokens = 2560
[grid]
tokens = [76_800, 128_000]
sizes = [{ d_model = 8 }]
[launch]
device = "cpu"
checkpoint_seconds = 1
[launch.slurm]
mem_gb = 1.5
time_min = 60
"""
LOSSES = ["run_id", "tokens", "status", "val_loss", "val_loss_se", "train_loss"]


def output(*words: str) -> str:
    """What one of Slurm's commands prints."""
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout


def until(told: str, condition: Callable[[], object], seconds: float = 120.0) -> object:
    """Wait for `condition` to hold, and return it; fail saying what did not happen."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {told}"
        time.sleep(0.3)
    return found


def kill(job_id: str) -> None:
    """SIGKILL to every process that a job started, as when the machine takes them away."""
    array, _, index = job_id.partition("_")
    wanted = {f"SLURM_ARRAY_JOB_ID={array}", f"SLURM_ARRAY_TASK_ID={index}"}
    if not index:
        wanted = {f"SLURM_JOB_ID={array}"}
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it ended while this looked
            if wanted <= set(environ.read_bytes().decode(errors="replace").split("\0")):
                os.kill(int(environ.parent.name), signal.SIGKILL)


def restarts(job_id: str) -> int:
    """How often Slurm has started the job again."""
    found = re.search(r"Restarts=(\d+)", output("scontrol", "show", "job", job_id))
    assert found
    return int(found[1])


@dataclass(frozen=True)
class Suite:
    """The command in a folder of its own; `code` is the checkout that it runs."""

    folder: Path
    code: Path = ROOT

    def start(self, *words: object, under: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        """Start `python -m experiments.sweep` with these words."""
        return subprocess.Popen(
            [*under, sys.executable, "-m", "experiments.sweep", *map(str, words)],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(self.code), "COLUMNS": "200"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __call__(
        self, *words: object, under: tuple[str, ...] = (), seconds: float = 240
    ) -> tuple[int, str, str]:
        """Run the command to its end: exit code, standard output, standard error."""
        process = self.start(*words, under=under)
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            pytest.fail(f"no end within {seconds} s: {words}\n{out}\n{err}")
        assert "Traceback" not in err, err
        return process.returncode, out, err

    def run(self, *words: object, seconds: float = 240) -> tuple[int, str, str]:
        """`run` on Slurm."""
        return self("run", "it.toml", "launch.executor=slurm", *words, seconds=seconds)

    def whole(self, *words: object) -> pd.DataFrame:
        """Results of the same sweep, uninterrupted in one process."""
        code, out, err = self("run", "it.toml", "launch.executor=inline", *words, "name=whole")
        assert code == 0, (out, err)
        return self.results("whole")

    def results(self, name: str = "it") -> pd.DataFrame:
        """The losses of a sweep."""
        frame = pd.read_parquet(self.folder / "runs" / name / "results.parquet")
        return frame.sort_values("run_id").reset_index(drop=True)[LOSSES]

    def jobs(self, name: str = "it") -> list[str]:
        """Ids of all jobs of the sweep that were ever submitted, array elements apart."""
        records = self.sweep(name).glob("slurm/*/submission.json")
        names = {f"{name}.{path.parent.name}" for path in records}
        lines = output("sacct", "-n", "-X", "-P", "-o", "JobID,JobName%80").splitlines()
        pairs = [line.split("|") for line in lines]
        return [job for job, called in pairs if called.rpartition(".")[0] in names]

    def training(self) -> list[dict]:
        """Status of the trunks that are in training and past their first steps."""
        paths = self.sweep().glob("trunks/*/status.json")
        statuses = [json.loads(path.read_text()) for path in paths]
        return [each for each in statuses if each["state"] == "running" and each.get("step")]

    def starts(self) -> list[int]:
        """The steps at which processes began to train, from the log of the only trunk."""
        (log,) = self.sweep().glob("trunks/*/log.txt")
        return [int(step) for step in re.findall(r"from step (\d+) of", log.read_text())]

    def sweep(self, name: str = "it") -> Path:
        """The folder of a sweep."""
        return self.folder / "runs" / name

    def logs(self, name: str = "it") -> str:
        """All that trunks and jobs said."""
        return self("logs", f"runs/{name}")[1]
