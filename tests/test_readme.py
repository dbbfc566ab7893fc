"""Every command that the README shows works, on the tiny config; its links and files exist."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.partition("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("python -m")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the repository's root, where the commands may write."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "configs", folder / "configs")
    shutil.copytree(ROOT / "tests" / "data" / "quick", folder / "runs" / "quick")
    notes = folder / "notes"
    notes.mkdir()
    for path in sorted((ROOT / "experiments").glob("*.py")) + sorted(
        (ROOT / "minigpt").glob("*.py")
    ):
        (notes / f"{path.stem}.txt").write_text(path.read_text())
    rows = [
        {"params": n, "tokens": d, "loss": 1.7 + 400 / n**0.34 + 410 / d**0.28}
        for n in (1e6, 4e6, 1.6e7, 6.4e7)
        for d in (1e8, 4e8, 1.6e9, 6.4e9)
    ]
    pd.DataFrame(rows).to_csv(folder / "losses.csv", index=False)
    return folder


def is_of_a_whole_study(command: str) -> bool:
    """Whether a command needs more runs than the tiny config has."""
    return re.search(r"analysis\.(fit|predict|design) runs/quick", command) is not None


def run(command: str, folder: Path) -> None:
    words = shlex.split(command.replace("~/notes", "notes"))
    if "analysis.benchmark" in words:
        words += ["--suite", "coverage", "--studies", "1"]
    if "data.source=text" in words:
        words += ["data.eval_tokens=4096", "data.max_epochs=2"]
    done = subprocess.run(
        [sys.executable, *words[1:]], cwd=folder, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.mark.timeout(900)  # all of them, one after another
def test_commands_that_train_run_on_the_tiny_config(folder: Path) -> None:
    commands = [command for command in COMMANDS if not is_of_a_whole_study(command)]
    assert len(commands) > 8
    for command in commands:
        run(command.replace("quick", "tiny"), folder)
    assert (folder / "runs/tiny/report.html").stat().st_size > 10_000
    assert len(pd.read_parquet(folder / "runs/mytext/results.parquet")) == 12


def test_commands_on_a_whole_study_read_the_stored_sweep(folder: Path) -> None:
    commands = [command for command in COMMANDS if is_of_a_whole_study(command)]
    assert len(commands) > 4
    for command in commands:
        run(command, folder)


def test_commands_of_the_makefile_are_those_of_the_readme() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^make (\w+)", README, re.MULTILINE)
    assert {"quickstart", "test"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize(
    "path",
    [
        *sorted(p.name for p in ROOT.glob("*.md")),
        "docs/quick.md",
        "docs/design.md",
        "docs/benchmarks.md",
        "docs/heads.md",
    ],
)
def test_links_lead_somewhere(path: str) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / path).read_text()):
        assert link.startswith("http") or ((ROOT / path).parent / link).exists(), link
