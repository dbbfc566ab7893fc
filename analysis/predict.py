"""The loss of a run that does not exist yet: `python -m analysis.predict SOURCE --flops C`.

At `--params N --tokens D`, or at the compute-optimal N and D of `--flops C`. `--register FILE`
writes the prediction with a hash before the run exists; `--score FILE` compares it with the run.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.analyse import analyse
from analysis.fit import add_source_arguments, exit_code, load_arguments
from analysis.fitsjson import write_json
from analysis.forecast import default_fit
from analysis.interval import Interval
from analysis.laws import GAMMA
from analysis.load import Study
from analysis.read import DataError
from analysis.register import LOG, read_log, register, score
from analysis.result import Analysis
from analysis.targets import Target
from analysis.words import amount, compute, number, percent, span


@dataclass(frozen=True)
class Prediction:
    """Loss at N, D: by the default prediction with both intervals, and by the headline law."""

    N: float
    D: float
    C: float
    L: float
    noise: Interval
    misfit: Interval
    why: str
    plain: float
    law: str
    law_L: float | None
    law_interval: Interval
    reach: float  # C over the largest compute of the fitted rows

    def to_json(self, level: float) -> dict[str, Any]:
        """The content of a registered prediction."""
        return {
            "params": self.N, "tokens": self.D, "flops": self.C, "loss": self.L, "level": level,
            "loss_interval_noise": [self.noise.low, self.noise.high],
            "loss_interval_misfit": [self.misfit.low, self.misfit.high],
            "method": f"gamma law, {self.why}", "loss_without_prior": self.plain,
            "headline_law": self.law, "headline_loss": self.law_L,
            "headline_interval": [self.law_interval.low, self.law_interval.high],
        }  # fmt: skip


def predict(
    analysis: Analysis, fixed: dict[str, float], N: float | None, D: float | None, C: float | None
) -> Prediction:
    """At N and D, or at the optimum of C; DataError where the design cannot tell."""
    study, chosen, flops = analysis.study, analysis.chosen, analysis.flops
    train = study.train
    problem = chosen.design.problems.get("a")
    if problem and chosen.law.scale_free:
        raise DataError(f"{study.source}: no prediction: {problem}")
    fit = default_fit(study, train, fixed)
    if fit is None:
        raise DataError(f"{study.source}: {len(train)} rows fitted, a prediction needs 8; add runs")
    if C is not None:
        best = GAMMA.optimal(fit.theta, np.array([C]), flops)
        N, D = float(best.N[0]), float(best.D[0])
    assert N is not None
    assert D is not None
    if C is None:
        C = float(np.exp(flops(np.log(np.array([N])))[0][0]) * D)
    at = np.array([N]), np.array([D]), np.log(np.array([C]))
    L, noise, misfit = fit.predict(*at, analysis.level)
    plain = (fit.plain or fit).predict(*at, analysis.level)[0]
    own = chosen.law.loss(chosen.theta, at[0], at[1])
    ends = chosen.estimate.intervals([Target("L", "loss", (N, D))], flops, analysis.level)[0]
    return Prediction(
        N, D, C, float(L[0]), noise[0], misfit[0], fit.why, float(plain[0]), chosen.name,
        float(own[0]), ends, C / float(train.C.max()),
    )  # fmt: skip


def lines(prediction: Prediction, analysis: Analysis) -> list[str]:
    """The prediction as text."""
    p, level = prediction, f"{100 * analysis.level:g} %"
    return [
        f"N = {amount(p.N)} parameters, D = {amount(p.D)} tokens, C = {compute(p.C)} FLOPs "
        f"({p.reach:.2g} times the largest fitted compute)",
        f"loss {number(p.L)}   (γ law, {p.why})",
        f"  {level} interval, noise        {span(p.noise)}",
        f"  {level} interval, with misfit  {span(p.misfit)}",
        f"  without prior                {number(p.plain)}",
        f"  {p.law} law: {number(p.law_L)} ({level} interval, noise: {span(p.law_interval)})",
        f"trust in the fit: {analysis.chosen.trust}",
    ]


def scored(file: Path, study: Study) -> list[str]:
    """The score as text, with the calibration so far."""
    entry = score(file, study)
    log = read_log(file.with_name(LOG))
    inside = [e["inside_misfit"] for e in log if e["inside_misfit"] is not None]
    found = {True: "inside", False: "outside", None: "no"}
    return [
        f"predicted {number(entry['predicted'])}, measured {number(entry['measured'])} "
        f"(mean of {entry['runs']}): error {percent(entry['error'])}",
        f"  {found[entry['inside_noise']]} the noise interval, {found[entry['inside_misfit']]} the "
        "interval with misfit",
        f"calibration so far: {sum(inside)} of {len(inside)} measured losses inside "
        f"({file.with_name(LOG)})",
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Print, register or score a prediction; exit code 0, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m analysis.predict", description=__doc__)
    add_source_arguments(parser, flops="--flops-column")
    parser.add_argument("--params", type=float, metavar="N", help="parameters of the run")
    parser.add_argument("--tokens", type=float, metavar="D", help="training tokens of the run")
    parser.add_argument("--flops", type=float, metavar="C", help="compute, spent optimally")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the prediction as JSON")
    parser.add_argument("--register", type=Path, metavar="FILE", help="write it before the run")
    parser.add_argument("--score", type=Path, metavar="FILE", help="compare it with the run")
    args = parser.parse_args(argv)
    try:
        _check(args)
        study, fixed = load_arguments(args)
        if args.score:
            print("\n".join(scored(args.score, study)))
            return 0
        analysis = analyse(
            study, law=args.law, fixed=fixed, estimator=args.estimator, level=args.level
        )
        found = predict(analysis, fixed, args.params, args.tokens, args.flops)
        content = found.to_json(analysis.level)
        digest = register(args.register, content, study) if args.register else ""
        if args.json:
            write_json(args.json, content)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return exit_code(error)
    print("\n".join(lines(found, analysis)))
    if args.register:
        print(f"registered: {args.register} (sha256 {digest})")
        print(f"next, when the run is done: python -m analysis.predict {args.source} --score "
              f"{args.register}")  # fmt: skip
    return 0


def _check(args: argparse.Namespace) -> None:
    """ValueError unless the command line asks for N and D, or for C, or for a score."""
    asked = {"--params": args.params, "--tokens": args.tokens, "--flops": args.flops}
    for name, value in asked.items():
        if value is not None and not (np.isfinite(value) and value > 0):
            raise ValueError(f"{name} {value}: not a positive number")
    given = {name for name, value in asked.items() if value is not None}
    if args.score and (given or args.register):
        raise ValueError("--score FILE takes N and D from the file: leave the other options out")
    if not args.score and given not in ({"--params", "--tokens"}, {"--flops"}):
        raise ValueError(
            "name the run: --params N --tokens D, or --flops C for the compute-optimal one"
            + (f" (given: {', '.join(sorted(given))})" if given else "")
        )


if __name__ == "__main__":
    sys.exit(main())
