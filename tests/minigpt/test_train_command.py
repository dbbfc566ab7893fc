"""The command that trains one model: what it leaves, how it goes on, what it refuses."""

import io
import json
import os
import re
import shlex
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

from minigpt import checkpoint, generate, train, watch, weights
from minigpt.config import ModelConfig
from minigpt.event import Evaluation, Progress
from minigpt.watch import Watch

TINY = [
    "--d-model",
    "16",
    "--n-layers",
    "1",
    "--n-heads",
    "2",
    "--seq-len",
    "16",
    "--batch-tokens",
    "64",
    "--device",
    "cpu",
]
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(tmp_path, capsys, monkeypatch) -> Command:
    """Call the command in this process and a folder of its own: exit code, both outputs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "settle", lambda _: None)  # tests have one thread already

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = train.main([*TINY, *map(str, words)])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def on_text(command, text_folder) -> Command:
    """The command on a small text, in the folder `out`."""

    def call(*words: object) -> tuple[int, str, str]:
        return command("--text", text_folder, "--tokens", 3_200, "--out", "out", *words)

    return call


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(path)["model"]


def accepted(out: str) -> tuple[float, ...]:
    """Shares in percent, with errors and lines: the model's, unigram ones, of held-out text."""
    told = re.search(
        r"accepts: (\S+)% ± (\S+)% \((\d+)\) of the model's, (\S+)% ± (\S+)% \((\d+)\) of "
        r"unigram lines as long, (\S+)%",
        out,
    )
    assert told is not None
    return tuple(map(float, told.groups()))


def assert_same_weights(one: Path, two: Path) -> None:
    mine, theirs = weights_of(one), weights_of(two)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


# What it does


def test_trains_writes_a_sample_and_names_the_next_command(on_text, capsys):
    code, out, err = on_text("--dropout", 0.1, "--prompt", "the ")
    assert (code, err) == (0, "")
    assert {path.name for path in Path("out").iterdir()} >= {
        *("config.json", "model.pt", "result.json", "sample.txt", "data"),
    }
    model, tokenizer = weights.load(Path("out/model.pt"))
    assert tokenizer is not None
    assert model.config == ModelConfig(
        d_model=16, n_layers=1, n_heads=2, d_ff=64, vocab_size=257, seq_len=16, dropout=0.1
    )
    losses = re.search(r"held-out loss (\S+) ± (\S+) nats per token, (\S+) bits per byte", out)
    assert losses is not None
    loss, se, bpb = map(float, losses.groups())
    assert 1 < loss < 4
    assert 0 < se < 0.2
    assert loss / 0.6932 <= bpb < loss / 0.69  # an end of text is no byte
    sample = Path("out/sample.txt").read_text()
    assert sample.startswith("the ")
    assert len(sample) > 4
    assert generate.visible(sample) in out
    assert "tokenize" not in out  # the text is no Python
    (following,) = re.findall(r"^next: python -m minigpt.generate (.*)$", out, re.MULTILINE)
    assert generate.main(shlex.split(following)) == 0
    assert capsys.readouterr().out.startswith("the ")


def test_again_it_trains_nothing_and_says_the_same(on_text):
    first = on_text()
    before = Path("out/model.pt").stat()
    again = on_text()
    assert again[0] == 0
    assert Path("out/model.pt").stat().st_mtime_ns == before.st_mtime_ns
    tails = [out[out.index("held-out loss") :] for _, out, _ in (first, again)]
    assert tails[0] == tails[1]


def test_more_tokens_go_on_from_the_trunk(on_text):
    assert on_text()[0] == 0
    code, out, _ = on_text("--tokens", "6.4e3")
    assert code == 0
    assert "goes on from step 40 of 100" in out
    assert on_text("--tokens", 6_400, "--out", "direct")[0] == 0
    assert_same_weights(Path("out/model.pt"), Path("direct/model.pt"))


