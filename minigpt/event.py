"""What training tells of one model: signs of life, points of its curve, how it ended."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A sign of life: the step reached and the last loss that was looked at."""

    step: int
    train_loss: float | None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One point of a training curve; `branch` is False on the trunk, where no rate is annealed.

    Losses in nats per token: `train_loss` the mean since the last point, `val_loss` over the first
    `curve_eval_tokens` held-out tokens with its standard error over sequences. `seconds` is the
    wall time of the run so far.
    """

    step: int
    branch: bool
    lr: float
    train_loss: float
    val_loss: float
    val_loss_se: float | None
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Result:
    """The end of a horizon: `ok` with its final losses, or `diverged` with the reason.

    `evals` has, by name, loss, standard error, bits per byte and tokens of more held-out sets.
    `step` is the last one trained, `from_step` where this run's own part began: `seconds` (wall)
    and `cpu_seconds` (process) cover that part, evaluations and earlier processes of the same run
    included, and whatever was trained side by side with it.
    """

    status: str
    reason: str | None
    on_trunk: bool
    step: int
    from_step: int
    seconds: float
    cpu_seconds: float
    train_loss: float | None = None
    val_loss: float | None = None
    val_loss_se: float | None = None
    val_bpb: float | None = None
    eval_tokens: int | None = None
    eval_seconds: float | None = None
    evals: dict[str, dict] | None = None


Event = Progress | Evaluation | Result
