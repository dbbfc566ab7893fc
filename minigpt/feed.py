"""What a stack trains on next: each member's batch and rates, as the device wants them.

Shapes: M members, B batch, A steps ahead, S slots, G groups of parameters.
"""

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from minigpt import data
from minigpt.state import Job, State

HALVED = ("hidden", "head")  # groups that a bfloat16 step casts to bfloat16, all at once
GROUPS = (*HALVED, "embedding", "vector")
AHEAD = 64  # steps whose data are looked up together; more than lie between two looks at losses


class Feed:
    """Where each member's next batch lies and at what rates it trains, on the device."""

    def __init__(self, jobs: Sequence[Job], states: Sequence[State], device: torch.device) -> None:
        self.jobs, self.states = jobs, states
        self.lr_MG = np.array([[getattr(job.train.lr, name) for name in GROUPS] for job in jobs])
        B = jobs[0].train.batch_tokens // jobs[0].model.seq_len
        self.windows_MB = torch.zeros(len(jobs), B, dtype=torch.int64, device=device)
        self.rates_MG = torch.zeros(self.lr_MG.shape, device=device)
        pinned = device.type == "cuda"  # so that copies do not wait; a slot is free AHEAD steps on
        slots = AHEAD if pinned else 1
        self.windows_SMB = torch.empty(slots, len(jobs), B, dtype=torch.int64, pin_memory=pinned)
        self.rates_SMG = torch.empty(slots, *self.lr_MG.shape, pin_memory=pinned)
        self.ahead: list[tuple[int, np.ndarray]] = [(-AHEAD, np.empty((0, B)))] * len(jobs)
        self.count = 0

    def next(self, factors: Sequence[float]) -> None:
        """Look up the batches of the members' steps."""
        slot = self.count % len(self.windows_SMB)
        self.count += 1
        for i, state in enumerate(self.states):
            self.windows_SMB.numpy()[slot, i] = self._windows(i, state.step)
        self.rates_SMG.numpy()[slot] = self.lr_MG * np.array(factors)[:, None]
        self.windows_MB.copy_(self.windows_SMB[slot], non_blocking=True)
        self.rates_MG.copy_(self.rates_SMG[slot], non_blocking=True)

    def _windows(self, i: int, step: int) -> np.ndarray:
        first, windows_AB = self.ahead[i]
        if not first <= step < first + AHEAD:
            job, B = self.jobs[i], self.windows_MB.shape[1]
            windows_AB = data.order(
                len(job.corpus.train),
                seed=job.train.seed,
                first=step * B,
                count=AHEAD * B,
                seq_len=job.model.seq_len,
            ).reshape(AHEAD, B)
            first, self.ahead[i] = step, (step, windows_AB)
        return windows_AB[step - first]


@functools.lru_cache(maxsize=2)
def training_shard(corpus: data.Corpus, device: torch.device) -> Tensor:
    """The training shard on `device`, as the int16 that torch can index, once for all stacks."""
    return torch.from_numpy(corpus.train.view("<i2")).to(device)


def tokens_at(shard: Tensor, place: Tensor) -> Tensor:
    """Token ids (int64) at places of a training shard."""
    return shard[place].long() & 0xFFFF