@pytest.mark.parametrize("dropout", [0, 0.1])
def test_a_signal_saves_and_the_same_command_goes_on(on_text, monkeypatch, dropout):
    """To the same bits as without."""
    hear = Watch.hear

    def hear_and_stop(self, event):
        hear(self, event)
        if isinstance(event, Progress) and event.step == 33:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Watch, "hear", hear_and_stop)
        code, out, err = on_text("--dropout", dropout)
    assert (code, err) == (130, "")
    assert "stopped; what was trained is in out, and the same command goes on" in out
    assert not Path("out/model.pt").exists()
    code, out, _ = on_text("--dropout", dropout)
    assert code == 0
    assert "goes on from step 33 of 50" in out
    assert on_text("--dropout", dropout, "--out", "whole")[0] == 0
    assert_same_weights(Path("out/model.pt"), Path("whole/model.pt"))


def test_tokens_of_a_vocabulary_learned_from_the_text(on_text, capsys):
    code, out, err = on_text("--tokenizer", "bpe", "--vocab-size", 300)
    assert code == 0, err
    model, tokenizer = weights.load(Path("out/model.pt"))
    assert tokenizer is not None
    assert (tokenizer.kind, model.config.vocab_size) == ("bpe", 300)
    losses = re.search(r"held-out loss (\S+) .*, (\S+) bits per byte", out)
    assert losses is not None
    loss, bpb = map(float, losses.groups())
    assert 1 < loss / 0.6931 / bpb < 4  # bytes of a token
    (following,) = re.findall(r"^next: python -m minigpt.generate (.*)$", out, re.MULTILINE)
    assert generate.main(shlex.split(following)) == 0
    assert capsys.readouterr().out.strip()
    (file,) = Path("out/data").glob("*/tokenizer.json")
    assert on_text("--tokenizer", file, "--out", "again")[0] == 0
    assert_same_weights(Path("out/model.pt"), Path("again/model.pt"))
    code, _, err = on_text()
    assert code == 2
    assert "model.vocab_size = 300 there, 257 now" in err
    assert 'data.tokenizer = "bpe" there, "bytes" now' in err


def test_tokens_that_forget_lines(command):
    for i in range(40):
        Path(f"{i}.py").write_text(f"    x{i} = f(x{i % 7})\n" * 70)
    words = ("--text", "*.py", "--out", "out", "--tokens", 1_280)
    code, out, err = command(*words, "--tokenizer", "wordpiece", "--vocab-size", 60)
    assert code == 0, err
    assert "accepts" not in out
    assert "next: " in out


@pytest.mark.parametrize("out", ["model", None])
def test_what_it_writes_is_not_part_of_the_text(command, text_folder, out):
    shutil.copytree(text_folder, ".", dirs_exist_ok=True)
    place = () if out is None else ("--out", out)
    for seed in (0, 1):  # one model after the other in models/, or the same twice
        words = ("--tokens", 640, *(place or ("--out", f"models/{seed}")), "--text")
        code, told, err = command(*words, ".")
        assert code == 0, err
        assert "text: .: 5" in told
    assert command(*words, str(text_folder))[0] == 0  # the same text by another name


def test_the_folder_has_the_name_of_the_text(command, text_folder):
    Path("my notes.d").symlink_to(text_folder)
    assert command("--text", "my notes.d/*.txt", "my notes.d", "--tokens", 640)[0] == 0
    assert command("--text", "my notes.d", "--tokens", 640)[0] == 0
    assert sorted(path.name for path in Path("models").iterdir()) == ["my-notes", "text"]


def test_of_python_it_tells_how_many_lines_are_accepted(command):
    for i in range(40):
        Path(f"{i}.py").write_text(f"    x['k{i % 7}'] = f('{i % 5}')\n" * 70 + f"y = {i}\n")
    words = ("--text", "*.py", "--out", "out", "--seq-len", 64)
    code, out, err = command(*words, "--tokens", 12_800, "--lr", 0.02)
    assert code == 0, err
    share, se, n, unigram, _, n_unigram, held_out = accepted(out)
    assert n == n_unigram >= 200
    assert 0 <= unigram < held_out == 100
    assert share > unigram
    assert se < 10


