"""The notebooks run from top to bottom and show what they promise."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from analysis import public

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "analysis" / "notebooks"


def run(name: str) -> str:
    """All text that the notebook printed or displayed."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "stored without outputs"
    NotebookClient(
        notebook, timeout=200, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    ).execute()
    texts = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            texts.append(output.get("text", ""))
            texts.append(output.get("data", {}).get("text/plain", ""))
    return "\n".join(texts)


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_the_tour_reads_a_finished_sweep(monkeypatch):
    monkeypatch.setenv("SWEEP", str(ROOT / "tests" / "data" / "quick"))
    text = run("tour")
    assert "trust: " in text
    assert "reml-profile-t" in text
    assert "approach-2-akima" in text
    assert "Figure size" in text


def test_published_studies_are_fitted_again():
    if public.folder() is None:
        pytest.skip("public data not here: ../shared/data")
    text = run("published")
    assert "0.0010182740178" in text
    assert "gemstones_slim_chinchilla" in text
    assert "0.0158046" in text


def test_without_data_the_notebook_says_so(monkeypatch, tmp_path):
    monkeypatch.delenv(public.FOLDER_VARIABLE, raising=False)
    copy = tmp_path / "clone" / "analysis"
    copy.mkdir(parents=True)
    for file in (ROOT / "analysis").glob("*.py"):
        (copy / file.name).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(copy.parent))
    monkeypatch.setattr("test_notebooks.ROOT", copy.parent)
    assert "no public data found" in run("published")
