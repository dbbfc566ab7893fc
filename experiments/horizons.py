"""The horizons of one trunk in whole steps: checked against the budget, the warm-up, the text."""

import math

from experiments.config import ConfigError
from experiments.grid import Cell, training_tokens
from minigpt import schedule
from minigpt.config import TrainConfig
from minigpt.counts import flops_per_token
from minigpt.data import CorpusInfo
from minigpt.schedule import Horizon

FLOPS_SHARE = 0.01  # a curve of equal C is one only if whole steps keep C this close
WARMUP_SHARE = 0.03  # of the shortest horizon; a longer warm-up fakes a steeper beta


def placed(
    train: TrainConfig, corpus: CorpusInfo, max_epochs: float, group: list[Cell]
) -> list[Horizon]:
    """The horizons of the cells of one trunk, in their order.

    Raises ConfigError for one that cannot be trained as it stands, or is another one's in steps.
    """
    made: dict[int, Cell] = {}
    found = []
    available = training_tokens(corpus, group[0].model.seq_len)
    for cell in group:
        at = schedule.horizon(train.schedule, cell.tokens, train.batch_tokens)
        tokens, named = at.stop * train.batch_tokens, f"horizon of {cell}"
        where = f"{cell.where}: {named}"
        _check_budget(cell, tokens, train.batch_tokens, where)
        if at.stop in made:
            raise ConfigError(
                f"{where} and that of {made[at.stop].tokens:,} tokens are both {at.stop} steps of "
                f"{train.batch_tokens:,} tokens; remove one, or lower the batch"
            )
        short = _too_short(train, cell.tokens, whole_step=cell.doublings is not None)
        if short and cell.doublings:
            where = f"grid.tokens.doublings = {cell.doublings}: {named}"
            raise ConfigError(f"{where}{short}{_fewer(train, cell.tokens, cell.doublings)}")
        if short:
            raise ConfigError(f"{where}{short}")
        if tokens > available * max_epochs:
            epochs = tokens / available
            raise ConfigError(
                f"{where} needs {epochs:.2f} epochs of the corpus's {available:,} training tokens, "
                f"data.max_epochs = {max_epochs:g}; shorten the horizon, give more text, or ask "
                f"for repetition with data.max_epochs={math.ceil(100 * epochs) / 100:g}"
            )
        made[at.stop] = cell
        found.append(at)
    return found


def _too_short(train: TrainConfig, tokens: int, whole_step: bool) -> str | None:
    """What a horizon of `tokens` is too short for, with the remedy; None if for nothing.

    A listed horizon below one step is one step; with `whole_step` it is refused.
    """
    warmup, batch = train.schedule.warmup_tokens, train.batch_tokens
    cooldown = schedule.horizon(train.schedule, tokens, batch).start * batch
    if whole_step and tokens < batch:
        return f" is shorter than one step of {batch:,} tokens; lower the batch"
    if tokens <= warmup:
        return (
            f" is not longer than schedule.warmup_tokens = {warmup:,}; shorten the warm-up "
            f"({WARMUP_SHARE:.0%} of the shortest horizon is plenty)"
        )
    if train.schedule.kind == "wsd" and cooldown < warmup:
        return (
            f": its cooldown starts at {cooldown:,} tokens, inside schedule.warmup_tokens = "
            f"{warmup:,}; shorten the warm-up or the cooldown"
        )
    return None


def _fewer(train: TrainConfig, tokens: int, count: int) -> str:
    """The remedy where the shortest of `count` doublings, `tokens`, is too short: fewer of them."""
    while count and _too_short(train, tokens, whole_step=True):
        count, tokens = count - 1, 2 * tokens
    return f", or ask for fewer: grid.tokens.doublings={count}" if count else ""


def _check_budget(cell: Cell, tokens: int, batch: int, where: str) -> None:
    """Refuse a budget that whole steps miss by more than FLOPS_SHARE."""
    if cell.flops is None:
        return
    per_token = flops_per_token(cell.model).exact
    off = tokens * per_token / cell.flops - 1
    if abs(off) > FLOPS_SHARE:
        # Half a step is FLOPS_SHARE of these; 5 % more, because two digits may round it down.
        enough = 1.05 * 0.5 * batch / FLOPS_SHARE * per_token
        fine = int(2 * FLOPS_SHARE * cell.tokens) // cell.model.seq_len * cell.model.seq_len
        lower = f"lower the batch to {fine:,} tokens or less, or " if fine else ""
        raise ConfigError(
            f"{where}: its {tokens // batch:,} whole steps of {batch:,} tokens take "
            f"{tokens * per_token:.4g} FLOP, {off:+.1%} off its budget (more than "
            f"{FLOPS_SHARE:.0%}); {lower}raise flops to {enough:.2g} or more"
        )
