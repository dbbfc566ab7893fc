"""One thread for every test here, and a small corpus of random words."""

import random

import pytest
import torch

from minigpt import data
from minigpt.config import DataConfig


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Bit-identity is promised on one thread; small tensors are also fastest there."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def float64():
    """Models and their position buffers in double precision, where rounding must not decide."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(scope="session")
def words():
    """`words(seed, size)` is about `size` bytes of lines of random words."""

    def make(seed: int, size: int) -> bytes:
        rng = random.Random(seed)
        lexicon = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 6))) for _ in range(60)]
        lines, length = [], 0
        while length < size:
            lines.append(" ".join(rng.choices(lexicon, k=8)))
            length += len(lines[-1]) + 1
        return ("\n".join(lines) + "\n").encode()

    return make


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory, words):
    """Forty documents, about 60 kB in all."""
    folder = tmp_path_factory.mktemp("text")
    for i in range(40):
        (folder / f"{i:02d}.txt").write_bytes(words(i, 1_500))
    return folder


@pytest.fixture(scope="session")
def text_config(text_folder):
    return DataConfig(
        source="text",
        path=str(text_folder),
        val_fraction=0.2,
        eval_tokens=4_000,
        curve_eval_tokens=1_000,
    )


@pytest.fixture(scope="session")
def corpus(text_config, tmp_path_factory):
    return data.prepare(text_config, tmp_path_factory.mktemp("cache"))
