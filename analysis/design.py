"""What to run: `python -m analysis.design PLAN.json`, or SOURCE --flops BUDGET --target-flops C.

With a plan (`experiments.sweep plan CONFIG --json FILE`) or a table without losses: the standard
errors that the grid can reach, and what more would buy. With the results of a sweep and a budget:
the next runs that cut the error of a prediction most, as a config that `experiments.sweep run`
takes.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis.choose import Purchase
from analysis.columns import Columns
from analysis.expected import assumed, report
from analysis.fitsjson import write_whole
from analysis.gridfile import extended
from analysis.identify import diagnose
from analysis.information import Noise
from analysis.laws import CHINCHILLA, GAMMA
from analysis.load import load
from analysis.nextruns import Advice, Size, advise
from analysis.planned import planned
from analysis.read import DataError
from analysis.shapes import Ladder
from analysis.targets import Target
from analysis.words import amount, compute, counted, number

STEPS_SHOWN = 40


def main(argv: Sequence[str] | None = None) -> int:
    """Print the judgement or the choice; exit code 0, 2 for bad input."""
    args = _parser().parse_args(argv)
    columns = Columns(args.n, args.d, args.loss, args.compute, args.trunk)
    try:
        noise = _noise(args.noise)
        misfit = None if args.misfit is None else _share("--misfit", args.misfit)
        if args.flops is None and args.target_flops is None:
            plan = planned(Path(args.source), columns)
            assume = assumed(plan, args.assume, noise, misfit)
            lines = report(plan, assume, _level(args.level))
        else:
            lines = _next(args, columns, noise, misfit)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, DataError) else 2
    print("\n".join(lines))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.design",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("source", metavar="SOURCE", help="plan file, sweep folder, parquet, or CSV")
    add("--flops", type=float, metavar="BUDGET", help="FLOPs to spend on further runs")
    add("--target-flops", type=float, metavar="C", help="compute of the loss to predict")
    told = "what to predict: the loss at the optimum of C (default), or the exponent a"
    add("--target", choices=("loss", "a"), default="loss", help=told)
    add("--out", type=Path, metavar="FILE", help="write the extended config here, not to stdout")
    told = "law and noise before a sweep: the selected fit of an earlier one"
    add("--assume", type=Path, metavar="FITS.JSON", help=told)
    told = "sd of log loss in %%: of a trunk and of a row in it, such as 0.2,0.1"
    add("--noise", metavar="TRUNK,ROW", help=told)
    told = "sd in %% by which the form may be wrong; 0 trusts it (default: from the rows, about 1)"
    add("--misfit", type=float, metavar="SD", help=told)
    add("--level", type=float, default=0.9, help="level of intervals (0.9)")
    for name, what in (
        ("n", "parameters N"), ("d", "training tokens D"), ("loss", "loss, nats/token"),
        ("compute", "training FLOPs C"), ("trunk", "label of rows that share a training run"),
    ):  # fmt: skip
        add(f"--{name}", metavar="COL", help=f"column of {what}")
    return parser


def _noise(text: str | None) -> Noise | None:
    if text is None:
        return None
    parts = text.split(",")
    try:
        trunk, row = (float(part) for part in parts)
    except ValueError:
        raise ValueError(f"--noise {text}: give two numbers in %, such as 0.2,0.1") from None
    if row <= 0:
        raise ValueError(f"--noise {text}: the noise of a row is positive, such as 0.2,0.1")
    return Noise(_share("--noise", trunk), _share("--noise", row))


def _share(option: str, percent: float) -> float:
    if not 0 <= percent <= 100:
        raise ValueError(f"{option} {percent:g}: a standard deviation in % is between 0 and 100")
    return percent / 100


def _level(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"--level {level:g}: give a level between 0 and 1, such as 0.9")
    return level


def _next(
    args: argparse.Namespace, columns: Columns, noise: Noise | None, misfit: float | None
) -> list[str]:
    for name, value in (("--flops", args.flops), ("--target-flops", args.target_flops)):
        if value is None or not 0 < value < np.inf:
            had = "is missing" if value is None else f"is {value:g}"
            raise ValueError(
                f"{name} {had}: give both --flops BUDGET and --target-flops C as positive numbers "
                "(neither: the source is judged as a plan)"
            )
    if args.source.endswith(".json"):
        raise DataError(
            f"{args.source}: a plan has no losses to choose further runs by; run the sweep, then "
            "give its folder (without --flops the plan is judged)"
        )
    study = load(args.source, columns)
    C = args.target_flops
    target = Target("a", "a") if args.target == "a" else Target("loss", "optimal-loss", (C,))
    advice = advise(study, args.flops, target, C, noise, misfit)
    lines = describe(advice, args.flops, C)
    if not advice.state.bought:
        return lines
    settings = (study.config or {}).get("config", study.config or {})
    grid = settings.get("grid") or {}
    if not grid.get("sizes") and not grid.get("runs"):
        if args.out:
            raise DataError(
                f"--out {args.out}: {args.source} has no config of a sweep (sweep.json) to extend; "
                "leave --out away, train the runs of the table and append them to the file"
            )
        return [*lines, "", "next: train these runs, append them to the table, fit again"]
    runs = grid_runs(advice, settings)
    title = (
        f"{settings['name']} with {counted(len(runs), 'further run')}: "
        f"python -m analysis.design {args.source} --flops {args.flops:g} --target-flops {C:g}"
    )
    text = extended(settings, runs, title)
    if args.out is None:
        return [*lines, "", text + "# save as FILE.toml; python -m experiments.sweep run FILE.toml"]
    write_whole(args.out, text)
    return [*lines, "", f"next: python -m experiments.sweep run {args.out}"]


def describe(advice: Advice, budget: float, C: float) -> list[str]:
    """The choice as text: what is assumed, the steps, what they are worth, the target's shape."""
    rows, noise, state = advice.study.train, advice.noise, advice.state
    values = GAMMA.named(advice.theta)
    shown = ", ".join(f"{k} = {number(v)}" for k, v in values.items())
    what = "a" if advice.target.kind == "a" else f"log L at the optimum of {compute(C)} FLOP"
    lines = [
        f"{advice.study.name}: {counted(len(rows), 'row')} on "
        f"{counted(len(np.unique(rows.trunk)), 'trunk')}; next runs for {what}",
        f"γ law at hand: {shown} (with the population prior)",
        f"noise in log loss: trunk {100 * noise.trunk:.2g} %, row {100 * noise.row:.2g} %; "
        + (f"misfit of the form: {100 * noise.misfit:.2g} %" if noise.misfit else "no misfit"),
        *advice.notes,
    ]
    blind = diagnose(rows, CHINCHILLA, {}).problems
    lines += [f"warning: {', '.join(k for k in blind)} {text}" for text in set(blind.values())]
    lines += ["", f"{'':>4}{'N':>9}{'':>10}{'horizons D':<32}{'seeds':>6}{'FLOP':>10}"]
    lines[-1] += f"{'noise':>10}{'+ misfit':>10}"
    lines.append(f"{'':>4}{'before':<57}{'':>10}{_pair(advice, advice.before)}")
    steps = _steps(state.bought)
    for i, (first, last, seeds, cost) in enumerate(steps[:STEPS_SHOWN], 1):
        size = advice.sizes[first.kind]
        label = "new size" if size.new else "new seed"
        if not first.new:
            label = "longer" if first.trunk < len(advice.existing) else "same run"
        D = ", ".join(amount(state.market.D[c]) for c in first.cells)
        after = (last.noise_sd, last.total_sd)
        lines.append(
            f"{i:>3} {amount(size.N):>9} {label:<9}{D:<32}{seeds:>6}{compute(cost):>10}"
            f"{_pair(advice, after)}"
        )
    if len(steps) > STEPS_SHOWN:
        lines.append(f"    ... and {len(steps) - STEPS_SHOWN} further steps")
    lines.append(f"{'':>4}{f'after {compute(state.spent)} of {compute(budget)} FLOP':<67}")
    lines[-1] += _pair(advice, state.sd())
    for name, sd in advice.rivals.items():
        lines.append(f"{'':>4}{f'the same budget, {name}':<67}{_pair(advice, sd)}")
    if not state.bought:
        lines.append(
            "no run that this budget can pay lowers the error: what the form may be wrong by "
            "outweighs it; raise --flops, or trust the form with --misfit 0"
        )
    return [*lines, "", *_optimum(advice, C)]


