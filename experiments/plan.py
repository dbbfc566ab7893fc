"""SweepConfig -> trunks with their runs: pure, free of torch; ids are hashes of content.

A trunk is model, data, optimiser and seed, without horizons; a run is one horizon of a trunk. Rules
become numbers here, before hashing, so an id never depends on how a number was written down.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import ValidationError

from experiments import rules
from experiments.config import ConfigError, Scalar, SweepConfig
from experiments.spec import RunSpec, TrunkSpec
from minigpt import schedule
from minigpt.config import ModelConfig, TrainConfig
from minigpt.counts import parameter_counts
from minigpt.data import BYTE_VOCABULARY, CorpusInfo, windows

MIN_STEPS = 500  # the analysis does not use shorter runs
TRUNK_SPAN = 8.0  # one constant rate is not right for horizons further apart
WARMUP_SHARE = 0.03  # of the shortest horizon; a longer warm-up fakes a steeper beta


@dataclass(frozen=True, kw_only=True)
class _Wish:
    """One cell of the grid before trunks are formed."""

    model: ModelConfig
    tokens: int
    seed: int
    lr: float | None
    lr_multiplier: float
    batch_tokens: int | None
    arm: str
    holdout: bool


def expand(config: SweepConfig, corpus: CorpusInfo) -> list[TrunkSpec]:
    """All trunks of the sweep, largest cost first.

    Raises ConfigError for a grid that cannot be trained on this corpus as it stands.
    """
    grouped: dict[str, list[_Wish]] = {}
    for wish in _wishes(config):
        key = wish.model.model_dump_json() + repr(
            (wish.seed, wish.lr, wish.lr_multiplier, wish.batch_tokens, wish.arm)
        )
        grouped.setdefault(key, []).append(wish)
    trunks: dict[str, TrunkSpec] = {}
    for wishes in grouped.values():
        for trunk in _trunks(config, corpus, wishes):
            if trunk.trunk_id in trunks:
                raise ConfigError(
                    f"grid: d_model = {trunk.model.d_model}, seed = {trunk.train.seed} is asked "
                    "for twice "
                    "with the same recipe; remove one of the two"
                )
            trunks[trunk.trunk_id] = trunk
    return sorted(trunks.values(), key=lambda t: (-t.cost(), t.trunk_id))


def warnings(trunks: list[TrunkSpec]) -> list[str]:
    """What a careful reader would object to in this grid, one sentence each."""
    found = []
    short = sum(run.stop < MIN_STEPS for trunk in trunks for run in trunk.runs)
    if short:
        found.append(
            f"{short} runs have fewer than {MIN_STEPS} steps: they are trained, but no fit will "
            "use them; "
            "lower the batch or lengthen the horizon"
        )
    for trunk in trunks:
        span = trunk.runs[-1].tokens / trunk.runs[0].tokens
        kind = trunk.train.schedule
        if kind.kind == "wsd" and kind.trunk == "constant" and span > TRUNK_SPAN:
            found.append(
                f"a constant trunk spans {span:.1f}x in tokens (more than {TRUNK_SPAN:g}x): its "
                "rate cannot suit "
                "both ends; use schedule.trunk = 'power', or a sweep per part"
            )
            break
    shortest = min(trunk.runs[0].tokens for trunk in trunks)
    warmup = max(trunk.train.schedule.warmup_tokens for trunk in trunks)
    if warmup > WARMUP_SHARE * shortest:
        found.append(
            f"warmup_tokens = {warmup:,} is {warmup / shortest:.1%} of the shortest horizon "
            f"({shortest:,}): "
            f"above {WARMUP_SHARE:.0%} it fakes a steeper beta"
        )
    return found


def _wishes(config: SweepConfig) -> Iterator[_Wish]:
    grid = config.grid
    for i, size in enumerate(grid.sizes):
        model = _model(config, size.model, f"grid.sizes[{i}]")
        n_total = parameter_counts(model).total
        horizons = grid.tokens or tuple(round(r * n_total) for r in grid.tokens_per_param)
        for seed in size.seeds or grid.seeds:
            for multiplier in grid.lr_multipliers:
                for batch in grid.batch_tokens or (None,):
                    arm = [] if multiplier == 1 else [f"lr*{multiplier:g}"]
                    arm += [f"batch={batch}"] if batch not in (None, *grid.batch_tokens[:1]) else []
                    for tokens in horizons:
                        yield _Wish(
                            model=model,
                            tokens=tokens,
                            seed=seed,
                            lr=None,
                            lr_multiplier=multiplier,
                            batch_tokens=batch,
                            arm=" ".join(arm) or "main",
                            holdout=_held_out(config, model, tokens, seed),
                        )
    for i, run in enumerate(grid.runs):
        model = _model(config, run.model, f"grid.runs[{i}]")
        seed = grid.seeds[0] if run.seed is None else run.seed
        yield _Wish(
            model=model,
            tokens=run.tokens,
            seed=seed,
            lr=run.lr,
            lr_multiplier=run.lr_multiplier,
            batch_tokens=run.batch_tokens,
            arm="main",
            holdout=run.holdout or _held_out(config, model, run.tokens, seed),
        )


def _model(config: SweepConfig, own: dict[str, Scalar], where: str) -> ModelConfig:
    """[model] overlaid with one size's keys, checked; `d_head` stands for d_model / n_heads."""
    values = {"vocab_size": BYTE_VOCABULARY, **config.model, **own}
    if "n_heads" in own:
        values.pop("d_head", None)
    if "d_head" in values:
        d_head, d_model = values.pop("d_head"), values.get("d_model")
        if "n_heads" in values and "d_head" not in own:
            raise ConfigError("[model]: give d_head or n_heads, not both")
        if (
            not isinstance(d_head, int)
            or not isinstance(d_model, int)
            or d_head < 1
            or d_model % d_head
        ):
            raise ConfigError(
                f"{where}: d_head = {d_head!r} does not divide d_model = {d_model!r}; "
                "choose a multiple of d_head for d_model"
            )
        values["n_heads"] = d_model // d_head
    try:
        model = ModelConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        rule = first["msg"].removeprefix("Value error, ")
        told = f"{key} = {first['input']!r}: {rule}" if key and first["type"] != "missing" else rule
        told = f"missing key '{key}' (here or in [model])" if first["type"] == "missing" else told
        raise ConfigError(f"{where}: {told}") from None
    if model.vocab_size < BYTE_VOCABULARY:
        raise ConfigError(
            f"{where}: vocab_size = {model.vocab_size} is smaller than the byte vocabulary; "
            f"use {BYTE_VOCABULARY} or leave it out"
        )
    return model


