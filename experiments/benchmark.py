"""Training speed, measured: `python -m experiments.benchmark [--suite NAME ...]`.

step: one optimiser step against the plain loop of `experiments.reference`; ratios of process CPU
time on a CPU, of time on the wall on a GPU. pack: models of one shape stacked against one after
another, and processes against threads. sweep: a whole sweep against a process per run.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from experiments import store, tables
from experiments.config import ConfigError
from experiments.figures import Findings
from experiments.gpusuite import gpu_sweep_suite
from experiments.packsuite import pack_suite
from experiments.stepsuite import step_suite
from experiments.sweepsuite import sweep_suite
from experiments.worker import TrialError
from minigpt.data import DataError

SUITES = ("step", "pack", "sweep")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the suites; exit code 0, 1 if a trial failed, 2 for bad input, 130 interrupted."""
    args = _parser().parse_args(argv)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        print("error: --device cuda: torch sees no GPU; use --device cpu", file=sys.stderr)
        return 2
    if args.json and not args.json.absolute().parent.is_dir():
        print(f"error: --json {args.json}: its folder does not exist; make it", file=sys.stderr)
        return 2
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    console, found = Console(stderr=True, highlight=False, markup=False), Findings()
    try:
        for name in args.suite:
            try:
                found.extend(_suite(name, device, args, console))
            except TrialError as error:
                found.extend(Findings(remarks=[f"failed: {name}: {error}"], failed=True))
    except (ConfigError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    whole = found.to_json(device, load)
    tables.print_table([row.shown() for row in found.rows], Console(width=160, markup=False))
    print("\n".join(found.remarks))
    print(json.dumps(whole["machine"]))
    if args.json:
        store.write_atomic(args.json, json.dumps(whole, indent=1, allow_nan=False) + "\n")
    return int(found.failed)


def _suite(name: str, device: str, args: argparse.Namespace, console: Console) -> Findings:
    def say(text: str) -> None:
        console.print(f"{name}: {text}")

    if name == "step":
        return step_suite(device, say)
    if name == "pack":
        return pack_suite(device, say)
    if device == "cuda":
        return gpu_sweep_suite(args.config or Path("configs/gpu.toml"), device, say)
    config = args.config or Path("configs/quick.toml")
    return sweep_suite(config, say, whole=args.full or args.config is not None)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmark", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    parser.add_argument("--suite", choices=SUITES, nargs="+", default=list(SUITES))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write rows and machine as JSON")
    told = "of suite sweep (default: configs/quick.toml, on a GPU configs/gpu.toml)"
    parser.add_argument("--config", type=Path, metavar="FILE", help=told)
    told = "suite sweep on a CPU: all of configs/quick.toml, not a sample of its sizes"
    parser.add_argument("--full", action="store_true", help=told)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
