"""The command that writes text: what it shows, how it streams, what it exports, what it refuses."""

import io
import json
import os
import re
import subprocess
import sys

import pytest
import safetensors
import torch
from safetensors.torch import load_file

from minigpt import checkpoint, generate
from minigpt.config import LearningRates, ModelConfig, ScheduleConfig, TrainConfig
from minigpt.loop import train
from minigpt.model import MiniGPT
from minigpt.schedule import horizon
from minigpt.state import Job
from minigpt.tokenizer import BYTES, Tokenizer
from minigpt.vocabulary import train as learned

SEQ_LEN, BATCH = 32, 128
ALPHABET = set("etaoinshrdlu \n")


@pytest.fixture(scope="module")
def trunk(tmp_path_factory, corpus, text_config):
    """The folder of a trained model: its weights are run.pt, and its states lie beside them."""
    folder = tmp_path_factory.mktemp("trunk")
    schedule = ScheduleConfig(warmup_tokens=10 * BATCH)
    rates = LearningRates(hidden=0.02, embedding=0.02, head=0.02, vector=0.02)
    config = TrainConfig(lr=rates, schedule=schedule, batch_tokens=BATCH, eval_every_tokens=10**6)
    model = ModelConfig(d_model=16, n_layers=1, n_heads=2, vocab_size=257, seq_len=SEQ_LEN)
    job = Job(model=model, data=text_config, train=config, corpus=corpus, folder=folder)
    list(train(job, horizon(schedule, 150 * BATCH, BATCH), folder / "run.pt"))
    return folder


def saved(path, bias: dict[int, float], tokenizer=BYTES, **changes) -> str:
    """The weights of a model that says the same of every next token: log-probabilities `bias`."""
    shape = {"preset": "vaswani", "d_model": 8, "n_layers": 1, "n_heads": 1}
    size = 300 if tokenizer is None else tokenizer.vocab_size
    config = ModelConfig.model_validate(shape | {"vocab_size": size, "seq_len": 12} | changes)
    model = MiniGPT(config)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        for token, value in bias.items():
            model.head.bias[token] = value
    values = {"config": config.model_dump_json(), "model": model.state_dict()}
    told = None if tokenizer is None else tokenizer.to_json()
    checkpoint.save(path, {**values, "tokenizer": told})
    return str(path)


@pytest.fixture
def command(capsys):
    """Runs the command with a checkpoint; what it printed, and where it had something to say."""

    def run(path, *words: str) -> tuple[str, str]:
        assert generate.main(["--checkpoint", str(path), *words]) == 0
        return tuple(capsys.readouterr())

    return run


def test_a_trained_model_goes_on_with_what_it_was_trained_on(trunk, command):
    """In every way of choosing, and greedy is none of chance."""
    greedy = command(trunk / "run.pt", "--prompt", "the ", "--tokens", "20")
    ways = {
        "greedy": [],
        "seed": ["--seed", "3"],
        "one": ["--temperature", "2", "--top-k", "1", "--seed", "5"],
        "beam of one": ["--beam", "1", "--length-penalty", "0.6"],
        "drawn": ["--temperature", "0.7", "--top-k", "10", "--top-p", "0.9", "--seed", "1"],
        "drawn again": ["--temperature", "0.7", "--top-k", "10", "--top-p", "0.9", "--seed", "1"],
        "beam": ["--beam", "4"],
    }
    found = {
        way: command(trunk / "run.pt", "--prompt", "the ", "--tokens", "20", *words)
        for way, words in ways.items()
    }
    for way, (text, said) in found.items():
        assert text.startswith("the "), way
        assert len(text) == 4 + 20 + 1, way
        assert set(text) <= ALPHABET, way
        assert said == "", way
    assert all(found[way] == greedy for way in ("greedy", "seed", "one", "beam of one"))
    assert found["drawn"] == found["drawn again"] != greedy


def test_several_prompts_are_each_as_alone(trunk, command):
    prompts = ["th", "a longer one ", "x"]
    for words in (["--tokens", "8"], ["--tokens", "8", "--temperature", "1"], ["--beam", "2"]):
        alone = [command(trunk / "run.pt", "--prompt", prompt, *words)[0] for prompt in prompts]
        together, _ = command(
            trunk / "run.pt", *(word for p in prompts for word in ("--prompt", p)), *words
        )
        assert together == "".join(f"--- {i} of 3\n{text}" for i, text in enumerate(alone, 1))


def test_a_full_context_ends_the_text_and_is_told(trunk, command):
    """The model reads 32 tokens at most, and one more follows."""
    text, said = command(trunk / "run.pt", "--prompt", "the ")
    assert len(text) == SEQ_LEN + 1 + 1
    assert said == f"stopped: the model's context of {SEQ_LEN} tokens is full\n"
    _, said = command(trunk / "run.pt", "--prompt", "the ", "--prompt", "a" * 32, "--tokens", "5")
    assert said == f"stopped in 2: the model's context of {SEQ_LEN} tokens is full\n"


