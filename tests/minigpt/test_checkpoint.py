"""Checkpoint files: whole or absent, plain values, read without running code."""

import pickle

import pytest
import torch

from minigpt import checkpoint
from minigpt.checkpoint import CheckpointError


def test_round_trip_is_exact(tmp_path):
    draw = torch.Generator().manual_seed(0)
    values = {
        "weights": {"a": torch.randn(3, 5, generator=draw), "b": torch.randn(7, generator=draw)},
        "double": torch.randn(4, generator=draw, dtype=torch.float64),
        "half": torch.randn(4, generator=draw).bfloat16(),
        "special": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
        "step": 12,
        "branch": None,
        "groups": [{"lr": 0.1, "betas": (0.9, 0.95), "name": "hidden"}],
    }
    checkpoint.save(tmp_path / "a.pt", values)
    read = checkpoint.load(tmp_path / "a.pt")
    for name in ("a", "b"):
        assert torch.equal(read["weights"][name], values["weights"][name])
    assert torch.equal(read["double"], values["double"])
    assert torch.equal(read["half"], values["half"])
    assert read["half"].dtype == torch.bfloat16
    assert torch.equal(read["special"].view(torch.int32), values["special"].view(torch.int32))
    assert (read["step"], read["branch"], read["groups"]) == (12, None, values["groups"])


def test_save_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a.pt"
    checkpoint.save(path, {"step": 1})
    checkpoint.save(path, {"step": 2})
    assert checkpoint.load(path)["step"] == 2
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_unfinished_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    checkpoint.save(path, {"step": 1})

    def full_disk(values, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full_disk)
        with pytest.raises(OSError, match="No space left"):
            checkpoint.save(path, {"step": 2})
    assert checkpoint.load(path)["step"] == 1
    assert not {p.name for p in tmp_path.glob("*.pt")} - {"a.pt"}  # the part is no checkpoint
    checkpoint.save(path, {"step": 3})  # and does not stand in the way
    assert checkpoint.load(path)["step"] == 3


class Payload:
    """Pickles to a call, as hostile files do."""

    def __reduce__(self):
        return (print, ("executed",))


def test_code_in_a_file_is_refused_not_run(tmp_path, capsys):
    torch.save({"format": checkpoint.FORMAT, "model": Payload()}, tmp_path / "a.pt")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        checkpoint.load(tmp_path / "a.pt")
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("values", [{"format": checkpoint.FORMAT + 1}, {"model": {}}])
def test_another_format_is_refused_with_both_numbers(tmp_path, values):
    path = tmp_path / "a.pt"
    torch.save(values, path)
    with pytest.raises(CheckpointError) as refusal:
        checkpoint.load(path)
    text = str(refusal.value)
    assert str(path) in text
    assert f"format {values.get('format')!r}, this version reads {checkpoint.FORMAT}" in text
    assert "use the version that wrote it" in text
