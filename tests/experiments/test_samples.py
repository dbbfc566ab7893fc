"""Samples of a sweep: which models speak, after which prompts, and what can go wrong."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from experiments import samples, schema, store
from experiments.sweep import main as sweep_main
from minigpt import data, generate, vocabulary
from minigpt.shards import write_bin
from minigpt.tokenizer import BYTES

CONFIG = """
name = "micro"
runs_dir = "{runs}"
[model]
n_layers = 1
d_head = 4
seq_len = 32
[data]
source = "text"
path = "{text}"
val_fraction = 0.2
eval_tokens = 1024
curve_eval_tokens = 256
[train]
batch = {{ rule = "constant", tokens = 64 }}
lr = {{ rule = "inverse-width", value = 0.02, base_width = 8 }}
[schedule]
warmup_tokens = 128
[grid]
tokens = [3200, 6400]
sizes = [{{ d_model = 8, seeds = [0, 1] }}, {{ d_model = 12, seeds = [3] }}]
lr_multipliers = [0.5, 1]
[launch]
executor = "inline"
device = "cpu"
"""
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """A finished sweep: two sizes, one with two seeds and two rates, two horizons."""
    home = tmp_path_factory.mktemp("samples")
    shutil.copytree(text, home / "text")
    path = home / "micro.toml"
    path.write_text(CONFIG.format(runs=home / "runs", text=home / "text"))
    assert sweep_main(["run", str(path)]) == 0
    return home / "runs" / "micro"


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of the sweep that may be damaged, its text where it was."""
    shutil.copytree(trained.parent, tmp_path / "runs")
    return tmp_path / "runs" / "micro"


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Call the command in this process: exit code, standard output, standard error."""

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = samples.main([str(word) for word in words])
        told = capsys.readouterr()
        return code, told.out, told.err

    return call


def weights(folder: Path) -> list[Path]:
    """Final weights of the runs that speak."""
    frame = pd.read_parquet(folder / "samples.parquet").drop_duplicates("run_id")
    return [
        folder / "trunks" / row["trunk_id"] / f"{row['run_id']}.pt"
        for row in frame.to_dict("records")
    ]


# What is written


def test_every_size_and_horizon_speaks_once_after_the_same_prompts(
    folder: Path, command: Command
) -> None:
    code, out, err = command(folder)
    assert (code, err) == (0, "")
    path = folder / "samples.parquet"
    assert out.splitlines() == [
        f"{path}: 4 prompts, 4 models; drawn at temperature 0.8, seed 0, at most 120 tokens",
        f"next: python -m analysis.report {folder}",
    ]
    frame, runs = pd.read_parquet(path), pd.read_parquet(folder / "results.parquet")
    assert len(runs) == 12
    prompts = list(frame["prompt"].unique())
    assert len(prompts) == 4
    assert list(frame["prompt"]) == prompts * 4
    joined = frame.merge(runs, on="run_id", suffixes=("", "_there"))
    assert len(joined) == 16
    for name in ("trunk_id", "n_total", "seed", "tokens"):
        assert (joined[name] == joined[f"{name}_there"]).all()
    speakers = joined.drop_duplicates("run_id")[["d_model", "seed", "tokens", "arm"]]
    assert speakers.to_numpy().tolist() == [
        [8, 0, 3200, "main"], [8, 0, 6400, "main"], [12, 3, 3200, "main"], [12, 3, 6400, "main"],
    ]  # fmt: skip
    bytes_ = [len((p + t).encode()) for p, t in zip(frame["prompt"], frame["text"], strict=True)]
    assert max(bytes_) <= 32 + 1  # the context, and one more
    assert frame["text"].nunique() > 8
    stored = pq.read_schema(path)
    assert stored.remove_metadata().equals(schema.SAMPLES.remove_metadata())
    assert stored.metadata[b"schema"] == b"samples/1"
    assert [file.name for file in folder.glob(".*")] == []


def test_the_prompts_begin_documents_that_no_model_was_trained_on(
    folder: Path, command: Command
) -> None:
    command(folder)
    trunk = store.trunks(folder)[0]
    corpus = data.prepare(trunk.data, folder.parent / "data")
    held_out, training = (
        bytes(side[side < 256].astype(np.uint8)) for side in (corpus.val, corpus.train)
    )
    documents = {path.read_bytes() for path in Path(str(trunk.data.path)).iterdir()}
    for prompt in pd.read_parquet(folder / "samples.parquet")["prompt"].unique():
        raw = prompt.encode()
        assert 0 < len(raw) <= 16  # half the context
        owners = [text for text in documents if text.startswith(raw + b" ")]
        assert owners
        assert any(text in held_out and text not in training for text in owners)


def test_greedy_text_is_that_of_the_generate_command(
    folder: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--prompt", "ab", "--prompt", "caf\u00e9 ", "--tokens", 9, "--temperature", 0)
    assert command(folder, *words)[0] == 0
    frame = pd.read_parquet(folder / "samples.parquet")
    assert pq.read_schema(folder / "samples.parquet").metadata[b"how"] == (
        b"greedy, at most 9 tokens"
    )
    for path, (_, rows) in zip(weights(folder), frame.groupby("run_id", sort=False), strict=True):
        for prompt, text in zip(rows["prompt"], rows["text"], strict=True):
            capsys.readouterr()
            generate.main(["--checkpoint", str(path), "--prompt", prompt, "--tokens", "9"])
            assert capsys.readouterr().out == f"{prompt}{text}\n"


def test_the_same_seed_draws_the_same_and_another_draws_other_text(
    folder: Path, command: Command
) -> None:
    found = []
    for seed in (1, 1, 2):
        assert command(folder, "--seed", seed, "--prompt", "ab", "--prompt", "ab")[0] == 0
        found.append(pd.read_parquet(folder / "samples.parquet")["text"].tolist())
    assert found[0] == found[1] != found[2]
    assert found[0][0] != found[0][1]  # the same prompt again is drawn anew


def test_prompts_of_the_users_need_no_corpus(folder: Path, command: Command) -> None:
    elsewhere(folder, folder / "gone")
    code, _, err = command(folder)
    assert code == 2
    assert f"data.path = '{folder / 'gone'}': no such file or folder" in err
    assert err.endswith("or give prompts of your own with --prompt TEXT\n")
    assert err.count("\n") == 1
    assert not (folder / "samples.parquet").exists()
    assert command(folder, "--prompt", os.fsdecode(b"\xff!"))[0] == 0
    assert set(pd.read_parquet(folder / "samples.parquet")["prompt"]) == {"\ufffd!"}


def elsewhere(folder: Path, path: Path) -> None:
    """Make the sweep's text one at `path`."""
    for file in (folder / "trunks").glob("*/spec.json"):
        spec = json.loads(file.read_text())
        spec["data"]["path"] = str(path)
        file.write_text(json.dumps(spec))


