"""SweepConfig -> trunks with their runs: pure, free of torch; ids are hashes of content.

A trunk is model, data, optimiser and seed, without horizons; a run is one horizon of a trunk. Rules
become numbers here, before hashing, so an id never depends on how a number was written down.
"""

import hashlib
import itertools
import json

from experiments import rules
from experiments.config import ConfigError, SweepConfig
from experiments.corpora import Corpora, resolved
from experiments.grid import Cell, cells
from experiments.horizons import WARMUP_SHARE, placed
from experiments.rules import ConstantRate, LearningRateRule
from experiments.spec import RunSpec, TrunkSpec
from minigpt.config import TrainConfig, sequences_per_rank

MIN_STEPS = 500  # the analysis does not use shorter runs
TRUNK_SPAN = 8.0  # one constant rate is not right for horizons further apart


def expand(config: SweepConfig, corpora: Corpora) -> list[TrunkSpec]:
    """All trunks of the sweep, largest cost first.

    Raises ConfigError for a grid that cannot be trained on this corpus as it stands.
    """
    groups: dict[str, list[Cell]] = {}
    for cell in cells(config, corpora):
        key = [cell.model.model_dump(), cell.seed, cell.lr, cell.lr_multiplier, cell.batch_tokens]
        groups.setdefault(json.dumps(key), []).append(cell)
    trunks: dict[str, TrunkSpec] = {}
    for group in groups.values():
        ordered = sorted(group, key=lambda cell: cell.tokens)
        for a, b in itertools.pairwise(ordered):
            if a.tokens == b.tokens:
                twice = f"{b.where}: {b} is asked for twice; remove one of the two"
                raise ConfigError(twice)
        # With cosine every horizon is a trunk of its own.
        parts = [ordered] if config.schedule.kind == "wsd" else [[cell] for cell in ordered]
        for part in parts:
            trunk = _trunk(config, corpora, part)
            if trunk.trunk_id in trunks:
                raise ConfigError(
                    f"{part[0].where}: {part[0]}: two ways to write the learning rate or "
                    "batch of one trunk come to the same numbers; write both in one way"
                )
            trunks[trunk.trunk_id] = trunk
    for trunk in trunks.values():
        ranks = config.launch.resources(trunk.n_total).ranks
        try:
            sequences_per_rank(trunk.train.batch_tokens, trunk.model.seq_len, ranks)
        except ValueError as error:
            raise ConfigError(f"launch.ranks = {ranks}: {error}") from None
    return sorted(trunks.values(), key=lambda t: (-t.cost(), t.trunk_id))


def warnings(config: SweepConfig, trunks: list[TrunkSpec]) -> list[str]:
    """What a careful reader would object to in this grid, one sentence each."""
    found = []
    short = sum(run.stop < MIN_STEPS for trunk in trunks for run in trunk.runs)
    if short:
        found.append(
            f"{short} runs have fewer than {MIN_STEPS} steps: they are trained, but no fit will "
            "use them; lower the batch or lengthen the horizon"
        )
    spans = [trunk.runs[-1].tokens / trunk.runs[0].tokens for trunk in trunks]
    kind = config.schedule
    if kind.kind == "wsd" and kind.trunk == "constant" and max(spans) > TRUNK_SPAN:
        found.append(
            f"a constant trunk spans {max(spans):.1f}x in tokens (more than {TRUNK_SPAN:g}x): its "
            "rate cannot suit both ends; use schedule.trunk = 'power', or a sweep per part"
        )
    shortest = min(trunk.runs[0].tokens for trunk in trunks)
    if kind.warmup_tokens > WARMUP_SHARE * shortest:
        found.append(
            f"warmup_tokens = {kind.warmup_tokens:,} is {kind.warmup_tokens / shortest:.1%} of the "
            f"shortest horizon ({shortest:,}): above {WARMUP_SHARE:.0%} it fakes a steeper beta"
        )
    if kind.kind == "wsd" and "step-law" in (config.train.lr.rule, config.train.batch.rule):
        found.append("the step-law depends on the horizons: another horizon later means new trunks")
    return found


