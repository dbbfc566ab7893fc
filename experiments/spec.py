"""What one unit of work is: a trunk, the runs that branch off it, what its training says."""

from collections.abc import Collection
from dataclasses import dataclass

from pydantic import Field

from minigpt.config import DataConfig, Frozen, ModelConfig, TrainConfig
from minigpt.counts import flops_per_token, parameter_counts


class RunSpec(Frozen):
    """One run: a horizon of its trunk. The branch is steps `start` to `stop`; `tokens` is D."""

    run_id: str
    tokens: int
    start: int
    stop: int
    holdout: bool


class TrunkSpec(Frozen):
    """One unit of work: a trunk and its runs, shortest first; its id hashes what matters."""

    trunk_id: str
    sweep: str
    arm: str
    lr_multiplier: float
    lr_rule: str
    batch_rule: str
    model: ModelConfig
    data: DataConfig
    data_sha256: str
    val_sha256: str
    tokenizer_sha256: str | None = None
    evals_sha256: dict[str, str] = Field(default_factory=dict)
    train: TrainConfig
    runs: tuple[RunSpec, ...]

    @property
    def n_total(self) -> int:
        """All parameters of the model (N)."""
        return parameter_counts(self.model).total

    def flops(self, run: RunSpec) -> float:
        """Training FLOPs of `run` as if trained alone (C), by the exact convention."""
        return run.tokens * flops_per_token(self.model).exact

    def cost(self, done: Collection[str] = ()) -> float:
        """FLOPs that the runs whose ids are not in `done` still take, on their shared trunk."""
        per_step = self.train.batch_tokens * flops_per_token(self.model).exact
        return self.steps(done) * per_step

    def steps(self, done: Collection[str] = ()) -> int:
        """Optimiser steps that the runs whose ids are not in `done` still take.

        A done run has left the trunk where it branched off: the trunk goes on from there.
        """
        at = steps = 0
        for run in self.runs:
            if run.run_id not in done:
                steps += run.stop - at
            at = run.start
        return steps


@dataclass(frozen=True, kw_only=True)
class Event:
    """What a trunk's training says of itself: `kind` is progress, finished or failed.

    Of trunks in other processes there is also `overview`: no trunk's, `reason` says how many wait.
    """

    kind: str
    trunk_id: str = ""
    run_id: str | None = None
    step: int | None = None
    tokens_per_second: float | None = None
    train_loss: float | None = None
    result: dict | None = None
    reason: str | None = None
