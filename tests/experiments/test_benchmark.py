"""The benchmark: what it counts, what it writes, what it refuses. No test asserts a time."""

import json
from pathlib import Path

import pytest
import torch

from experiments import gpusuite, packsuite, stepsuite
from experiments.benchmark import main
from experiments.contest import Outcome
from experiments.peaks import vendor_peak
from experiments.sweepsuite import sweep_suite
from experiments.trial import Loop, Trial, chain, gaps, vaswani
from experiments.worker import Round, dispatched

TINY = vaswani(8, 1, 2, 16, 40)
KEYS = (
    *("suite", "variant", "d_model", "n_layers", "members"),
    *("tokens_per_second", "ratio_to_reference", "mfu", "ops_per_step", "peak_memory_bytes"),
)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Suites over one tiny shape, for a moment."""
    for suite in (stepsuite, packsuite):
        monkeypatch.setattr(suite, "CPU_SHAPES", ((TINY, 64),))
        monkeypatch.setattr(suite, "ROUND_SECONDS", {"cpu": 0.01})
        monkeypatch.setattr(suite, "MOST_STEPS", 2)
    monkeypatch.setattr(stepsuite, "ROUNDS", {"cpu": 2})
    monkeypatch.setattr(packsuite, "ROUNDS", 2)
    monkeypatch.setattr(packsuite, "MEMBERS", {"cpu": (1, 2)})
    monkeypatch.setattr(packsuite, "SMALL", TINY)
    monkeypatch.setattr(packsuite, "SMALL_BATCH", 64)
    monkeypatch.setattr(packsuite, "SMALL_STEPS", 3)


def operations(engine: str, layers: int, members: int = 1) -> int:
    """Of one optimiser step in float32 on a CPU: batch, clip, loss and update included."""
    model = vaswani(16, layers, 2, 16, 40)
    values = {"engine": engine, "model": model, "batch_tokens": 32, "members": members}
    loop = Loop(Trial(**values))  # type: ignore[arg-type]
    loop.run(2)  # the first creates the optimiser's state
    return dispatched(loop.step)


@pytest.mark.parametrize("layers", range(1, 7))
def test_operations_of_one_model(layers: int) -> None:
    assert operations("single", layers) <= 40 + 30 * layers


@pytest.mark.parametrize("layers", range(1, 7))
def test_operations_of_a_stack(layers: int) -> None:
    assert operations("stack", layers, members=2) <= 45 + 45 * layers


def test_operations_of_a_stack_do_not_depend_on_its_members() -> None:
    for layers in (1, 3):
        two, five = (operations("stack", layers, members) for members in (2, 5))
        assert two == five


def test_views_are_not_counted() -> None:
    x = torch.ones(4, 4)
    assert dispatched(lambda: x.t()[1:].unsqueeze(0)) == 0
    assert dispatched(lambda: x.t() + x) == 1
    assert dispatched(lambda: x.add_(1.0)) == 1


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989.5e12),
        ("NVIDIA H100 PCIe", 756.5e12),
        ("NVIDIA H200", 989.5e12),
        ("NVIDIA H200 NVL", 835.5e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 4090", None),
        ("Intel(R) Xeon(R) Processor", None),
    ],
)
def test_vendor_peaks_are_known_or_none(name: str, peak: float | None) -> None:
    assert vendor_peak(name) == peak


def test_rates_are_medians_and_losses_are_compared_round_by_round() -> None:
    trial = Trial(engine="single", model=TINY, batch_tokens=64, members=2)
    rounds = [Round(9.0, seconds, [1.0, 2.0]) for seconds in (1.0, 2.0, 50.0)]
    outcome = Outcome(trial, rounds)
    assert outcome.tokens_per_second == 64
    assert outcome.losses == [1.0, 2.0] * 3
    assert gaps([1, 3, 5, 7], [2, 4, 5, 5], each=2) == (1.0, 1.0)


def test_a_chain_can_be_learned_and_is_always_the_same() -> None:
    first, again = chain(300), chain(300)
    assert (first.train == again.train).all()
    assert first.train.max() < 300
    assert len(set(first.train.tolist())) > 100
    loop = Loop(Trial(engine="single", model=vaswani(16, 1, 2, 32, 300), batch_tokens=512))
    losses = loop.run(60)
    assert losses[-1] < losses[0] - 0.5
    assert loop.held_out()[0] == pytest.approx(losses[-1], abs=0.3)


@pytest.mark.usefixtures("tiny")
def test_rows_of_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stepsuite, "has_bfloat16", lambda device: False)  # a process less to start
    told = run("step", tmp_path)
    assert {"device", "torch", "python", "cores"} <= told["machine"].keys()
    reference, ours = told["rows"]
    assert reference["variant"].startswith("reference")
    assert reference["ratio_to_reference"] == 1
    assert reference["ops_per_step"] > ours["ops_per_step"] > 0
    assert reference["peak_memory_bytes"] > 1e7
    assert "ratio" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_suites_that_start_many_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stepsuite, "has_bfloat16", lambda device: True)  # be it by software
    (remark,) = run("step", tmp_path)["remarks"]
    assert "loss in bfloat16" in remark
    told = run("pack", tmp_path)
    stacks = [row for row in told["rows"] if row["variant"].startswith("stack")]
    assert [row["members"] for row in stacks] == [1, 2]
    variants = {row["variant"].partition(",")[0] for row in told["rows"]}
    assert {"1 process x 2 threads", "2 processes x 1 thread"} <= variants
    assert any("stacked and alone" in remark for remark in told["remarks"])


def run(suite: str, folder: Path) -> dict:
    """The JSON of a suite on the CPU, its rows checked."""
    file = folder / "figures.json"
    assert main(["--device", "cpu", "--suite", suite, "--json", str(file)]) == 0
    told = json.loads(file.read_text())
    for row in told["rows"]:
        assert tuple(row) == KEYS
        assert row["tokens_per_second"] > 0
        assert row["ratio_to_reference"] > 0
        assert row["mfu"] is None  # nobody states the peak of a CPU
    return told


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "cuda"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--device cuda" in line
    assert "--device cpu" in line


def test_a_file_without_a_folder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--device", "cpu", "--json", str(tmp_path / "none" / "f.json")]) == 2
    assert "none" in capsys.readouterr().err


def test_a_config_that_is_missing_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--device", "cpu", "--suite", "sweep", "--config", str(tmp_path / "no.toml")]
    assert main(words) == 2
    assert "no.toml" in capsys.readouterr().err


@pytest.mark.slow
def test_a_sweep_has_the_losses_of_its_points(micro: Path) -> None:
    told: list[str] = []
    found = sweep_suite(micro, told.append, whole=True)
    alone, sweep = found.rows
    assert alone.ratio_to_reference == 1
    assert sweep.ratio_to_reference is not None
    assert sweep.tokens_per_second is not None
    assert "on one thread the same to the last bit" in found.remarks[-1]


@pytest.mark.slow
def test_other_ways_than_a_sweep(micro: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpusuite, "STEPS", 5)
    monkeypatch.setattr(gpusuite, "AT_ONCE", (2,))
    found = gpusuite.gpu_sweep_suite(micro, "cpu", lambda text: None)  # but for the device
    assert [row.ratio_to_reference is not None for row in found.rows] == [True] * 4
    assert found.rows[0].ratio_to_reference == 1
