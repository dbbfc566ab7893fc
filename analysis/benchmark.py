"""The fitter's own claims, measured: `python -m analysis.benchmark [--suite NAME ...]`.

speed: the certified fit against scipy's L-BFGS-B grid. coverage: intervals on simulated studies.
pipeline: the whole default analysis on simulated studies, the law chosen and misfit included.
extrapolation: held-out compute of the public sets. design: chosen runs against whole grids.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from analysis import coverage, extrapolation, fitspeed, pipeline, public, replay, simulated
from analysis.fitsjson import write_json
from analysis.read import DataError

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
Result = tuple[list[str], list[dict[str, Any]]]
Progress = Callable[[str], None]


def speed(data: Path | None, studies: int, progress: Progress) -> Result:
    """Ratios on Epoch's 240 rows."""
    if data is None:
        return [NO_DATA], []
    result = fitspeed.speed(public.read("epoch", data).rows)
    return fitspeed.lines(result), [result.to_json()]


def intervals(data: Path | None, studies: int, progress: Progress) -> Result:
    """Coverage of the default intervals: laws x noise x designs x targets."""
    entries, seconds = [], []
    cells = [
        (truth, design, noise)
        for design in coverage.DESIGNS
        for truth in coverage.TRUTHS
        for noise in coverage.TRUNK_NOISE
    ]
    lines = [f"{'design':<36}{'law':<11}{'noise':>6}   alpha   beta      E      a  loss at 10x"]
    start = time.monotonic()
    for i, (truth, design, noise) in enumerate(cells):
        found, spent = coverage.cell(truth, design, noise, studies, seed=i)
        entries += found
        seconds += spent
        lines.append(
            f"{design.name:<36}{truth:<11}{100 * noise:>5.1f}%  "
            + " ".join(f"{e.coverage:6.3f}" for e in found)
        )
        left = (time.monotonic() - start) / (i + 1) * (len(cells) - i - 1)
        progress(f"{lines[-1]}   ({left:.0f} s left)")
    s = coverage.summary(entries)
    lines.append(
        f"{len(entries)} entries of {studies} studies: lowest {s['min']:.3f}, "
        f"mean {s['mean']:.3f}, highest {s['max']:.3f}; {s['in_band']:.1%} within "
        f"{coverage.BAND[0]:.0%} to {coverage.BAND[1]:.0%}; fit and five intervals of one study "
        f"{1e3 * np.median(seconds):.0f} ms of CPU (median)"
    )
    rows = [{"suite": "coverage", **asdict(e)} for e in entries]
    return lines, [*rows, {"suite": "coverage", **s, "seconds": float(np.median(seconds))}]


def default_analysis(data: Path | None, studies: int, progress: Progress) -> Result:
    """The misfit-aware interval at ten times the compute, and what high trust is worth."""
    lines = [f"{'design':<36}{'truth':<12}{'noise':>6}{'covered':>9}{'half width':>12}{'bias':>8}"]
    rows, trust = [], []
    for i, design in enumerate(coverage.DESIGNS):
        for j, truth in enumerate(pipeline.TRUTHS):
            for noise in coverage.TRUNK_NOISE:
                found = pipeline.cell(truth, design, noise, max(studies // 4, 1), seed=10 * i + j)
                rows.append({"suite": "pipeline", **asdict(found)})
                lines.append(
                    f"{design.name:<36}{truth:<12}{noise:>6.1%}{found.coverage:>9.2f}"
                    f"{found.half_width:>12.2%}{found.bias:>+8.2%}"
                )
                progress(lines[-1])
                if max(design.seeds) > 1 or design.decades > 2:
                    some = max(studies // 100, 1)
                    trust += pipeline.trusted(truth, design, noise, some, seed=10 * i + j)
    for j, truth in enumerate(pipeline.TRUTHS):
        quiet = coverage.TRUNK_NOISE[0]
        trust += pipeline.trusted(truth, pipeline.GOOD, quiet, max(studies // 40, 1), seed=100 + j)
    for level in ("high", "medium", "low"):
        errors = np.array([e for t, e in trust if t == level])
        if len(errors):
            close = float(np.mean(errors <= pipeline.CLOSE))
            lines.append(
                f"trust {level}: {len(errors)} of {len(trust)} whole analyses; at 10x the "
                f"prediction is within 1 % of the truth in {close:.0%}"
            )
            rows.append({"suite": "pipeline", "trust": level, "n": len(errors), "within": close})
    return lines, rows


def held_out(data: Path | None, studies: int, progress: Progress) -> Result:
    """Public studies, cheap rows fitted, dear rows predicted; shipped and nested constants."""
    if data is None:
        return [NO_DATA], []
    table = extrapolation.extrapolate(data, progress)
    rows = [{"suite": "extrapolation", **asdict(score)} for score in table]
    return extrapolation.lines(table), [*rows, extrapolation.summary(table)]


def design(data: Path | None, studies: int, progress: Progress) -> Result:
    """A tenth of the FLOPs, chosen, against the whole grid, cheapest-first and random."""
    rows = simulated.simulated()
    if data is None:
        return [*replay.lines(rows), NO_DATA], rows
    rows += replay.replayed(data)
    return replay.lines(rows), rows


SUITES: dict[str, Callable[[Path | None, int, Progress], Result]] = {
    "speed": speed,
    "coverage": intervals,
    "pipeline": default_analysis,
    "extrapolation": held_out,
    "design": design,
}
NO_DATA = f"public data not found: name the folder with --data or {public.FOLDER_VARIABLE}; skipped"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the suites; exit code 0, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m analysis.benchmark", description=__doc__)
    parser.add_argument("--suite", choices=SUITES, nargs="+", default=list(SUITES))
    parser.add_argument("--studies", type=int, default=400, help="per simulated cell (400)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of public observations")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every row as JSON too")
    args = parser.parse_args(argv)
    if args.studies < 1:
        print(f"error: --studies {args.studies}: give 1 or more", file=sys.stderr)
        return 2
    if any(os.environ.get(name) != "1" for name in THREADS):
        # Set before numpy loads: other threads would add to the process's CPU time.
        os.environ.update(dict.fromkeys(THREADS, "1"))
        arguments = sys.argv[1:] if argv is None else list(argv)
        os.execv(sys.executable, [sys.executable, "-m", "analysis.benchmark", *arguments])
    console, rows = Console(stderr=True, highlight=False), []
    try:
        data = public.folder(args.data)
        for name in args.suite:
            print(f"\n{name}", flush=True)
            lines, found = SUITES[name](data, args.studies, lambda text: console.print(text))
            print("\n".join("  " + line for line in lines), flush=True)
            rows += found
        if args.json:
            write_json(args.json, rows)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