def _rate_rule(config: SweepConfig, lr: float | None) -> LearningRateRule:
    """The sweep's rule, with an explicit rate in place of its value (or of the whole rule)."""
    rule = config.train.lr
    if lr is None:
        return rule
    if "value" in type(rule).model_fields:
        return rule.model_copy(update={"value": lr})
    return ConstantRate(rule="constant", value=lr)


def _trunk(config: SweepConfig, corpora: Corpora, group: list[Cell]) -> TrunkSpec:
    """One trunk for the cells of `group`, which differ in their horizons only."""
    first, horizons = group[0], [cell.tokens for cell in group]
    corpus = corpora.of(first.model)
    batch = first.batch_tokens or config.train.batch.resolve(first.model, horizons)
    seq_len = first.model.seq_len
    if batch % seq_len:
        key = "grid.batch_tokens" if first.batch_tokens else "train.batch"
        raise ConfigError(
            f"{key} = {batch} tokens is not a multiple of seq_len = {seq_len}; "
            f"use {max(1, round(batch / seq_len)) * seq_len}"
        )
    if config.data.curve_eval_tokens < seq_len:
        raise ConfigError(
            f"data.curve_eval_tokens = {config.data.curve_eval_tokens} is shorter than one "
            f"sequence of seq_len = {seq_len}; raise it"
        )
    for each in corpus.evals:
        if each.tokens < seq_len + 1:
            raise ConfigError(
                f"data.evals.{each.name}: its {each.tokens:,} tokens are less than one sequence of "
                f"seq_len = {seq_len} and the token after it; give more text"
            )
    rate_rule = _rate_rule(config, first.lr)
    train = TrainConfig(
        **config.train.model_dump(exclude={"batch", "lr", "grad_clip"}),
        grad_clip=None if config.train.grad_clip == "off" else config.train.grad_clip,
        lr=rules.scaled(rate_rule.resolve(first.model, horizons), first.lr_multiplier),
        schedule=config.schedule,
        batch_tokens=batch,
        seed=first.seed,
    )
    branches = placed(train, corpus, config.data.max_epochs, group)
    evaluation = [config.data.eval_tokens, config.data.curve_eval_tokens]
    identity = {
        "model": first.model.model_dump(),
        "data": [corpus.data_sha256, corpus.val_sha256, *evaluation],
        "train": train.model_dump(),
    }
    evals = {each.name: each.sha256 for each in corpus.evals}
    if evals:
        identity["evals"] = evals  # a finished run is never evaluated again: these are others
    if corpus.tokenizer_sha256 is not None:
        identity["tokenizer"] = corpus.tokenizer_sha256
    if config.schedule.kind == "cosine":
        identity["horizon"] = branches[0].stop
    trunk_id = _hash(identity)
    return TrunkSpec(
        trunk_id=trunk_id,
        sweep=config.name,
        arm=first.arm,
        lr_multiplier=first.lr_multiplier,
        lr_rule=rules.text(rate_rule),
        batch_rule=rules.text(config.train.batch) if first.batch_tokens is None else "grid",
        model=first.model,
        data=resolved(config.data, first.model.vocab_size if corpora.least is None else None),
        data_sha256=corpus.data_sha256,
        val_sha256=corpus.val_sha256,
        tokenizer_sha256=corpus.tokenizer_sha256,
        evals_sha256=evals,
        train=train,
        runs=tuple(
            RunSpec(
                run_id=_hash([trunk_id, at.stop, at.start]),
                tokens=at.stop * batch,
                start=at.start,
                stop=at.stop,
                holdout=cell.holdout,
            )
            for cell, at in zip(group, branches, strict=True)
        ),
    )


def _hash(values: object) -> str:
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]