def _pair(advice: Advice, sd: tuple[float, float]) -> str:
    if advice.target.kind == "a":
        return "".join(f"{number(v):>10}" for v in sd)
    return "".join(f"{f'{100 * v:.2f} %':>10}" for v in sd)


def _steps(bought: Sequence[Purchase]) -> list[tuple[Purchase, Purchase, int, float]]:
    """Equal purchases in a row as one step: first, last, how many, their cost."""
    steps: list[tuple[Purchase, Purchase, int, float]] = []
    for one in bought:
        if steps:
            first, _, count, cost = steps[-1]
            if (first.kind, first.cells, first.new) == (one.kind, one.cells, one.new):
                steps[-1] = (first, one, count + 1, cost + one.cost)
                continue
        steps.append((one, one, 1, one.cost))
    return steps


def _optimum(advice: Advice, C: float) -> list[str]:
    best, shapes = advice.optimum, advice.ladder
    N, D, L = (float(v[0]) for v in (best.N, best.D, best.L))
    lines = [f"optimum of {compute(C)} FLOP: N* {amount(N)}, D* {amount(D)}, loss {number(L)}"]
    if isinstance(shapes, Ladder):
        width = shapes.nearest(N)
        n, d = shapes.N(width), C / shapes.per_token(width)
        there = float(GAMMA.loss(advice.theta, np.array([n]), np.array([d]))[0])
        told = ", ".join(f"{k} = {v}" for k, v in shapes.shape(width).items() if k != "seq_len")
        lines.append(
            f"nearest buildable: {told}: N {amount(n)}, D {amount(d)}, loss {number(there)}"
        )
    else:
        lines.append(f"not rounded to a buildable shape: {shapes}")
    return lines