def _held_out(config: SweepConfig, model: ModelConfig, tokens: int, seed: int) -> bool:
    values = {**model.model_dump(), "d_head": model.d_head, "tokens": tokens, "seed": seed}
    return any(all(values[k] == v for k, v in match.items()) for match in config.grid.holdout)


def _trunks(config: SweepConfig, corpus: CorpusInfo, wishes: list[_Wish]) -> Iterator[TrunkSpec]:
    """One trunk for all horizons (wsd), or one for each (cosine)."""
    train, first = config.train, wishes[0]
    horizons = sorted(wish.tokens for wish in wishes)
    batch = first.batch_tokens or train.batch.resolve(first.model, horizons)
    if batch % first.model.seq_len:
        raise ConfigError(
            f"batch = {batch} tokens is not a multiple of seq_len = {first.model.seq_len}; "
            f"use {max(1, round(batch / first.model.seq_len)) * first.model.seq_len}"
        )
    lr_rule = train.lr if first.lr is None else train.lr.model_copy(update={"value": first.lr})
    lr = rules.scaled(lr_rule.resolve(first.model, horizons), first.lr_multiplier)
    numbers = TrainConfig(
        **train.model_dump(exclude={"batch", "lr", "grad_clip"}),
        grad_clip=None if train.grad_clip == "off" else train.grad_clip,
        lr=lr,
        schedule=config.schedule,
        batch_tokens=batch,
        seed=first.seed,
    )
    identity = {
        "model": first.model.model_dump(),
        "data": [
            corpus.data_sha256,
            corpus.val_sha256,
            config.data.eval_tokens,
            config.data.curve_eval_tokens,
        ],
        "train": numbers.model_dump(),
    }
    runs = _runs(numbers, corpus, config, wishes)
    groups = [runs] if config.schedule.kind == "wsd" else [(run,) for run in runs]
    for group in groups:
        own = identity if config.schedule.kind == "wsd" else {**identity, "horizon": group[0].stop}
        trunk_id = _hash(own)
        yield TrunkSpec(
            trunk_id=trunk_id,
            sweep=config.name,
            arm=first.arm,
            lr_multiplier=first.lr_multiplier,
            lr_rule=rules.text(lr_rule),
            batch_rule=rules.text(train.batch) if first.batch_tokens is None else f"grid({batch})",
            model=first.model,
            data=config.data,
            data_sha256=corpus.data_sha256,
            val_sha256=corpus.val_sha256,
            train=numbers,
            runs=tuple(
                run.model_copy(update={"run_id": _hash([trunk_id, run.stop, run.start])})
                for run in group
            ),
        )


def _runs(
    train: TrainConfig, corpus: CorpusInfo, config: SweepConfig, wishes: list[_Wish]
) -> tuple[RunSpec, ...]:
    """The horizons of one trunk, checked against each other, the warm-up and the corpus."""
    made: dict[int, tuple[RunSpec, _Wish]] = {}
    warmup = train.schedule.warmup_tokens
    for wish in sorted(wishes, key=lambda w: w.tokens):
        at = schedule.horizon(train.schedule, wish.tokens, train.batch_tokens)
        where = f"grid: horizon of {wish.tokens:,} tokens (d_model = {wish.model.d_model})"
        if at.stop in made:
            raise ConfigError(
                f"{where} and that of {made[at.stop][1].tokens:,} tokens are both {at.stop} steps "
                "of "
                f"{train.batch_tokens:,} tokens; remove one, or lower the batch"
            )
        if wish.tokens <= warmup:
            raise ConfigError(
                f"{where} is not longer than schedule.warmup_tokens = {warmup:,}; shorten the "
                "warm-up "
                "(3 % of the shortest horizon is plenty)"
            )
        if train.schedule.kind == "wsd" and at.start * train.batch_tokens < warmup:
            raise ConfigError(
                f"{where}: its cooldown starts at {at.start * train.batch_tokens:,} tokens, inside "
                f"schedule.warmup_tokens = {warmup:,}; shorten the warm-up or the cooldown"
            )
        available = windows(corpus.train_tokens, wish.model.seq_len) * wish.model.seq_len
        tokens = at.stop * train.batch_tokens
        if tokens > available * config.data.max_epochs:
            raise ConfigError(
                f"{where} needs {tokens / available:.2f} epochs of the corpus's {available:,} "
                "training tokens, "
                f"data.max_epochs = {config.data.max_epochs:g}; shorten the horizon, give more "
                "text, or ask for "
                f"repetition with data.max_epochs={tokens / available:.2f} or more"
            )
        run = RunSpec(run_id="", tokens=tokens, start=at.start, stop=at.stop, holdout=wish.holdout)
        made[at.stop] = (run, wish)
    return tuple(run for run, _ in made.values())


def _hash(values: object) -> str:
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]
