"""circuits.parquet through its command: whose scores it holds, and what it refuses."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from experiments import circuits, schema, store
from experiments.sweep import main
from minigpt import heads, weights
from minigpt.data import write_bin
from minigpt.model import MiniGPT

Sweep = Callable[..., tuple[int, str, str]]
Command = Callable[..., tuple[int, str, str]]
TWO_LAYERS, HORIZONS = "model.n_layers=2", "grid.tokens=[3200, 6400]"
OF_HEADS = {"previous_token", "duplicate_token", "induction", "copying", "prefix_matching"}


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Call the command in this process: exit code, standard output, standard error."""

    def call(folder: Path, *words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = circuits.main([str(folder), *words])
        told = capsys.readouterr()
        return code, told.out, told.err

    return call


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, micro_in: Callable[[Path], Path]) -> Path:
    """The folder of runs of a finished sweep of two sizes and two horizons, two layers each."""
    folder = tmp_path_factory.mktemp("circuits")
    assert main(["run", str(micro_in(folder)), TWO_LAYERS, HORIZONS]) == 0
    return folder / "runs"


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may damage: the sweep is runs/micro."""
    return Path(shutil.copytree(made, tmp_path / "runs"))


def test_every_finished_run_and_an_untrained_model_of_every_size(runs: Path, command: Command):
    code, out, err = command(runs / "micro")
    assert (code, err) == (0, "")
    frame = pd.read_parquet(runs / "micro" / "circuits.parquet")
    assert pq.read_schema(runs / "micro" / "circuits.parquet").equals(
        schema.CIRCUITS, check_metadata=True
    )
    assert out.splitlines() == [
        "a context of 16 tokens: 8 random tokens twice instead of 50",
        f"{runs / 'micro' / 'circuits.parquet'}: {len(frame)} scores of 4 runs and 2 untrained "
        "models",
        f"next: python -m analysis.report {runs / 'micro'}",
    ]
    trunks = store.trunks(runs / "micro")
    ids = {run.run_id: (trunk, run) for trunk in trunks for run in trunk.runs}
    assert set(frame["run_id"].dropna()) == set(ids)
    for run_id, part in frame.groupby("run_id"):
        trunk, run = ids[str(run_id)]
        assert set(part["trunk_id"]) == {trunk.trunk_id}
        assert set(part["tokens"]) == {run.tokens}
        assert set(part["n_total"]) == {trunk.n_total}
    control = frame[frame["run_id"].isna()]
    assert control["trunk_id"].isna().all()
    assert (control["tokens"] == 0).all()
    assert set(control["n_total"]) == {trunk.n_total for trunk in trunks}
    assert set(frame["n_layers"]) == {2}
    assert set(frame["seed"]) == {0}
    for (_, n_total), part in frame.groupby(["tokens", "n_total"]):
        n_heads = next(t.model.n_heads for t in trunks if t.n_total == n_total)
        for metric in OF_HEADS:
            found = part[part["metric"] == metric]
            assert len(found) == 2 * n_heads
            assert set(zip(found["layer"], found["head"], strict=True)) == {
                (layer, head) for layer in (0, 1) for head in range(n_heads)
            }
        whole = part[part["metric"].isin(["icl", "repeat_loss_drop"])]
        assert len(whole) == 2
        assert whole["layer"].isna().all()
        assert whole["head"].isna().all()
    prose = frame[frame["metric"].str.startswith("structure_")]
    assert prose["baseline"].notna().all()
    judged = frame[frame["head"].isna() & frame["run_id"].notna()].groupby("metric").size()
    for metric in prose["metric"].unique():  # of every run, and of no untrained model
        relation = metric.removeprefix("structure_")
        for name in (metric, f"over_offset_{relation}", f"over_untrained_{relation}"):
            assert judged[name] == len(ids)
    assert not control["metric"].str.startswith("over_").any()
    assert frame.loc[~frame["metric"].str.startswith("structure_"), "baseline"].isna().all()
    assert frame.loc[frame["metric"] != "copying", "value"].notna().all()


def test_scores_are_those_of_the_runs_own_weights(runs: Path, command: Command):
    command(runs / "micro")
    frame = pd.read_parquet(runs / "micro" / "circuits.parquet")
    for trunk in store.trunks(runs / "micro"):
        asked = circuits.material(runs / "micro", trunk, "cpu")
        assert asked.repeated_BT.shape[1] == 16
        letters = set(asked.repeated_BT.flatten().tolist())
        assert letters <= set(b"abcdefgh \n")  # and not the end of text, nor bytes never seen
        models = {
            run.run_id: runs / "micro/trunks" / trunk.trunk_id / f"{run.run_id}.pt"
            for run in trunk.runs
        }
        pairs = [
            (frame[frame["run_id"] == key], weights.load(path)[0]) for key, path in models.items()
        ]
        untrained = frame[frame["run_id"].isna() & (frame["n_total"] == trunk.n_total)]
        for part, model in [*pairs, (untrained, MiniGPT(trunk.model, seed=0))]:
            for score in heads.repeated_scores(model, asked.repeated_BT):
                own = part[part["metric"] == score.metric]
                if score.head is not None:
                    own = own[(own["layer"] == score.layer) & (own["head"] == score.head)]
                assert len(own) == 1
                row = own.iloc[0]
                assert row["value"] == pytest.approx(score.value, abs=1e-6)
                assert row["null_value"] == pytest.approx(score.null_value)
                assert row["low"] <= row["value"] <= row["high"]


def test_ablation_is_there_where_there_are_heads_to_ablate(
    runs: Path, command: Command, monkeypatch: pytest.MonkeyPatch
):
    command(runs / "micro")
    before = pd.read_parquet(runs / "micro" / "circuits.parquet")
    assert not before["metric"].isin(["repeat_loss_drop_ablated"]).any()
    monkeypatch.setattr("minigpt.ablate.THRESHOLD", 0.0)  # every head is one of induction
    command(runs / "micro")
    after = pd.read_parquet(runs / "micro" / "circuits.parquet")
    ablated = after[after["metric"] == "repeat_loss_drop_ablated"]
    assert len(ablated) == 6
    assert ablated["layer"].isna().all()
    assert not after["metric"].isin(["repeat_loss_drop_control"]).any()  # no other head is left
    rest = after[after["metric"] != "repeat_loss_drop_ablated"].reset_index(drop=True)
    previous = before["metric"] == "repeat_loss_drop_previous"
    pd.testing.assert_frame_equal(rest, before[~previous].reset_index(drop=True))


def test_models_of_ready_made_tokens_have_scores_but_no_structure(
    micro: Path, sweep: Sweep, command: Command
):
    rng = np.random.default_rng(0)
    for side, size in (("train", 20_000), ("val", 4_000)):
        write_bin(micro.parent / f"{side}.bin", rng.integers(0, 40, size), header=True)
    config = micro.read_text().replace('source = "text"', 'source = "tokens"').splitlines()
    config = [line for line in config if not line.startswith(("path", "val_fraction"))]
    at = config.index('source = "tokens"')
    config.insert(at, f'path = "{micro.parent}/train.bin"\nval_path = "{micro.parent}/val.bin"')
    config.insert(at, "vocab_size = 50\nend_of_text = 3")
    micro.write_text("\n".join(config))
    assert sweep("run", micro, "grid.sizes=[{ d_model = 8 }]", "grid.tokens=[6400]")[0] == 0
    folder = micro.parent / "runs" / "micro"
    code, _, err = command(folder)
    assert (code, err) == (0, "")
    frame = pd.read_parquet(folder / "circuits.parquet")
    assert set(frame["metric"]) >= OF_HEADS | {"icl", "repeat_loss_drop"}
    assert not frame["metric"].str.startswith("structure_").any()
    asked = circuits.material(folder, store.trunks(folder)[0], "cpu")
    assert set(asked.repeated_BT.flatten().tolist()) <= set(range(40)) - {3}


# Bad input


def refusal(command: Command, folder: Path, *words: str) -> str:
    """The one line that the command has to say; circuits.parquet is not written."""
    code, out, err = command(folder, *words)
    assert code == 2
    assert "next:" not in out
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not (folder / "circuits.parquet").exists()
    return err.removeprefix("error: ").rstrip("\n")


def test_folders_without_finished_runs_are_refused(runs: Path, command: Command):
    assert "no sweep.json in it; give the folder of a sweep" in refusal(command, runs / "other")
    assert "no sweep.json in it" in refusal(command, runs)
    for path in (runs / "micro").glob("trunks/*/[0-9a-f]*.json"):
        path.unlink()
    told = refusal(command, runs / "micro")
    assert told.startswith(f"{runs / 'micro'}: no run has finished yet; `python -m experiments.sw")


def test_missing_weights_are_named_and_counted(runs: Path, command: Command):
    found = sorted((runs / "micro").glob("trunks/*/[0-9a-f]*.json"))
    gone = [path.with_suffix(".pt") for path in found][:2]
    for path in gone:
        path.unlink()
    told = refusal(command, runs / "micro")
    assert told.startswith(f"{runs / 'micro'}: 2 of 4 finished runs have no weights: ")
    assert all(str(path) in told for path in gone)
    assert told.endswith("delete the .json files of the same names and run the sweep again")


def test_weights_of_another_version_are_refused(runs: Path, command: Command):
    path = next((runs / "micro").glob("trunks/*/[0-9a-f]*.json")).with_suffix(".pt")
    values = torch.load(path)
    torch.save({**values, "format": 7}, path)
    told = refusal(command, runs / "micro")
    assert (
        told == f"{path}: checkpoint format 7, this version reads 1; use the version that wrote it"
    )
    path.write_bytes(path.read_bytes()[:500])
    assert refusal(command, runs / "micro").startswith(f"{path}: damaged, or no checkpoint of ours")


def test_another_text_and_a_short_context_are_refused(
    micro: Path, sweep: Sweep, command: Command, text: Path
):
    own = Path(shutil.copytree(text, micro.parent / "own"))
    small = ("grid.sizes=[{ d_model = 8 }]", "grid.tokens=[6400]", f"data.path={own}")
    assert sweep("run", micro, *small)[0] == 0
    assert sweep("run", micro, *small, "name=short", "model.seq_len=8")[0] == 0
    folder = micro.parent / "runs" / "short"
    assert "model.seq_len = 8 has no room for 8 tokens twice" in refusal(command, folder)
    (own / "more.txt").write_text("a new document\n" * 900)
    for path in sorted(own.glob("0*.txt")):
        path.write_text(path.read_text()[::-1])
    told = refusal(command, micro.parent / "runs" / "micro")
    assert "is not the one that its models were trained on" in told


def test_a_device_that_is_not_there_is_refused(
    runs: Path, command: Command, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    told = refusal(command, runs / "micro", "--device", "cuda")
    assert told == "--device cuda: torch sees no GPU; use cpu"


def test_an_interrupted_command_leaves_what_was_there(
    runs: Path, command: Command, monkeypatch: pytest.MonkeyPatch
):
    command(runs / "micro")
    before = (runs / "micro" / "circuits.parquet").read_bytes()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(circuits, "scores", stop)
    assert command(runs / "micro")[0] == 130
    assert (runs / "micro" / "circuits.parquet").read_bytes() == before
    assert not list((runs / "micro").glob(".*"))
