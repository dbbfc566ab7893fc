"""A corpus and a sweep small enough to train in a second."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.config import load
from experiments.corpora import Corpora
from experiments.plan import expand
from experiments.spec import TrunkSpec
from minigpt import data

MICRO = """
name = "micro"
runs_dir = "{runs}"
[model]
preset = "gpt"
n_layers = 1
d_head = 4
seq_len = 16
[data]
source = "text"
path = "{text}"
val_fraction = 0.2
eval_tokens = 1024
curve_eval_tokens = 256
[train]
batch = {{ rule = "constant", tokens = 64 }}
lr = {{ rule = "inverse-width", value = 0.02, base_width = 8 }}
eval_every_tokens = 1024
[schedule]
warmup_tokens = 128
[grid]
tokens = [6400, 12800]
sizes = [{{ d_model = 8 }}, {{ d_model = 16 }}]
[launch]
executor = "inline"
device = "cpu"
checkpoint_seconds = 0.05
"""


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 40 documents of random words, about 80 kB."""
    folder = tmp_path_factory.mktemp("text")
    rng = random.Random(7)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 6))) for _ in range(60)]
    for i in range(40):
        lines = [" ".join(rng.choices(words, k=8)) for _ in range(70)]
        (folder / f"{i:02d}.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="session")
def micro_in(text: Path) -> Callable[[Path], Path]:
    """Writes a config file into a folder, whose runs land in the folder's runs."""

    def write(folder: Path) -> Path:
        path = folder / "micro.toml"
        path.write_text(MICRO.format(runs=folder / "runs", text=text))
        return path

    return write


@pytest.fixture
def micro(tmp_path: Path, micro_in: Callable[[Path], Path]) -> Path:
    """A config file whose runs land in tmp_path/runs."""
    return micro_in(tmp_path)


@pytest.fixture
def plan(micro: Path, tmp_path: Path) -> Callable[..., list[TrunkSpec]]:
    """The trunks of the micro config with overrides."""

    def call(*overrides: str) -> list[TrunkSpec]:
        config = load(micro, list(overrides))
        return expand(config, Corpora({None: data.prepare(config.data, tmp_path / "cache").info}))

    return call


@pytest.fixture
def sweep(micro: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Call the command in this process: exit code, standard output, standard error."""
    from experiments.sweep import main

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        told = capsys.readouterr()
        return code, told.out, told.err

    return call
