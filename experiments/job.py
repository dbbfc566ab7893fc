"""What a Slurm job does: train its trunks, save when told to stop, go back into the queue.

submitit pickles the call by reference, so this module is never the entry point. All state lies in
the run folders; a job that starts again skips what is done and resumes what is half done.
"""

import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from experiments import provenance, slots, snapshot, store
from experiments.pack import Place
from experiments.resources import LaunchSection
from experiments.spec import TrunkSpec

SAVE_SECONDS = 30.0
REQUEUES, REQUEUE_SECONDS = 5, 5.0  # attempts at scontrol, before the time limit comes


class Stop(BaseException):
    """Raised by a signal in the process that watches the workers: they save, then it ends."""


@dataclass(frozen=True)
class TrunkJob:
    """One Slurm job, as submitit calls it; `launch` is the config's section as JSON."""

    sweep: str
    trunk_ids: tuple[str, ...]
    launch: str

    def __call__(self) -> None:
        """Train the trunks; raises RuntimeError at the end if one failed."""
        sweep, launch = Path(self.sweep), LaunchSection.model_validate_json(self.launch)
        snapshot.check(sweep)
        trunks = [_trunk(sweep, trunk_id) for trunk_id in self.trunk_ids]
        asked = launch.resources(trunks[0].n_total)
        failed = {t.trunk_id: told for t in trunks if (told := _failed_here(sweep, t))}
        todo = [trunk for trunk in trunks if trunk.trunk_id not in failed]
        signals = _Signals()
        try:
            if asked.ranks > 1:
                _train_together(trunks[0], sweep, launch, signals)
            else:
                failed |= _train(todo, sweep, launch, signals)
        except (Stop, KeyboardInterrupt):
            signals.end(asked.time_min)
        if failed:
            told = "; ".join(f"{trunk_id}: {reason}" for trunk_id, reason in failed.items())
            raise RuntimeError(f"{len(failed)} of {len(trunks)} trunks failed: {told}")

    def checkpoint(self) -> Any:
        """Submitit asks, before it puts the job back into the queue, what to call next time."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class _Signals:
    """Slurm's signals, heard now and acted upon once everything is saved.

    The user signal (time limit, preemption) comes to submitit's handler late: it puts the job back
    into the queue and ends it. SIGTERM alone (scancel, preemption on other clusters) has Slurm do
    what it is about to do.
    """

    def __init__(self) -> None:
        from submitit.slurm.slurm import SlurmJobEnvironment

        self._user = getattr(signal, f"SIG{SlurmJobEnvironment.USR_SIG}")
        self._requeue: Callable[[int, FrameType | None], None] = signal.getsignal(self._user)  # type: ignore[assignment]
        self.heard: list[int] = []
        self.raising = False
        for number in (self._user, signal.SIGTERM):
            signal.signal(number, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        first = not self.heard
        self.heard.append(number)
        if first and self.raising:
            raise Stop

    def end(self, time_min: int) -> None:
        """Requeue, or wait for what Slurm does, as long as a job may last; does not return."""
        from submitit import JobEnvironment

        self.raising = False
        print("told to end: all is saved", flush=True)
        deadline = time.monotonic() + 60 * time_min
        while self._user not in self.heard and time.monotonic() < deadline:
            time.sleep(0.2)
        # A SIGTERM now would end the scontrol that submitit starts, which inherits this.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for stale in JobEnvironment().paths.folder.glob("*.save_tmp"):
            stale.unlink()  # of a life that was killed as it saved: submitit would refuse to
        for _ in range(REQUEUES if self._user in self.heard else 0):
            try:
                self._requeue(self._user, None)
            except subprocess.SubprocessError as error:  # a busy controller
                print(f"not requeued yet: {error}", flush=True)
                time.sleep(REQUEUE_SECONDS)
            else:  # of several ranks the first requeues, and Slurm ends all
                time.sleep(60 * time_min)
        raise SystemExit(1)


def _trunk(sweep: Path, trunk_id: str) -> TrunkSpec:
    path = store.trunk_folder(sweep, trunk_id) / "spec.json"
    return TrunkSpec.model_validate_json(path.read_text())


def _failed_here(sweep: Path, trunk: TrunkSpec) -> str | None:
    """Why the trunk failed in this job, before it was put back into the queue, if it did."""
    status = store.read_status(store.trunk_folder(sweep, trunk.trunk_id))
    here = status["state"] == "failed" and status.get("job") == provenance.slurm_job()
    return status.get("reason", "") if here and "judged" not in status else None


def _train(
    trunks: list[TrunkSpec], sweep: Path, launch: LaunchSection, signals: _Signals
) -> dict[str, str]:
    """Train in the slots of this job; return why which trunk failed. A signal raises Stop."""
    failed: dict[str, str] = {}
    if not trunks:
        return failed
    asked = launch.resources(trunks[0].n_total)
    gpus = 0 if launch.device == "cpu" else asked.gpus
    places = slots.places(sweep, launch, gpus, asked.cpus_per_task)
    # What is not saved well before the time limit is left to the last periodic checkpoint: a job
    # that Slurm ends at the limit is not put back into the queue.
    stop_seconds = max(SAVE_SECONDS, launch.slurm.signal_seconds - SAVE_SECONDS)
    training = slots.run_slots(
        slots.work(trunks, places), places, launch.threads_per_slot, stop_seconds
    )
    with closing(training) as events:
        signals.raising = True
        if signals.heard:
            raise Stop
        for event in events:
            if event.kind == "failed":
                failed[event.trunk_id] = event.reason or ""
            elif event.kind == "finished":
                print(f"{event.trunk_id} {event.run_id} finished", flush=True)
        signals.raising = False
    return failed


def _train_together(
    trunk: TrunkSpec, sweep: Path, launch: LaunchSection, signals: _Signals
) -> None:
    """Train as one rank of several; a signal to any of them raises KeyboardInterrupt in all.

    Raises RuntimeError at once if the trunk fails: the other ranks may be waiting for this one.
    """
    from submitit.helpers import TorchDistributedEnvironment

    from experiments.trunk import run_trunks
    from minigpt.group import join
    from minigpt.process import settle

    asked = launch.resources(trunk.n_total)
    TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    settle(launch.threads_per_slot)
    cuda = asked.gpus and launch.device != "cpu"
    with join("cuda" if cuda else "cpu", asked.strategy) as (group, device):
        place = Place(
            sweep=sweep,
            device=device,
            checkpoint_seconds=launch.checkpoint_seconds,
        )
        for event in run_trunks([trunk], place, group, signals.heard):
            if event.kind == "failed":
                raise RuntimeError(f"{trunk.trunk_id} failed: {event.reason}")
