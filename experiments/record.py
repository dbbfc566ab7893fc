"""What a trunk's training leaves in its folder: status, log, curve, results.

Of several ranks the first writes.
"""

import hashlib
import json
import time
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import torch

from experiments import provenance, store
from experiments.spec import RunSpec, TrunkSpec
from minigpt import data
from minigpt.data import Corpus
from minigpt.event import Evaluation
from minigpt.group import Group

STATUS_SECONDS = 5.0


class Record:
    """The folder of one trunk, as long as it is in training here."""

    def __init__(self, trunk: TrunkSpec, folder: Path, group: Group) -> None:
        self.trunk, self.folder, self.group = trunk, folder, group
        self._first = group.rank == 0
        self._began = self._told = time.monotonic()
        self._origin: dict = {}

    def open(self) -> None:
        """Say that it is in training."""
        if self._first:
            store.write_status(self.folder, "running")
            _cut_partial_line(self.folder / "evals.jsonl")

    def opened(self, device: str, corpus: Corpus) -> None:
        """Take down which code, machine and text its results come from."""
        trunk, cuda = self.trunk, device.startswith("cuda")
        commit, dirty = provenance.git()
        available = data.windows(len(corpus.train), trunk.model.seq_len) * trunk.model.seq_len
        self._available = available
        info = corpus.info
        self._bytes_per_token = info.train_bytes and info.train_bytes / info.train_tokens
        self._origin = {
            "device": torch.cuda.get_device_name(device) if cuda else provenance.processor_name(),
            "torch": torch.__version__,
            "world_size": self.group.size,
            "spec_hash": hashlib.sha256(trunk.model_dump_json().encode()).hexdigest(),
            "git_commit": commit,
            "git_dirty": dirty,
        }

    def close(self, state: str) -> None:
        """Say how it ended: done, or stopped."""
        if self._first:
            store.write_status(self.folder, state)

    def failed(self, error: Exception) -> str:
        """Take down why it failed; returns the reason."""
        reason = f"{type(error).__name__}: {error}"
        if self.group.size > 1:
            reason = f"rank {self.group.rank} of {self.group.size}: {reason}"
        self.log(reason)
        try:
            # Of several ranks the first to fail knows why; the others only miss it.
            if self.group.size == 1 or store.read_status(self.folder)["state"] != "failed":
                store.write_status(self.folder, "failed", reason=reason)
        except OSError as second:  # a full disk cannot even hold the reason: the caller hears it
            reason += f" (not recorded: {second})"
        return reason

    def progress(self, run_id: str, step: int, train_loss: float | None) -> None:
        """Say now and then how far it has come."""
        now = time.monotonic()
        if self._first and now - self._told > STATUS_SECONDS:
            self._told = now
            with suppress(OSError):  # a courtesy, in the midst of a step of the ranks
                store.write_status(
                    self.folder,
                    "running",
                    run_id=run_id,
                    step=step,
                    train_loss=train_loss,
                    seconds=now - self._began,
                )

    def point(self, event: Evaluation, run: RunSpec) -> None:
        """Add a point to the curve."""
        values = asdict(event)
        values["run_id"] = run.run_id if values.pop("branch") else None
        with self.group.together():
            if self._first:
                with (self.folder / "evals.jsonl").open("a") as file:
                    file.write(json.dumps(values) + "\n")

    def result(self, run: RunSpec, values: dict) -> dict:
        """Write how a run ended; returns all that is written."""
        whole = {
            **values,
            "run_id": run.run_id,
            **self._origin,
            "unique_tokens": min(run.tokens, self._available),
            "epochs": run.tokens / self._available,
            "bytes": self._bytes_per_token and round(run.tokens * self._bytes_per_token),
            "finished": now(),
        }
        with self.group.together():
            if self._first:
                path = self.folder / f"{run.run_id}.json"
                store.write_atomic(path, json.dumps(whole, indent=1))
                told = f"{whole['status']} {whole.get('val_loss')}"
                self.log(f"{run.run_id} D={run.tokens} {told}")
        return whole

    def log(self, line: str) -> None:
        """Add a line to the log: a courtesy, what it says is also in a status or a result."""
        with suppress(OSError), (self.folder / "log.txt").open("a") as file:
            file.write(f"{now()} {line}\n")


def now() -> str:
    """This moment, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _cut_partial_line(path: Path) -> None:
    """Drop a killed process's half line, so that the next line starts at a line's start."""
    if path.exists():
        text = path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:
            path.write_bytes(whole)
