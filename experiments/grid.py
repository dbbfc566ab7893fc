"""The cells of a sweep's grid: sizes × horizons × seeds × rates × batches, and the explicit
runs."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from experiments.axes import Doublings, Run, Scalar
from experiments.config import ConfigError, SweepConfig
from experiments.corpora import Corpora
from experiments.models import model_of
from experiments.rules import ConstantBatch
from minigpt.config import ModelConfig
from minigpt.counts import flops_per_token, parameter_counts
from minigpt.data import CorpusInfo, windows

LARGEST = 2**62  # tokens; a horizon is a 64-bit integer in every file


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One wished-for run; `lr` and `batch_tokens` are None where the rules decide.

    `where` is its place in the config. `flops` is the budget that `tokens` were computed from, and
    `doublings` the number of horizons of which `tokens` is one; None where the config gives tokens.
    """

    where: str
    model: ModelConfig
    tokens: int
    flops: float | None
    doublings: int | None
    seed: int
    lr: float | None
    lr_multiplier: float
    batch_tokens: int | None
    arm: str
    holdout: bool

    def __str__(self) -> str:
        """As messages name it: its horizon, its model and what sets it apart."""
        arm = "" if self.arm == "main" else f", {self.arm}"
        budget = "" if self.flops is None else f" (flops = {self.flops:g})"
        model = f"d_model = {self.model.d_model}"
        return f"{self.tokens:,} tokens{budget} at {model}, seed = {self.seed}{arm}"


def cells(config: SweepConfig, corpora: Corpora) -> list[Cell]:
    """Every cell of the sweep, its model checked.

    Raises ConfigError for a model that cannot be built, a holdout that matches nothing or more
    doublings than D_max has.
    """
    sizes = list(_of_sizes(config, corpora, _doublings(config, corpora)))
    found = [*sizes, *_of_runs(config, corpora, sizes)]
    for match in config.grid.holdout:
        if not any(_matches(match, cell) for cell in found):
            raise ConfigError(
                f"grid.holdout: {match} matches no run; it must equal a size's keys, tokens, "
                "flops or seed"
            )
    return [
        replace(cell, holdout=True)
        if any(_matches(match, cell) for match in config.grid.holdout)
        else cell
        for cell in found
    ]


def training_tokens(corpus: CorpusInfo, seq_len: int) -> int:
    """Tokens of one epoch in whole windows. Raises ConfigError where there is no window."""
    available = windows(corpus.train_tokens, seq_len) * seq_len
    if available <= 0:
        raise ConfigError(
            f"the corpus's {corpus.train_tokens:,} training tokens hold no window of "
            f"seq_len = {seq_len}; give more text or shorten seq_len"
        )
    return available


def largest_horizon(config: SweepConfig, corpora: Corpora) -> tuple[int, int]:
    """D_max: the largest power of two of tokens within max_epochs, and the tokens of an epoch.

    Both are those of the size with the fewest, so that the horizons of all sizes are the same.
    """
    sizes = enumerate(config.grid.sizes)
    models = [model_of(config, corpora.least, s.model, f"grid.sizes[{i}]") for i, s in sizes]
    epoch = min(training_tokens(corpora.of(model), model.seq_len) for model in models)
    trained = int(min(epoch * config.data.max_epochs, LARGEST))
    return 1 << max(0, trained.bit_length() - 1), epoch


def _doublings(config: SweepConfig, corpora: Corpora) -> tuple[int, ...]:
    """The horizons of `tokens = { doublings = n }`, shortest first; none of another grid."""
    asked = config.grid.tokens
    if not isinstance(asked, Doublings) or not config.grid.sizes:
        return ()
    largest, _ = largest_horizon(config, corpora)
    if asked.doublings > largest.bit_length():
        raise ConfigError(
            f"grid.tokens.doublings = {asked.doublings}: the shortest horizon would be less than a "
            f"token, because D_max = {largest:,} tokens; use {largest.bit_length()} or fewer"
        )
    return tuple(largest >> i for i in reversed(range(asked.doublings)))