def test_end_of_text_ends_it_and_is_not_shown(tmp_path, command):
    path = saved(tmp_path / "a.pt", {BYTES.end_of_text: 9.0, ord("x"): 8.0})
    assert command(path, "--prompt", "so") == ("so\n", "")
    assert command(path, "--prompt", "so", "--beam", "3") == ("so\n", "")
    drawn, _ = command(path, "--prompt", "so", "--temperature", "1", "--seed", "2")
    assert drawn.strip("x\n") == "so"


@pytest.mark.parametrize(
    ("prompt", "byte", "shown"),
    [
        (b"caf\xc3", 0xA9, "café\ufffd\ufffd\n"),  # what the prompt began is completed
        (b"caf", 0xC3, "caf\ufffd\ufffd\ufffd\n"),  # the last of them never ends
        (b"\xff", 0x1B, "\ufffd\ufffd\ufffd\ufffd\n"),  # would steer a terminal
        (b"a\t", ord("\n"), "a\t\n\n\n\n"),
        ("日".encode(), ord("!"), "日!!!\n"),
    ],
)
def test_bytes_are_shown_as_text(tmp_path, command, prompt, byte, shown):
    path = saved(tmp_path / "a.pt", {byte: 9.0})
    assert command(path, "--prompt", os.fsdecode(prompt), "--tokens", "3") == (shown, "")


