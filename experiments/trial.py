"""What a benchmark times: a model, its batch and its loop, on text that needs no corpus.

The text is a Markov chain over the vocabulary, so that losses fall as they do on real text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from experiments.reference import ReferenceLoop
from minigpt.config import DataConfig, LearningRates, ModelConfig, ScheduleConfig, TrainConfig
from minigpt.data import Corpus
from minigpt.evaluate import evaluate
from minigpt.loop import REPORT_STEPS
from minigpt.stack import Stack
from minigpt.state import Job, fresh
from minigpt.step import Single

RATE = 1e-3  # the default of torch.optim.Adam, which the reference uses
CHAINS, LINKS, SUCCESSORS = 2048, 512, 8
VAL_TOKENS = 65_536


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One or several models in training. `members` have seeds `seed`, `seed` + 1, ...

    `compiled` is of the stack on a GPU: a sweep compiles what it trains for long.

    `engine`: "reference" is `experiments.reference` (its dtype goes with the device); "single" and
    "stack" are the engines of minigpt, as they train a sweep.
    """

    engine: Literal["reference", "single", "stack"]
    model: ModelConfig
    batch_tokens: int
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    members: int = 1
    seed: int = 0
    compiled: bool = False

    @property
    def tokens(self) -> int:
        """Of one step, all members together."""
        return self.members * self.batch_tokens


def vaswani(
    d_model: int, n_layers: int, n_heads: int, seq_len: int, vocab_size: int
) -> ModelConfig:
    """A model of the reference's preset."""
    return ModelConfig.model_validate(
        {
            "preset": "vaswani",
            "d_model": d_model,
            "n_layers": n_layers,
            "n_heads": n_heads,
            "seq_len": seq_len,
            "vocab_size": vocab_size,
        }
    )


def our_engine(device: str) -> Literal["single", "stack"]:
    """Which engine trains one model on `device` in a sweep (see `minigpt.loop`)."""
    return "stack" if device.startswith("cuda") else "single"


def has_bfloat16(device: str) -> bool:
    """Whether `device` multiplies bfloat16 in hardware."""
    return device.startswith("cuda") or torch.ops.mkldnn._is_mkldnn_bf16_supported()


class Loop:
    """A trial set up, to be trained step by step."""

    def __init__(self, trial: Trial) -> None:
        self.trial, self.corpus = trial, chain(trial.model.vocab_size)
        self.reference: ReferenceLoop | None = None
        if trial.engine == "reference":
            self.reference = ReferenceLoop(
                trial.model,
                self.corpus,
                batch_tokens=trial.batch_tokens,
                seed=trial.seed,
                device=trial.device,
            )
            return
        jobs = [self._job(trial.seed + i) for i in range(trial.members)]
        self.states = [fresh(job) for job in jobs]
        if trial.engine == "stack":
            self.engine: Single | Stack = Stack(jobs, self.states)
        else:
            self.engine = Single(jobs[0], self.states[0])

    def step(self) -> float | Tensor:
        """One step: its loss, or the members' losses_M on the device."""
        if self.reference is not None:
            return self.reference.step()
        losses_M = self.engine.step([1.0] * self.trial.members)
        for state in self.states:
            state.step += 1
        return losses_M

    def run(self, steps: int) -> list[float]:
        """Each step's loss, mean over members; ours are looked at as seldom as in a sweep."""
        if self.reference is not None:
            return [self.reference.step() for _ in range(steps)]
        losses, unseen = [], []
        for i in range(1, steps + 1):
            unseen.append(self.step())
            if i % REPORT_STEPS == 0 or i == steps:
                losses += torch.stack(unseen).mean(dim=1).tolist()
                unseen.clear()
        return losses

    def held_out(self) -> list[float]:
        """Held-out loss of each of our members, nats per token."""
        trial = self.trial
        models = [state.model for state in self.states]
        return [
            evaluate(model, self.corpus, VAL_TOKENS - 1, trial.device, trial.dtype)[0]
            for model in models
        ]

    def _job(self, seed: int) -> Job:
        rates = dict.fromkeys(LearningRates.model_fields, RATE)
        train = TrainConfig(
            optimizer="adam",
            beta1=0.9,
            beta2=0.999,
            eps=1e-8,
            dtype=self.trial.dtype,
            lr=LearningRates(**rates),
            schedule=ScheduleConfig(),
            batch_tokens=self.trial.batch_tokens,
            seed=seed,
        )
        return Job(
            model=self.trial.model,
            data=DataConfig(),
            train=train,
            corpus=self.corpus,
            folder=Path(),  # nothing is written
            device=self.trial.device,
            compiled=self.trial.compiled,
        )


def chain(vocab_size: int) -> Corpus:
    """About a million tokens, each followed by one of SUCCESSORS, and VAL_TOKENS held out.

    Its entropy is ln SUCCESSORS = 2.08 nats per token, and a little less, as successors repeat.
    """
    rng = np.random.default_rng(0)
    next_VS = (vocab_size * rng.random((vocab_size, SUCCESSORS)) ** 3).astype("<u2")  # rare, common
    tokens_LC = np.empty((LINKS, CHAINS), "<u2")
    tokens_LC[0] = rng.integers(0, vocab_size, CHAINS)
    for link in range(1, LINKS):
        tokens_LC[link] = next_VS[tokens_LC[link - 1], rng.integers(0, SUCCESSORS, CHAINS)]
    shard = np.ascontiguousarray(tokens_LC.T).reshape(-1)
    facts = None  # nothing reads them here
    return Corpus(facts, shard[:-VAL_TOKENS], shard[-VAL_TOKENS:])  # type: ignore[arg-type]


def gaps(losses: Sequence[float], others: Sequence[float], each: int) -> tuple[float, float]:
    """Largest and last |difference| of two loss curves, means over `each` steps."""
    a, b = (np.array(x)[: len(x) // each * each].reshape(-1, each) for x in (losses, others))
    difference = np.abs(a.mean(axis=1) - b.mean(axis=1))
    return float(difference.max()), float(difference[-1])
