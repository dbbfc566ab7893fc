"""Predictions: at a run or an optimum, registered before the run, scored after it."""

import json

import numpy as np
import pandas as pd
import pytest
from synthetic import Plan, results_frame, truth_loss, write_sweep

from analysis.predict import main
from analysis.register import digest

NEXT = {"--params": "1e6", "--tokens": "4e6"}
POINT = [word for pair in NEXT.items() for word in pair]


def extended(folder, frame, N=1_000_000, D=4_000_000, loss=None):
    """The same sweep with the predicted run trained."""
    row = frame.iloc[[-1]].copy()
    row["n_total"], row["tokens"], row["flops_exact"] = N, D, 6.0 * D * (0.9 * N + 2000)
    row["val_loss"] = truth_loss(N, D) if loss is None else loss
    row["run_id"], row["trunk_id"], row["holdout"] = "new", "new", True
    return write_sweep(folder, frame=pd.concat([frame, row], ignore_index=True))


def test_a_prediction_at_a_run_holds_the_truth(good, capsys):
    assert main([str(good), *POINT]) == 0
    text = capsys.readouterr().out
    assert "with misfit" in text
    assert "N = 1M parameters, D = 4M tokens" in text
    assert "population prior" in text


def test_the_optimum_of_a_budget_beats_its_neighbours(good, tmp_path):
    file = tmp_path / "p.json"
    assert main([str(good), "--flops", "1e14", "--json", str(file)]) == 0
    best = json.loads(file.read_text())
    low, high = best["loss_interval_misfit"]
    assert low < truth_loss(best["params"], best["tokens"]) < high
    assert best["flops"] == pytest.approx(1e14)
    assert high - low > best["loss_interval_noise"][1] - best["loss_interval_noise"][0]


def test_register_then_score(tmp_path, capsys):
    frame = results_frame(Plan())
    file = tmp_path / "p.json"
    folder = write_sweep(tmp_path / "s", frame=frame)
    assert main([str(folder), *POINT, "--register", str(file)]) == 0
    assert f"--score {file}" in capsys.readouterr().out
    content = json.loads(file.read_text())
    assert content["sha256"] == digest(content)
    assert len(content["fitted_rows_sha256"]) == 64

    assert main([str(folder), "--score", str(file)]) == 2  # the run does not exist yet
    assert "the nearest has N = 700000" in capsys.readouterr().err
    later = extended(tmp_path / "later", frame)
    for _ in range(2):  # the same score counts once
        assert main([str(later), "--score", str(file)]) == 0
        assert "calibration so far: 1 of 1 measured losses inside" in capsys.readouterr().out
    off = extended(tmp_path / "off", frame, loss=2.5)
    assert main([str(off), "--score", str(file)]) == 0
    assert "calibration so far: 1 of 2 measured losses inside" in capsys.readouterr().out
    log = (tmp_path / "calibration.jsonl").read_text().splitlines()
    assert [json.loads(line)["inside_misfit"] for line in log] == [True, False]
    assert abs(json.loads(log[0])["error"]) < 0.01


def test_a_changed_prediction_is_refused(good, tmp_path, capsys):
    file = tmp_path / "p.json"
    assert main([str(good), *POINT, "--register", str(file)]) == 0
    content = json.loads(file.read_text())
    content["loss"] *= 0.99
    file.write_text(json.dumps(content))
    assert main([str(good), "--score", str(file)]) == 2
    assert "was changed after it was registered" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "name the run"),
        (["--params", "1e6"], "given: --params"),
        (["--flops", "1e14", *POINT], "name the run"),
        (["--flops", "-1"], "not a positive number"),
        (["--score", "nothing.json"], "cannot be read"),
        (["--score", "x.json", "--flops", "1e14"], "takes N and D from the file"),
    ],
)
def test_bad_options_exit_2(good, capsys, arguments, text):
    assert main([str(good), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert text in captured.err
    assert captured.err.count("\n") == 1


def test_a_run_that_exists_cannot_be_registered(good, tmp_path, capsys):
    file = tmp_path / "p.json"
    arguments = ["--params", "700000", "--tokens", "4e6", "--register", str(file)]
    assert main([str(good), *arguments]) == 2
    assert "after the fact" in capsys.readouterr().err
    assert not file.exists()
    file.write_text("{}")
    assert main([str(good), *POINT, "--register", str(file)]) == 2
    assert "never overwritten" in capsys.readouterr().err
    assert main([str(good), "--score", str(file)]) == 2
    assert "not a registered prediction" in capsys.readouterr().err


def test_an_unidentified_design_predicts_nothing(ray, capsys):
    assert main([str(ray), "--flops", "1e14"]) == 2
    assert "not identified by this design" in capsys.readouterr().err


def test_both_intervals_widen_with_the_level(good, tmp_path):
    widths = []
    for level in ("0.5", "0.9", "0.99"):
        file = tmp_path / f"{level}.json"
        assert main([str(good), *POINT, "--level", level, "--json", str(file)]) == 0
        content = json.loads(file.read_text())
        widths.append([np.ptp(content[f"loss_interval_{k}"]) for k in ("noise", "misfit")])
    assert (np.diff(widths, axis=0) > 0).all()
