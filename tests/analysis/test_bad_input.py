"""Tables that can hardly carry a law: a clear answer or a clear refusal, never a traceback."""

import numpy as np
import pandas as pd
import pytest

from analysis.fit import main


def table(sizes=6, horizons=5, seed=0):
    """A foreign table with the digitised Chinchilla law in it, noise 0.2 %."""
    N, D = np.meshgrid(np.geomspace(1e6, 3e7, sizes), np.geomspace(2e7, 6e8, horizons))
    N, D = N.ravel(), D.ravel()
    z = np.random.default_rng(seed).normal(size=len(N)) * 2e-3
    return pd.DataFrame(
        {"n": N, "d": D, "loss": (1.8 + 478 * N**-0.347 + 2143 * D**-0.367) * np.exp(z)}
    )


def dirty():
    frame = table()
    frame.loc[0, "loss"], frame.loc[1, "n"], frame.loc[2, "d"] = np.nan, 0.0, -5.0
    return frame


def integers():
    frame = table()
    return frame.assign(n=(frame.n * 1000).astype("int64"), d=(frame.d * 1e5).astype("int64"))


def noise():
    frame = table()
    return frame.assign(loss=np.random.default_rng(1).uniform(1, 5, len(frame)))


CASES = {
    "duplicates": (lambda: pd.concat([table(), table().iloc[:3]]), 0, "exact duplicate"),
    "missing, zero, negative": (dirty, 0, "3 left out"),
    "bits": (lambda: table().assign(loss=lambda f: f.loss / np.log(2)), 0, ""),
    "millions": (lambda: table().assign(n=lambda f: f.n / 1e6), 0, "given in\nthousands, millions"),
    "billions": (lambda: table().assign(d=lambda f: f.d / 1e9), 0, "given in\nthousands, millions"),
    "one size": (lambda: table(1, 8), 0, "not identified by this design: 1 size"),
    "two horizons": (lambda: table(6, 2), 0, "not identified by this design: 2 horizons"),
    "constant": (lambda: table().assign(loss=2.5), 2, "there is nothing to fit"),
    "five rows": (lambda: table().iloc[:5], 2, "a law needs at least 6"),
    "six rows": (lambda: table().iloc[:6], 0, "not identified by this design"),
    "integers": (integers, 0, "The compute-optimal size grows"),
    "noise": (noise, 0, "trust: low"),
    "rising": (lambda: table().assign(loss=lambda f: 1 / f.loss), 0, "accuracies?"),
}


@pytest.mark.parametrize("name", list(CASES))
def test_a_clear_answer_or_a_clear_refusal(name, tmp_path, capsys):
    frame, code, text = CASES[name]
    frame().to_csv(tmp_path / "t.csv", index=False)
    arguments = ["--n", "n", "--d", "d", "--loss", "loss"]
    assert main([str(tmp_path / "t.csv"), *arguments]) == code
    captured = capsys.readouterr()
    assert text in (captured.err if code else captured.out)
    if code:
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        assert captured.out == ""


def test_losses_in_bits_by_name_are_said(tmp_path, capsys):
    table().rename(columns={"loss": "loss_bits"}).to_csv(tmp_path / "t.csv", index=False)
    assert main([str(tmp_path / "t.csv"), "--n", "n", "--d", "d", "--loss", "loss_bits"]) == 0
    text = capsys.readouterr().out
    assert "looks like bits" in text
    assert "population prior off: the loss is not known to be in nats/token" in text


@pytest.mark.slow
@pytest.mark.timeout(900)  # four minutes on two cores that do nothing else
def test_a_hundred_thousand_rows_are_answered(tmp_path, capsys):
    rng = np.random.default_rng(0)
    N = np.exp(rng.uniform(np.log(1e6), np.log(1e9), 100_000))
    D = N * np.exp(rng.uniform(np.log(5), np.log(200), len(N)))
    L = (1.8 + 478 * N**-0.347 + 2143 * D**-0.367) * np.exp(rng.normal(size=len(N)) * 3e-3)
    pd.DataFrame({"n": N, "d": D, "loss": L}).to_csv(tmp_path / "t.csv", index=False)
    assert main([str(tmp_path / "t.csv"), "--n", "n", "--d", "d", "--loss", "loss"]) == 0
    assert "chinchilla: L(N, D)" in capsys.readouterr().out