def test_another_text_has_no_prompts_for_these_models(folder: Path, command: Command) -> None:
    other = folder.parents[1] / "other"
    other.mkdir()
    for i in range(30):
        (other / f"{i}.txt").write_text(f"another text, number {i}\n" * 60)
    elsewhere(folder, other)
    code, _, err = command(folder)
    assert code == 2
    assert err.count("\n") == 1
    assert "is not the one that its models were trained on" in err
    assert "give prompts of your own with --prompt TEXT" in err


def test_runs_that_left_the_plan_do_not_speak(folder: Path, command: Command) -> None:
    manifest = json.loads((folder / "sweep.json").read_text())
    runs = pd.read_parquet(folder / "results.parquet")
    gone = set(runs.loc[runs["tokens"] == 6400, "run_id"])
    manifest["runs"] = [run for run in manifest["runs"] if run not in gone]
    (folder / "sweep.json").write_text(json.dumps(manifest))
    assert command(folder, "--prompt", "a")[0] == 0
    assert set(pd.read_parquet(folder / "samples.parquet")["tokens"]) == {3200}


@example(documents=[b"\x1f"], at_most=1)
@example(documents=["\u3000\u3000昔々 ある".encode(), b"\x1c \x1f"], at_most=8)
@given(
    documents=st.lists(st.text(max_size=40).map(str.encode), max_size=8),
    at_most=st.integers(1, 30),
)
def test_beginnings_of_any_documents(documents: list[bytes], at_most: int) -> None:
    tokens = [t for document in documents for t in (*document, BYTES.end_of_text)]
    found = samples.beginnings(np.array(tokens, np.uint16), BYTES, at_most)
    assert len(found) <= samples.PROMPTS
    assert len(set(found)) == len(found)
    for prompt in found:
        assert 0 < len(prompt) <= at_most
        assert prompt.decode().strip()  # whole characters, not all of them blank
        assert any(d.decode().lstrip().startswith(prompt.decode()) for d in documents)


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_prompts_of_other_tokenizers_are_text_that_they_know(kind: str, text: Path) -> None:
    known = [path.read_bytes() for path in sorted(text.iterdir())[:12]]
    tokenizer = vocabulary.train(kind, 300 if kind == "bpe" else 60, known)  # type: ignore[arg-type]
    documents = ["\u65e5\u672c and more words".encode(), *known]
    ids = [[*tokenizer.encode(document), tokenizer.end_of_text] for document in documents]
    shard = np.concatenate([np.array(each, np.uint16) for each in ids])
    found = samples.beginnings(shard, tokenizer, 24)
    assert len(found) == samples.PROMPTS
    assert all(0 < len(prompt) <= 24 and not tokenizer.unknown(prompt) for prompt in found)
    strange = kind == "wordpiece"  # the first document begins with what it does not know
    for prompt, document in zip(found, documents[strange:], strict=False):
        assert document.startswith(prompt)


