"""One optimiser step of one model, by one process or by several ranks."""

from collections.abc import Sequence

import torch
from torch import Tensor

from minigpt import data, optim
from minigpt.evaluate import logits
from minigpt.loss import cross_entropy
from minigpt.state import Job, State


class Single:
    """A model by itself; `step` trains it by its next batch, of which every rank has its part."""

    def __init__(self, job: Job, state: State) -> None:
        self.job, self.state = job, state
        self.batch_size = job.train.batch_tokens // job.model.seq_len

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
        logits_BTV = logits(state.wrapped, inputs, job.device, config.dtype)
        loss = cross_entropy(logits_BTV, torch.from_numpy(targets).to(job.device))
        loss.backward()
        optim.clip(state.model, config.grad_clip)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        return job.group.mean(loss.detach())[None]