def test_text_appears_token_by_token(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        """Remembers what was to be seen at each flush."""

        seen = ()

        def flush(self):
            self.seen = (*self.seen, self.getvalue())

    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    path = saved(tmp_path / "a.pt", {ord("x"): 9.0})
    assert generate.main(["--checkpoint", path, "--prompt", "so", "--tokens", "3"]) == 0
    assert terminal.seen[:4] == ("so", "sox", "soxx", "soxxx")


@pytest.fixture(scope="module")
def codes(words) -> dict[str, Tokenizer]:
    """A tokenizer of each kind that is trained."""
    text = [words(seed, 1_500) for seed in range(30)]
    return {
        "bpe": learned("bpe", 300, text),
        "wordpiece": learned("wordpiece", 150, text),
    }


def test_a_model_of_bpe_goes_on_from_any_text(tmp_path, command, codes):
    """Its pieces are put together to characters, as they would be of bytes."""
    bpe, path = codes["bpe"], tmp_path / "a.pt"
    lead, *_ = bpe.encode("é".encode())  # a byte of two, which nothing follows
    (th,) = bpe.encode(b"th")
    for id, shown in (
        (th, "日 ththth\n"),
        (bpe.end_of_text, "日 \n"),
        (lead, "日 \ufffd\ufffd\ufffd\n"),
    ):
        saved(path, {id: 9.0}, bpe)
        for how in ([], ["--beam", "2"], ["--temperature", "0.1"]):
            assert command(path, "--prompt", "日 ", "--tokens", "3", *how) == (shown, "")
    saved(path, {th: 9.0}, bpe, seq_len=30)
    text, _ = command(path, "--prompt", "the <|endoftext|>", "--tokens", "1")
    assert text == "the <|endoftext|>th\n"  # what a prompt says is no end


def test_a_model_of_wordpiece_goes_on_word_by_word(tmp_path, command, codes):
    wordpiece, path = codes["wordpiece"], tmp_path / "a.pt"
    inside = next(i for i, piece in enumerate(wordpiece.pieces) if piece == b"e")
    (start,) = wordpiece.encode(b"e")
    saved(path, {start: 9.0}, wordpiece)
    assert command(path, "--prompt", "th  e", "--tokens", "3") == ("th  e e e e\n", "")
    saved(path, {inside: 9.0}, wordpiece)
    assert command(path, "--prompt", "th  e", "--tokens", "3") == ("th  eeee\n", "")
    saved(path, {wordpiece.end_of_text: 9.0}, wordpiece)
    assert command(path, "--prompt", "th  e") == ("th  e\n", "")


def test_a_model_of_tokens_writes_with_the_tokenizer_that_made_them(
    tmp_path, command, codes, capsys
):
    file, path = tmp_path / "tokenizer.json", saved(tmp_path / "a.pt", {261: 9.0}, None)
    file.write_text(codes["bpe"].to_json())
    expected = "so" + 3 * codes["bpe"].pieces[261].decode() + "\n"
    words = ("--prompt", "so", "--tokens", "3")
    assert command(path, *words, "--tokenizer", str(file)) == (expected, "")
    out = tmp_path / "m.safetensors"
    assert command(path, "--export", str(out)) == ("", "")  # no text, no tokenizer
    text = refusal(path, [*words], capsys)
    assert text == (
        f"{path}: was trained on ready-made tokens, and what text they stand for is not known; "
        "give --tokenizer FILE, the tokenizer.json that made them"
    )
    file.write_text(codes["wordpiece"].to_json())
    text = refusal(path, [*words, "--tokenizer", str(file)], capsys)
    assert f"vocab_size = 300, and --tokenizer {file} has 150 ids: it is not the one" in text


def test_weights_of_before_there_were_tokenizers_are_of_bytes(tmp_path, command):
    values = checkpoint.load(saved(tmp_path / "a.pt", {ord("x"): 9.0}))
    checkpoint.save(tmp_path / "a.pt", {k: v for k, v in values.items() if k != "tokenizer"})
    assert command(tmp_path / "a.pt", "--prompt", "so", "--tokens", "2") == ("soxx\n", "")
    _, tokenizer = generate.load(tmp_path / "a.pt")
    assert tokenizer is BYTES


@pytest.mark.parametrize("head", [False, True])
def test_as_a_process(trunk, command, head):
    """With a reader to the end, and with one that has gone: no traceback either way."""
    words = ["--checkpoint", str(trunk / "run.pt"), "--prompt", "the ", "--tokens", "9"]
    process = subprocess.Popen(
        [sys.executable, "-m", "minigpt.generate", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if head:
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == ("", 1)
        process.stderr.close()
    else:
        assert process.communicate() == command(trunk / "run.pt", *words[2:])
        assert process.returncode == 0


def test_export_holds_the_model_and_its_config(trunk, tmp_path, command):
    out = tmp_path / "model.safetensors"
    out.write_text("what was there before")
    assert command(trunk / "run.pt", "--export", str(out)) == ("", "")
    with safetensors.safe_open(out, "pt") as file:
        config = ModelConfig.model_validate_json(file.metadata()["config"])
    values = checkpoint.load(trunk / "run.pt")
    assert config.model_dump() == json.loads(values["config"])
    assert load_file(out).keys() == values["model"].keys()
    model, (before, _) = MiniGPT(config, seed=1), generate.load(trunk / "run.pt")
    model.load_state_dict(load_file(out))
    tokens_BT = torch.arange(SEQ_LEN)[None]
    assert torch.equal(model(tokens_BT), before(tokens_BT))
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


# Bad input


REFUSED = [
    ("--prompt=", "the prompt is empty, .*; give at least one"),
    ("--prompt=a --prompt=", "prompt 2 of 2 is empty, .*; give at least one"),
    (f"--prompt={'a' * 40}", "the prompt has 40 tokens, more than the 32 .*; leave out 8, or"),
    ("--prompt=a --tokens=0", "tokens = 0 asks for no text; give at least 1"),
    ("--prompt=a --temperature=-1", "temperature = -1.0 is not a number of at least 0; 0 takes"),
    ("--prompt=a --temperature=nan", "temperature = nan is not a number of at least 0; 0 takes"),
    ("--prompt=a --temperature=1 --top-p=0", r"top_p = 0.0 is outside \(0, 1\]; 0.9 keeps"),
    ("--prompt=a --temperature=1 --top-p=1.1", r"top_p = 1.1 is outside \(0, 1\]; 0.9 keeps"),
    ("--prompt=a --temperature=1 --top-k=0", "top_k = 0 leaves no token .*; give at least 1"),
    ("--prompt=a --top-k=5", "top_k = 5 has no effect at temperature 0.*; set the temperature"),
    ("--prompt=a --top-p=0.9", "top_p = 0.9 has no effect at temperature 0.*; set the"),
    ("--prompt=a --seed=-1", r"seed = -1 is outside 0 to 2\^63 - 1; give"),
    ("--prompt=a --beam=0", "beam = 0 follows no hypothesis; give a width of at least 1"),
    ("--prompt=a --beam=2 --length-penalty=-1", "length_penalty = -1.0 is not a number .*; 0"),
    ("--prompt=a --length-penalty=1", "length_penalty = 1.0 has no effect .*; give --beam"),
    ("--prompt=a --beam=2 --temperature=1", "beam = 2 draws nothing, .*; leave one of them"),
    ("", "there is nothing to do; give --prompt TEXT, or --export FILE"),
    ("--export=model.pt", "model.pt: weights are exported as .safetensors; give a name"),
    ("--export=no/m.safetensors", "no/m.safetensors: there is no folder no; give a file in a"),
]


def refusal(path, words: list[str], capsys) -> str:
    """The one line that the command has to say, and nothing else."""
    assert generate.main(["--checkpoint", str(path), *words]) == 2
    shown, said = capsys.readouterr()
    assert shown == ""
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return said.removeprefix("error: ").rstrip("\n")


@pytest.mark.parametrize(("options", "expected"), REFUSED, ids=[options for options, _ in REFUSED])
def test_bad_input_is_one_message(trunk, capsys, options, expected):
    assert re.match(expected, refusal(trunk / "run.pt", options.split(), capsys))


RULE = "; give the final weights of a run, runs/<sweep>/trunks/<trunk>/<run_id>.pt"


def test_files_without_a_model_are_refused(trunk, tmp_path, capsys):
    def told(path) -> str:
        return refusal(path, ["--prompt", "a"], capsys).removeprefix(f"{path}: ")

    assert told(tmp_path / "a.pt") == f"no such file{RULE}"
    assert told(tmp_path) == f"not a file{RULE}"
    (tmp_path / "a.pt").write_bytes((trunk / "run.pt").read_bytes()[:-900])
    assert told(tmp_path / "a.pt").startswith("damaged, or no checkpoint of ours (")
    assert told(tmp_path / "a.pt").endswith(RULE)  # and not: delete it
    state = next(trunk.glob("trunk-*.pt"))
    assert told(state).startswith("holds no config, ")
    assert told(state).endswith(RULE)
    torch.save({"format": checkpoint.FORMAT + 1}, tmp_path / "a.pt")
    assert "format 2, this version reads 1; use the version that wrote it" in told(
        tmp_path / "a.pt"
    )


def test_models_of_another_kind_are_refused(trunk, tmp_path, capsys):
    values, path = checkpoint.load(trunk / "run.pt"), tmp_path / "a.pt"

    def told(**changes) -> str:
        checkpoint.save(path, {**values, **changes})
        return refusal(path, ["--prompt", "a"], capsys)

    newer = json.dumps(json.loads(values["config"]) | {"experts": 4})
    assert "experts" in told(config=newer)
    other = json.dumps(json.loads(values["config"]) | {"d_ff": 5})
    for text in (told(config=newer), told(config=other), told(model={}), told(config=3)):
        assert "not a model of this version (" in text
        assert text.endswith("; use the version that wrote it")
    assert "not a tokenizer of the `tokenizers` library" in told(tokenizer="{}")


def test_prompts_that_a_tokenizer_cannot_take(tmp_path, codes, capsys):
    paths = {kind: saved(tmp_path / kind, {}, code) for kind, code in codes.items()}
    for kind, prompt, expected in (
        (
            "wordpiece",
            ["thé e", "a"],
            "prompt 1 of 2 has 'é', which the model's wordpiece tokenizer",
        ),
        (
            "wordpiece",
            ["the 漢字"],
            "the prompt has '漢', '字', which the model's wordpiece tokenizer does",
        ),
        ("wordpiece", [" \n "], "the prompt is empty, .*; give at least one"),
        ("wordpiece", [""], "the prompt is empty, .*; give at least one"),
        ("bpe", [""], "the prompt is empty, .*; give at least one"),
        (
            "bpe",
            [os.fsdecode(b"ab\xff")],
            r"the prompt: byte 2 \(0xff\) is not UTF-8 .*, and only a",
        ),
        (
            "wordpiece",
            [os.fsdecode(b"e\xff")],
            r"the prompt: byte 1 \(0xff\) is not UTF-8 .*, and only",
        ),
        ("bpe", ["the" * 40], r"the prompt has \d+ tokens, more than the 12 .*; leave out"),
    ):
        words = [word for each in prompt for word in ("--prompt", each)]
        assert re.match(expected, refusal(paths[kind], words, capsys)), expected


def test_another_tokenizer_than_the_checkpoints_is_refused(tmp_path, codes, capsys, command):
    path = saved(tmp_path / "a.pt", {codes["bpe"].end_of_text: 9.0}, codes["bpe"])
    file = tmp_path / "tokenizer.json"
    words = ["--prompt", "so", "--tokenizer", str(file)]
    file.write_text(codes["bpe"].to_json())
    assert command(path, *words) == ("so\n", "")
    file.write_text(codes["wordpiece"].to_json())
    text = refusal(path, words, capsys)
    assert text.startswith(f"{path}: holds a tokenizer of its own (bpe ")
    assert f", and --tokenizer {file} is another (wordpiece " in text
    assert text.endswith("150 ids); leave --tokenizer out")
    assert "(bytes, 257 ids)" in refusal(saved(tmp_path / "b.pt", {}), words, capsys)
    file.write_text("{}")
    assert refusal(path, words, capsys).startswith(f"{file}: not a tokenizer of the `tokenizers`")
    file.unlink()
    assert refusal(path, words, capsys).startswith(f"{file}: cannot be read (No such file")