@pytest.mark.slow
def test_on_the_default_text_the_lines_beat_unigram_ones(command):
    """The README's command, with a smaller model and fewer tokens."""
    shape = ("--d-model", 64, "--seq-len", 128, "--batch-tokens", 2_048)
    code, out, err = command(*shape, "--tokens", 1e6, "--prompt", "def ")
    assert code == 0, err
    assert Path("models/stdlib/sample.txt").read_text().startswith("def ")
    share, se, n, unigram, unigram_se, _, held_out = accepted(out)
    assert n >= 200
    assert share - unigram > 3 * (se**2 + unigram_se**2) ** 0.5
    assert share < held_out


def test_a_model_that_diverges_is_named_and_not_trained_again(on_text):
    for _ in range(2):
        code, _, err = on_text("--lr", 1e6)
        assert code == 1
        assert err.startswith("error: diverged: training loss")
        assert "give a lower --lr" in err
    assert not Path("out/model.pt").exists()


# Random tokens


@pytest.mark.parametrize("preset", ["gpt", "vaswani"])
def test_fresh_random_tokens_cannot_be_learned(command, preset):
    toy = ("--toy", "fresh", "--preset", preset, "--vocab-size", 16)
    code, out, _ = command(*toy, "--tokens", 60_000, "--batch-tokens", 256)
    assert code == 0, out
    told = re.search(r"training loss (\S+), held out (\S+) ± (\S+) .*ln 16 = 2.7726", out)
    assert told is not None
    losses = list(map(float, told.groups()))
    assert losses[:2] == pytest.approx([2.7726, 2.7726], rel=0.01)
    assert "\nas it must be: " in out


@pytest.mark.parametrize("preset", ["gpt", "vaswani"])
def test_a_fixed_set_is_learned_by_heart(command, preset):
    code, out, _ = command("--toy", "fixed", "--preset", preset, "--tokens", 20_000)
    assert code == 0, out
    told = re.search(r"training loss (\S+), held out (\S+) ± ", out)
    assert told is not None
    own, held_out = map(float, told.groups())
    assert own < 3 < 4.1589 < held_out
    assert "\nas it must be: " in out


def test_a_model_that_learns_nothing_by_heart_is_not_as_it_must_be(command):
    code, out, _ = command("--toy", "fixed", "--preset", "vaswani", "--lr", 1e-9, "--tokens", 640)
    assert code == 1
    assert "NOT as it must be: " in out
    code, out, _ = command("--toy", "fresh", "--lr", 1e6, "--tokens", 6_400)
    assert code == 1
    assert "NOT as it must be: diverged" in out


# What it refuses