def _of_sizes(config: SweepConfig, corpora: Corpora, doublings: tuple[int, ...]) -> Iterator[Cell]:
    grid = config.grid
    count = len(doublings) or None
    listed = doublings if isinstance(grid.tokens, Doublings) else grid.tokens
    for i, size in enumerate(grid.sizes):
        where = f"grid.sizes[{i}]"
        model = model_of(config, corpora.least, size.model, where)
        n_total = parameter_counts(model).total
        per_param = tuple(round(r * n_total) for r in grid.tokens_per_param)
        horizons = [(tokens, None) for tokens in listed or per_param]
        horizons += [(_tokens(flops, model), flops) for flops in grid.flops]
        for seed in size.seeds or grid.seeds:
            for multiplier in grid.lr_multipliers:
                for batch in grid.batch_tokens or (None,):
                    arm = corpora.arm(model)
                    arm += [f"lr*{multiplier:g}"] if multiplier != 1 else []
                    arm += [f"batch={batch}"] if batch not in (None, *grid.batch_tokens[:1]) else []
                    for tokens, flops in horizons:
                        yield Cell(
                            where=where,
                            model=model,
                            tokens=tokens,
                            flops=flops,
                            doublings=count,
                            seed=seed,
                            lr=None,
                            lr_multiplier=multiplier,
                            batch_tokens=batch,
                            arm=_arm(arm),
                            holdout=False,
                        )


def _of_runs(config: SweepConfig, corpora: Corpora, sizes: list[Cell]) -> Iterator[Cell]:
    """Explicit runs; the second recipe for a model and seed is an arm of its own, not main."""
    grid = config.grid
    usual_batch = grid.batch_tokens[0] if grid.batch_tokens else None
    main: dict[tuple[ModelConfig, int], tuple] = {
        (cell.model, cell.seed): (None, usual_batch)
        for cell in sizes
        if cell.arm == _arm(corpora.arm(cell.model))
    }
    for i, run in enumerate(grid.runs):
        where = f"grid.runs[{i}]"
        model = model_of(config, corpora.least, run.model, where)
        seed = grid.seeds[0] if run.seed is None else run.seed
        lr, batch = recipe = _recipe(config, run, usual_batch)
        arm = [f"lr*{run.lr_multiplier:g}"] if run.lr_multiplier != 1 else []
        main_lr, main_batch = main.setdefault((model, seed), recipe)
        arm += [f"lr={lr:g}"] if lr not in (None, main_lr) else []
        arm += [f"batch={batch}"] if batch not in (None, main_batch) else []
        if not arm and recipe != (main_lr, main_batch):
            arm = ["rule"]  # what the sweep's rules say, after a run that said otherwise
        yield Cell(
            where=where,
            model=model,
            tokens=_tokens(run.flops, model) if run.tokens is None else run.tokens,
            flops=run.flops,
            doublings=None,
            seed=seed,
            lr=lr,
            lr_multiplier=run.lr_multiplier,
            batch_tokens=batch,
            arm=_arm([*corpora.arm(model), *arm]),
            holdout=run.holdout,
        )


def _arm(parts: list[str]) -> str:
    return " ".join(parts) or "main"


def _recipe(
    config: SweepConfig, run: Run, usual_batch: int | None
) -> tuple[float | None, int | None]:
    """Rate and batch of an explicit run, None where it writes out what the sweep's rule says.

    So such a run joins the trunk of the grid.
    """
    lr, batch, rule = run.lr, run.batch_tokens or usual_batch, config.train.batch
    if lr == getattr(config.train.lr, "value", None):
        lr = None
    if usual_batch is None and isinstance(rule, ConstantBatch) and batch == rule.tokens:
        batch = None
    return lr, batch


def _tokens(flops: float | None, model: ModelConfig) -> int:
    """Tokens D = C / (FLOPs per token) of a budget C, exact convention, not yet whole steps."""
    assert flops is not None  # a run has tokens or flops
    return max(1, round(flops / flops_per_token(model).exact))


def _matches(match: dict[str, Scalar], cell: Cell) -> bool:
    values = {**dict(cell.model), "d_head": cell.model.d_head}
    values |= {"tokens": cell.tokens, "flops": cell.flops, "seed": cell.seed}
    return all(values[key] == value for key, value in match.items())