def grid_runs(advice: Advice, config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The choice as entries of [[grid.runs]]: model keys, tokens, seed, lr_multiplier."""
    state, frame = advice.state, advice.study.table
    seeds = config["grid"].get("seeds") or [0]
    label: dict[int, tuple[int, dict[str, Any]]] = {}
    for i, trunk in enumerate(advice.existing):
        row = frame[frame["trunk"].astype(str) == trunk].iloc[0]
        label[i] = int(row["seed"]), _keys(config, advice, advice.sizes[state.trunks[i].kind])
    used: dict[int, set[int]] = {}
    multipliers = set(frame.loc[frame["row"].isin(advice.study.used["row"]), "lr_multiplier"])
    rate = multipliers.pop() if len(multipliers) == 1 else 1.0
    runs = []
    for one in state.bought:
        size = advice.sizes[one.kind]
        if one.new:
            near = np.abs(np.log(frame["N"].to_numpy(float) / size.N)) < 0.005
            taken = used.setdefault(one.kind, set(frame["seed"][near].dropna().astype(int)))
            seed = next(s for s in range(min(seeds), 10**6) if s not in taken)
            taken.add(seed)
            label[one.trunk] = seed, _keys(config, advice, size)
        seed, keys = label[one.trunk]
        extra = {} if rate == 1.0 else {"lr_multiplier": float(rate)}
        for cell in one.cells:
            runs.append({**keys, "tokens": int(state.market.D[cell]), "seed": seed, **extra})
    return runs


def _keys(config: Mapping[str, Any], advice: Advice, size: Size) -> dict[str, Any]:
    """Model keys of a size in the sweep's own words: those of its sizes, moved to the width."""
    grid = config["grid"]
    entries = [dict(e["model"]) for e in (*grid.get("sizes", ()), *grid.get("runs", ()))]
    if not isinstance(advice.ladder, Ladder) or size.d_model is None:
        frame = advice.study.table
        rows = frame[np.abs(np.log(frame["N"].astype(float) / size.N)) < 0.005]
        match = [e for e in entries if all(rows[k].iloc[0] == v for k, v in e.items() if k in rows)]
        if not match:
            raise DataError(f"N = {size.N:.0f}: no size of the sweep's config has this shape")
        return match[0]
    shape = advice.ladder.shape(size.d_model)
    for entry in entries:
        if all(shape.get(k, v) == v for k, v in entry.items()):
            return entry
    width = size.d_model
    nearest = min(entries, key=lambda e: abs(np.log(e.get("d_model", 1) / width)))
    return {k: shape.get(k, v) for k, v in nearest.items()} | {"d_model": width}


if __name__ == "__main__":
    sys.exit(main())
