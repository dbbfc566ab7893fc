"""What the heads of every model of a sweep do: `python -m experiments.circuits DIR`.

Writes DIR/circuits.parquet: scores of each head on random repeated tokens and on held-out text, for
the final weights of every finished run and for an untrained model of every size. Exit codes: 0 all
well, 1 the disk failed, 2 bad input, 130 interrupted.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from experiments import schema, store
from experiments.progress import watched
from experiments.spec import RunSpec, TrunkSpec
from experiments.store import StoreError
from experiments.trained import finished, held_out_text
from minigpt import data, structure, weights
from minigpt.ablate import ablation_check
from minigpt.checkpoint import CheckpointError
from minigpt.config import ModelConfig
from minigpt.copying import copying_scores
from minigpt.heads import Score, in_context_score, prefix_matching_scores, repeated, repeated_scores
from minigpt.model import MiniGPT
from minigpt.probe import Probe, documents, probe
from minigpt.process import settle

SEED = 0  # of random tokens, of windows, and of untrained models
SEQUENCES = 64  # s + s, and windows of held-out text for prefix matching
LENGTH, LEAST_LENGTH = 50, 8  # tokens of s; where the context is too short, down to
COMMON = 0.999  # share of held-out text that the tokens of s make up: others a model hardly knows
TEXT_TOKENS = 32_768  # of held-out text that in-context learning is measured on, at random places
PROBE_TOKENS = 32_768  # of its documents, that structure is looked for in
NAMED = 5  # of the files that are missing

Found = tuple[TrunkSpec, RunSpec, Path]
Measured = dict[str, np.ndarray]  # see `minigpt.structure.measure`


@dataclass(frozen=True)
class Material:
    """What all models of one text and context are asked: token sequences on the device, a probe."""

    repeated_BT: Tensor
    text_BT: Tensor
    probe: Probe | None


def main(argv: Sequence[str] | None = None) -> int:
    """Score the heads of a sweep's models into circuits.parquet; returns the exit code."""
    args = _parser().parse_args(argv)
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print(f"error: --device {args.device}: torch sees no GPU; use cpu", file=sys.stderr)
        return 2
    settle(1)  # several threads would wait for one another: the models of a sweep are small
    console = Console(highlight=False, markup=False)
    try:
        _write(args.dir, args.device, console)
    except (StoreError, data.DataError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _write(sweep: Path, device: str, console: Console) -> None:
    found = with_weights(sweep)
    asked: dict[object, Material] = {}
    controls: dict[ModelConfig, TrunkSpec] = {}
    for trunk, _, _ in found:
        if _text(trunk) not in asked:
            asked[_text(trunk)] = material(sweep, trunk, device)
        controls.setdefault(trunk.model, trunk)
    rows = []
    untrained: dict[ModelConfig, Measured] = {}
    for trunk, run, path in watched(
        [*((t, None, None) for t in controls.values()), *found], "models", console
    ):
        model = MiniGPT(trunk.model, SEED).eval() if path is None else weights.load(path)[0]
        own = {"n_total": trunk.n_total, "n_layers": trunk.model.n_layers}
        if run is None:
            own |= {"seed": SEED, "tokens": 0}
        else:
            own |= {"run_id": run.run_id, "trunk_id": trunk.trunk_id}
            own |= {"seed": trunk.train.seed, "tokens": run.tokens}
        beside = None if run is None else untrained[trunk.model]
        found_here, measured = scores(model.to(device), asked[_text(trunk)], beside)
        untrained.setdefault(trunk.model, measured)  # controls come first
        rows += [own | asdict(score) for score in found_here]
    path = sweep / "circuits.parquet"
    store.write_parquet(path, rows, schema.CIRCUITS)
    told = f"{len(found)} runs and {len(controls)} untrained models"
    print(f"{path}: {len(rows):,} scores of {told}")
    print(f"next: python -m analysis.report {sweep}")


def with_weights(sweep: Path) -> list[Found]:
    """The finished runs of the sweep's plan with their final weights, all of which can be read.

    Raises StoreError for a folder of no sweep, without finished runs, or where weights are missing
    or a context is too short; CheckpointError for weights of another version.
    """
    found = [
        (trunk, run, store.trunk_folder(sweep, trunk.trunk_id) / f"{run.run_id}.pt")
        for trunk, run in finished(sweep)
    ]
    missing = [str(path) for _, _, path in found if not path.is_file()]
    if missing:
        told = ", ".join(missing[:NAMED]) + (", ..." if len(missing) > NAMED else "")
        raise StoreError(
            f"{sweep}: {len(missing)} of {len(found)} finished runs have no weights: {told}; put "
            "them back, or delete the .json files of the same names and run the sweep again"
        )
    for trunk, _, path in found:
        if trunk.model.seq_len < 2 * LEAST_LENGTH:
            raise StoreError(
                f"{sweep}: model.seq_len = {trunk.model.seq_len} has no room for {LEAST_LENGTH} "
                f"tokens twice; heads can be scored from seq_len = {2 * LEAST_LENGTH} on"
            )
        weights.load(path)  # before the first of them is scored
    return sorted(found, key=lambda each: (each[0].n_total, each[1].tokens, each[0].train.seed))


def material(sweep: Path, trunk: TrunkSpec, device: str) -> Material:
    """What models of this trunk's text and context are asked; raises DataError for another text."""
    corpus = held_out_text(sweep, trunk)
    seq_len, tokenizer = trunk.model.seq_len, corpus.tokenizer
    end = trunk.data.end_of_text if tokenizer is None else tokenizer.end_of_text
    length = min(LENGTH, seq_len // 2)
    if length < LENGTH:
        print(f"a context of {seq_len} tokens: {length} random tokens twice instead of {LENGTH}")
    repeated_BT = repeated(_common(corpus.val, end), length, SEQUENCES, SEED)
    text_BT = torch.from_numpy(windows(corpus.val, seq_len + 1))
    asked = None
    if tokenizer is not None:
        texts = documents(corpus.val, tokenizer)
        asked = probe(texts, tokenizer, seq_len=seq_len, seed=SEED, tokens=PROBE_TOKENS)
    return Material(repeated_BT.to(device), text_BT.to(device), asked)


def windows(val: np.ndarray, length: int) -> np.ndarray:
    """tokens_BT of places of a held-out shard, drawn at random: its first few documents are few."""
    rng = np.random.default_rng(SEED)
    count = max(SEQUENCES, TEXT_TOKENS // length)
    starts = rng.integers(0, len(val) - length + 1, count)
    return np.lib.stride_tricks.sliding_window_view(val, length)[starts].astype(np.int64)


@torch.inference_mode()
def scores(
    model: MiniGPT, asked: Material, untrained: Measured | None
) -> tuple[list[Score], Measured]:
    """All that is known of a model's heads, and what they answered of the probe.

    Given what an untrained model's heads answered, also what the model's are above them.
    """
    found = repeated_scores(model, asked.repeated_BT)
    check = ablation_check(model, asked.repeated_BT, found, SEED)
    ablated = (check.drop_ablated, check.drop_previous, check.drop_control)
    found += [score for score in ablated if score is not None]
    found += copying_scores(model)
    found += prefix_matching_scores(model, asked.text_BT[:SEQUENCES, :-1])
    found.append(in_context_score(model, asked.text_BT))
    if asked.probe is None:
        return found, {}
    measured = structure.measure(model, asked.probe)
    found += structure.scores(measured, asked.probe)
    if untrained is not None:
        found += structure.of_model(measured, untrained, asked.probe)
    return found, measured


def _text(trunk: TrunkSpec) -> object:
    return trunk.data_sha256, trunk.val_sha256, trunk.tokenizer_sha256, trunk.model.seq_len


def _common(shard_N: np.ndarray, end: int | None) -> list[int]:
    """The most frequent tokens, without end of text, that make up COMMON of a shard."""
    count_V = np.bincount(shard_N)
    if end is not None:
        count_V[end : end + 1] = 0
    order_V = np.argsort(-count_V, kind="stable")
    share_V = count_V[order_V].cumsum() / count_V.sum()
    return order_V[: int(np.searchsorted(share_V, COMMON)) + 1].tolist()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.circuits",
        description="What the heads of every model of a sweep do: circuits.parquet.",
    )
    parser.add_argument("dir", type=Path, metavar="DIR", help="a sweep's folder, as runs/quick")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
