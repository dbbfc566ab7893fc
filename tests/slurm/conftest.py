"""These tests are of the Slurm that `make test-slurm` starts."""

import random
import subprocess
from pathlib import Path

import pytest
from cluster_user import CONFIG, Suite


@pytest.fixture(scope="session", autouse=True)
def slurm() -> None:
    """These tests are of a real Slurm; without one they fail, they are not skipped."""
    told = subprocess.run(["sinfo", "-h"], capture_output=True, text=True)
    assert told.returncode == 0, f"no Slurm: run `make test-slurm` ({told.stderr.strip()})"


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    """The command, a config it.toml and a folder of text, in a folder that nodes see."""
    (tmp_path / "text").mkdir()
    rng = random.Random(7)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 6))) for _ in range(60)]
    for i in range(40):
        lines = [" ".join(rng.choices(words, k=8)) for _ in range(70)]
        (tmp_path / "text" / f"{i:02d}.txt").write_text("\n".join(lines))
    (tmp_path / "it.toml").write_text(CONFIG)
    return Suite(tmp_path)