# What goes wrong


def test_missing_and_damaged_weights_are_named_and_counted(folder: Path, command: Command) -> None:
    assert command(folder, "--prompt", "a")[0] == 0
    first, second, *others = weights(folder)
    first.unlink()
    second.write_bytes(second.read_bytes()[:-900])
    code, out, err = command(folder, "--prompt", "a")
    assert code == 1
    assert "1 prompts, 2 models" in out
    lines = err.splitlines()
    assert lines[0].startswith(f"no sample: {first}: no such file")
    assert lines[1].startswith(f"no sample: {second}: damaged")
    assert lines[2].startswith("2 of 4 runs have no weights; ")
    assert len(pd.read_parquet(folder / "samples.parquet")) == 2
    before = (folder / "samples.parquet").read_bytes()
    for path in others:
        path.unlink()
    code, out, err = command(folder, "--prompt", "a")
    assert (code, out) == (2, "")
    assert "none of the 4 finished runs has weights that can be read" in err
    assert err.count("\n") == 1
    assert (folder / "samples.parquet").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--prompt="], "the prompt is empty"),
        (["--prompt=a", "--prompt="], "prompt 2 of 2 is empty"),
        ([f"--prompt={'a' * 40}"], "the prompt has 40 tokens, more than the 32"),
        (["--tokens=0"], "tokens = 0 asks for no text"),
        (["--temperature=-1"], "temperature = -1.0 is not a number of at least 0"),
        (["--seed=-1"], "seed = -1 is outside"),
    ],
)
def test_bad_input_is_one_message(
    folder: Path, command: Command, words: list[str], told: str
) -> None:
    code, out, err = command(folder, *words)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {told}")
    assert err.count("\n") == 1
    assert not (folder / "samples.parquet").exists()


def test_folders_without_a_finished_run(folder: Path, tmp_path: Path, command: Command) -> None:
    for place in (tmp_path / "nowhere", tmp_path):
        code, _, err = command(place)
        assert code == 2
        assert err == (
            f"error: {place}: no sweep.json in it; give the folder of a sweep, such as runs/quick\n"
        )
    for path in (folder / "trunks").glob("*/*.json"):
        if path.name not in ("spec.json", "status.json"):
            path.unlink()
    code, _, err = command(folder)
    assert code == 2
    assert "no run has finished yet; `python -m experiments.sweep status" in err


def test_a_sweep_of_ready_made_tokens_has_no_text(tmp_path: Path, command: Command) -> None:
    rng = np.random.default_rng(0)
    for side, count in (("train", 9_000), ("val", 2_000)):
        write_bin(tmp_path / f"{side}.bin", rng.integers(0, 50, count), header=True)
    path = tmp_path / "micro.toml"
    text = CONFIG.format(runs=tmp_path / "runs", text=tmp_path / "train.bin")
    text = text.replace('source = "text"', f'source = "tokens"\nval_path = "{tmp_path}/val.bin"')
    path.write_text(text.replace("val_fraction = 0.2", "vocab_size = 50"))
    grid = ["grid.sizes=[{ d_model = 8 }]", "grid.tokens=[3200]"]
    assert sweep_main(["run", str(path), *grid]) == 0
    code, _, err = command(tmp_path / "runs" / "micro", "--prompt", "a")
    assert code == 2
    assert "trained on ready-made tokens (data.source = 'tokens')" in err
    assert err.count("\n") == 1
