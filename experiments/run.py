"""The command that trains one trunk of an existing sweep.

`python -m experiments.run TRUNK_DIR` trains what is missing of it, in this process; under torchrun
in several ranks.
"""

import argparse
import sys
import typing
from collections.abc import Generator
from pathlib import Path

import torch
from pydantic import ValidationError

from experiments.pack import Place
from experiments.spec import Event, TrunkSpec
from experiments.trunk import run_trunks
from minigpt.config import Strategy
from minigpt.group import Group, join
from minigpt.process import hearing, settle


def main(argv: list[str] | None = None) -> int:
    """Train what is missing of one trunk; exit code 1 if a run failed or diverged."""
    args = _parser().parse_args(argv)
    spec = args.trunk_dir / "spec.json"
    try:
        trunk = TrunkSpec.model_validate_json(spec.read_text())
    except (OSError, ValidationError) as error:
        told = str(error).splitlines()[0]
        print(f"error: {spec}: {told}; give runs/<sweep>/trunks/<trunk_id>", file=sys.stderr)
        return 2
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print(f"error: --device {args.device}: torch sees no GPU; use cpu", file=sys.stderr)
        return 2
    settle(args.threads)
    sweep = args.trunk_dir.resolve().parent.parent
    try:
        with join(args.device, args.strategy) as (group, device), hearing() as heard:
            place = Place(
                sweep=sweep,
                device=device,
                checkpoint_seconds=args.checkpoint_seconds,
            )
            return _report(run_trunks([trunk], place, group, heard), group)
    except KeyboardInterrupt:
        return 130
    except RankFailed:
        return 1
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


class RankFailed(Exception):
    """This rank cannot go on."""


def _report(events: Generator[Event], group: Group) -> int:
    """Say how runs end; the exit code."""
    code = 0
    for event in events:
        if event.kind == "finished" and event.result is not None:
            if group.rank == 0:
                print(f"{event.run_id} {event.result['status']} {event.result.get('val_loss')}")
            code = max(code, int(event.result["status"] != "ok"))
        elif event.kind == "failed":
            print(f"error: {event.reason}", file=sys.stderr)
            if group.size > 1:
                raise RankFailed  # the others may wait for this one: leave the group as it is
            code = 1
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.run", description=main.__doc__)
    parser.add_argument("trunk_dir", type=Path, help="a folder runs/<sweep>/trunks/<trunk_id>")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    parser.add_argument(
        "--strategy",
        choices=typing.get_args(Strategy),
        default="ddp",
        help="of several ranks: copies of the model (ddp, the default) or shards of it (fsdp)",
    )
    parser.add_argument("--checkpoint-seconds", type=float, default=60.0, help="default: 60")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