def test_a_folder_of_another_model(on_text, text_folder, tmp_path):
    assert on_text()[0] == 0
    before = Path("out/model.pt").read_bytes()
    for words, told in (
        (("--d-model", 8), "model.d_model = 16 there, 8 now"),
        (("--seed", 1), "train.seed = 0 there, 1 now"),
        (("--dropout", 0.2), "model.dropout = null there, 0.2 now"),
        (("--text", text_folder / "[012]*.txt"), "data_sha256 = "),
    ):
        code, _, err = on_text(*words)
        assert code == 2
        assert re.fullmatch(r"error: out: holds a model of another config: .*--out\n", err)
        assert told in err
    assert Path("out/model.pt").read_bytes() == before
    Path("notes").mkdir()
    Path("notes/a.txt").write_text("mine")
    for words, told in (
        (("--out", "notes"), "notes: holds 1 files that are of no model of ours, such as a.txt"),
        (("--out", "notes/a.txt"), "notes/a.txt: is a file"),
    ):
        code, _, err = on_text(*words)
        assert code == 2
        assert told in err
    assert os.listdir("notes") == ["a.txt"]
    Path("out/config.json").write_text("{")
    assert "out/config.json: damaged" in on_text()[2]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--text nowhere", "--text = 'nowhere': no such file or folder"),
        ("--text {short}", "leave no training text at --val-fraction = 0.12; give more text or"),
        ("--val-fraction 1", "--val-fraction 1.0: Input should be less than 1"),
        ("--column text", "--column text belongs to --text"),
        ("--text {text} --column text", "--column = 'text' belongs to .jsonl and .parquet files"),
        ("--text {records}", "such as --column text, or leave such files out"),
        (
            "--text {text} --seq-len 65_536 --batch-tokens 65_536 --tokens 200_000",
            "such sequence; give more --text or a shorter --seq-len",
        ),
        ("--text {text} --vocab-size 300", "--vocab-size 300 is for a tokenizer that is trained"),
        ("--text {text} --tokenizer bpe --vocab-size 100", "--vocab-size = 100 is outside 257"),
        ("--text {text} --tokenizer bpe --vocab-size 60_000", "--vocab-size = 60,000: "),
        ("--text {text} --tokenizer none.json", "--tokenizer = 'none.json': no such file"),
        ("--toy fresh --tokenizer bpe", "--tokenizer has no effect on the random tokens of --toy"),
        ("--batch-tokens 100", "--batch-tokens 100 is not a multiple of --seq-len 16; use 96"),
        ("--tokens 100", "--tokens 100 are less than two steps of --batch-tokens 64"),
        ("--n-heads 3", "n_heads = 3 does not divide d_model = 16; choose n_heads among"),
        ("--dropout 1", "--dropout 1.0: Input should be less than 1"),
        ("--lr 0", "--lr 0.0 is no rate"),
        ("--text {text} --prompt ", "--prompt has 0 tokens; give 1 to 16"),
        ("--text {text} --prompt 0123456789abcdefg", "--prompt has 17 tokens; give 1 to 16"),
        ("--toy fresh --text {text}", "--text has no effect on the random tokens of --toy"),
        ("--toy fixed --out out", "--out has no effect on the random tokens of --toy"),
    ],
)
def test_bad_input_is_one_message_before_anything_is_trained(
    command, tmp_path, text_folder, flags, told
):
    (tmp_path / "short.txt").write_text("a few words")
    (tmp_path / "records.jsonl").write_text(json.dumps({"text": "a"}) + "\n")
    names = {"text": text_folder, "short": "short.txt", "records": "records.jsonl"}
    code, out, err = command(*(word.format(**names) for word in flags.split(" ")))
    assert code == 2
    (message,) = [line for line in err.splitlines() if not line.startswith("training a ")]
    assert message.startswith("error: ")
    assert told in message
    assert out == ""
    assert not list(tmp_path.glob("**/config.json"))


@pytest.mark.parametrize("flags", ["--tokens 1.5", "--tokens many", "--seed -1", "--toy old"])
def test_what_is_no_flag_is_refused_with_usage(command, capsys, flags):
    with pytest.raises(SystemExit) as ended:
        command(*flags.split())
    assert ended.value.code == 2
    assert "usage: python -m minigpt.train" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(command):
    code, _, err = command("--device", "cuda")
    assert code == 2
    assert "--device cuda: torch sees no GPU" in err


# What a person sees meanwhile


def told_by(events, monkeypatch, **console) -> str:
    """What a Watch of 100 steps prints; each look at its clock is ten seconds later."""
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(watch.time, "monotonic", lambda: float(next(clock)))
    out = io.StringIO()
    console = Console(file=out, width=120, markup=False, highlight=False, **console)
    with Watch(100, 64, console) as seen:
        for event in events:
            seen.hear(event)
    return out.getvalue()


def test_lines_tell_progress_time_left_and_points(monkeypatch):
    point = Evaluation(
        step=50, branch=False, lr=0.1, train_loss=2.5, val_loss=2.6, val_loss_se=0.01, seconds=1.0
    )
    steps = [Progress(step=20 + i, train_loss=2.5) for i in range(0, 40, 10)]
    out = told_by([*steps[:3], point, steps[3]], monkeypatch)
    assert "goes on from step 20 of 100" in out
    assert re.search(r"30% done, \d+:\d\d left, [\d,]+ tokens/s  step 30 of 100 loss 2.500", out)
    assert "step 50 of 100: training loss 2.5000, held out 2.6000 ± 0.010" in out


def test_a_terminal_has_a_bar(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(watch, "LINE_SECONDS", -1.0)
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with Watch(100, 64, console) as seen:
        for step in range(0, 101, 20):
            seen.hear(Progress(step=step, train_loss=2.5))
    out = console.file.getvalue()
    assert "step 100 of 100 loss 2.500" in out
    assert "100%" in out
    assert "done," not in out  # no lines of those who read a log
