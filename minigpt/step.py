"""One optimiser step of one model, by one process or by several ranks."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from minigpt import data, optim
from minigpt.evaluate import precision
from minigpt.state import Job, State


class Single:
    """A model by itself; `step` trains it by its next batch, of which every rank has its part."""

    def __init__(self, job: Job, state: State) -> None:
        self.job, self.state = job, state
        self.batch_size = job.train.batch_tokens // job.model.seq_len
        self.masks: torch.Generator | None = None
        if job.model.dropout:
            self.masks = state.model.dropout.draw = torch.Generator(job.device)

    def step(self, factors: Sequence[float]) -> Tensor:
        """One step at the peak rates times the only factor; losses_M, in nats per token, M = 1."""
        job, state, config = self.job, self.state, self.job.train
        optim.set_rates(state.optimizer, config.lr, factors[0])
        inputs, targets = data.batch(
            job.corpus,
            seed=config.seed,
            step=state.step,
            batch_size=self.batch_size,
            seq_len=job.model.seq_len,
            rows=job.group.rows(self.batch_size),
        )
        tokens_BT, targets_BT = (torch.from_numpy(x).to(job.device) for x in (inputs, targets))
        parts = list(zip(*(t.chunk(job.passes) for t in (tokens_BT, targets_BT)), strict=True))
        total = torch.zeros((), device=job.device)
        for i, (own, wanted) in enumerate(parts):
            if self.masks is not None:
                self.masks.manual_seed(mask_seed(config.seed, state.step, i, job.group.rank))
            with job.group.accumulating(state.wrapped, last=i == len(parts) - 1):
                with precision(job.device, config.dtype):
                    loss = state.wrapped(own, wanted)
                loss = loss * (len(own) / len(tokens_BT)) if len(parts) > 1 else loss
                loss.backward()
            total = total + loss.detach() if len(parts) > 1 else loss.detach()
        optim.clip(state.model, config.grad_clip)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        return job.group.mean(total)[None]


def mask_seed(seed: int, step: int, part: int, rank: int) -> int:
    """The seed of what dropout drops in one part of a step's batch, on one rank."""
    sequence = np.random.SeedSequence(seed, spawn_key=(step, part, rank))
    return int(sequence.generate_state(1, np.uint64)[0])
