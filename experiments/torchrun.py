"""Several processes for one model on this machine: a torchrun for each trunk in training."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import closing, suppress
from pathlib import Path

from experiments import store
from experiments.follow import follow
from experiments.resources import LaunchSection
from experiments.spec import Event, TrunkSpec

POLL_SECONDS = 0.5
STOP_SECONDS = 300.0


GPUs = tuple[int, ...]  # indices of one model's GPUs; empty on the CPU


def run_ranks(
    trunks: list[TrunkSpec], sweep: Path, launch: LaunchSection, places: list[GPUs]
) -> Generator[Event]:
    """Train `trunks`, each by `launch.ranks` processes, as many at once as there are `places`.

    Closing the generator stops all of them after they have saved a checkpoint.
    """
    with closing(_train(trunks, sweep, launch, places)) as polls:
        yield from follow(trunks, sweep, polls)


def _train(
    trunks: list[TrunkSpec], sweep: Path, launch: LaunchSection, places: list[GPUs]
) -> Generator[set[str]]:
    """Start the trunks one after another; yields those that are not over yet."""
    waiting, free = list(trunks), list(places)
    running: dict[str, tuple[subprocess.Popen[bytes], GPUs]] = {}
    try:
        while waiting or running:
            while waiting and free:
                trunk, place = waiting.pop(0), free.pop(0)
                folder = store.trunk_folder(sweep, trunk.trunk_id)
                running[trunk.trunk_id] = (_start(folder, launch, place), place)
            time.sleep(POLL_SECONDS)
            for trunk_id, (process, place) in list(running.items()):
                if process.poll() is not None:
                    del running[trunk_id]
                    free.append(place)
                    _note_death(store.trunk_folder(sweep, trunk_id), process.returncode)
            yield {trunk.trunk_id for trunk in waiting} | set(running)
    finally:
        for process, _ in running.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process, _ in running.values():
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def _start(folder: Path, launch: LaunchSection, gpus: GPUs) -> subprocess.Popen[bytes]:
    """Start torchrun in a process group of its own, so that ctrl-C is this process's to handle."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    words += [f"--nproc-per-node={launch.ranks}", "-m", "experiments.run", str(folder)]
    words += [f"--device={'cuda' if gpus else 'cpu'}", f"--strategy={launch.strategy}"]
    words += [f"--threads={launch.threads_per_slot}"]
    words += [f"--checkpoint-seconds={launch.checkpoint_seconds}"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(launch.threads_per_slot)}
    if gpus:
        # Indices count the GPUs that this process sees: it may have been given some only.
        seen = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        names = [seen[i] if seen else str(i) for i in gpus]
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(names)
    with (folder / "ranks.txt").open("ab") as log:
        return subprocess.Popen(
            words, stdout=log, stderr=log, env=environment, start_new_session=True
        )


def _note_death(folder: Path, code: int) -> None:
    """Record what a killed rank could not say itself."""
    if code and store.read_status(folder)["state"] == "running":
        reason = f"a rank was killed or ended (torchrun's exit code {code}); see {folder}/ranks.txt"
        store.write_status(folder, "failed", reason=reason)
