"""Checkpoint files: whole or absent, plain values, read without running code."""

import errno
import os
import pickle
import resource

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


# Saves that fail: the old file stays, the half-written one does not


@pytest.fixture
def old(tmp_path):
    """The path of a checkpoint that is already there."""
    checkpoint.save(tmp_path / "a.pt", {"step": 1})
    return tmp_path / "a.pt"


def assert_only_the_old_one(old):
    assert checkpoint.load(old)["step"] == 1
    assert [p.name for p in old.parent.iterdir()] == ["a.pt"]
    checkpoint.save(old, {"step": 3})  # and nothing stands in the way
    assert checkpoint.load(old)["step"] == 3


def test_disk_that_fills_up_leaves_the_old_file_alone(old):
    """The limit on the size of files stands for the disk: the write itself fails, half-way."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_192, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            checkpoint.save(old, {"step": 2, "model": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_only_the_old_one(old)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_failure_after_the_write_leaves_the_old_file_alone(old, monkeypatch, call):
    seen = []

    def full_disk(*arguments):
        seen.extend(p.name for p in old.parent.iterdir())
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full_disk)
        with pytest.raises(OSError, match="No space left"):
            checkpoint.save(old, {"step": 2})
    assert len(seen) == 2  # it was half done
    assert not [name for name in seen if name.endswith(".pt") and name != "a.pt"]
    assert_only_the_old_one(old)


def test_values_that_cannot_be_written_leave_the_old_file_alone(old):
    with pytest.raises((pickle.PicklingError, AttributeError)):
        checkpoint.save(old, {"step": lambda: 2})
    assert_only_the_old_one(old)


def test_folder_in_the_place_of_the_file_stays_and_is_named(tmp_path):
    (tmp_path / "a.pt").mkdir()
    with pytest.raises(IsADirectoryError, match=r"a\.pt"):
        checkpoint.save(tmp_path / "a.pt", {"step": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        checkpoint.save(tmp_path / "nowhere" / "a.pt", {"step": 2})
    assert not list(tmp_path.iterdir())


# Files that are not ours


def refusal(path) -> str:
    with pytest.raises(CheckpointError) as error:
        checkpoint.load(path)
    return str(error.value)


def assert_refused_as_damaged(path):
    text = refusal(path)
    assert text.startswith(f"{path}: damaged, or no checkpoint of ours (")
    assert text.endswith("); delete it")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a checkpoint."""
    path = tmp_path_factory.mktemp("whole") / "a.pt"
    checkpoint.save(path, {"model": {"a": torch.ones(20, 10)}, "step": 3, "branch": None})
    return path.read_bytes()


def test_file_cut_short_anywhere_is_refused(tmp_path, whole):
    path = tmp_path / "a.pt"
    for length in [*range(0, len(whole), len(whole) // 60), len(whole) - 1]:  # 0: an empty file
        path.write_bytes(whole[:length])
        assert_refused_as_damaged(path)


def test_large_file_cut_short_is_refused(tmp_path):
    """Of which torch reads the end by itself."""
    path = tmp_path / "a.pt"
    checkpoint.save(path, {"model": {"a": torch.ones(300, 100)}})
    whole = path.read_bytes()
    for cut in (1, 30, 900, 5_000, 100_000):
        path.write_bytes(whole[:-cut])
        assert_refused_as_damaged(path)


def test_file_of_zeros_is_refused(tmp_path, whole):
    """What a power cut can leave of a file that was not yet on the disk."""
    (tmp_path / "a.pt").write_bytes(bytes(len(whole)))
    assert_refused_as_damaged(tmp_path / "a.pt")


def test_file_of_json_is_refused(tmp_path):
    (tmp_path / "a.pt").write_text('{"format": 1}')
    assert_refused_as_damaged(tmp_path / "a.pt")


def test_missing_file_is_no_damage(tmp_path):
    with pytest.raises(FileNotFoundError):
        checkpoint.load(tmp_path / "a.pt")


class Payload:
    """Pickles to a call, as hostile files do."""

    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_refused_not_run(tmp_path, capsys, zipped):
    path = tmp_path / "a.pt"
    values = {"format": checkpoint.FORMAT, "model": Payload()}
    torch.save(values, path, _use_new_zipfile_serialization=zipped)
    assert_refused_as_damaged(path)
    path.write_bytes(pickle.dumps(values, protocol=2))
    assert_refused_as_damaged(path)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("text", ["hello world\n", "step,loss\n1,2.5\n"])
def test_text_file_is_refused(tmp_path, text):
    (tmp_path / "a.pt").write_text(text)
    assert_refused_as_damaged(tmp_path / "a.pt")


@pytest.mark.parametrize("values", [[1], 3, None, torch.ones(2)], ids=str)
def test_file_of_torch_without_keys_is_refused(tmp_path, values):
    torch.save(values, tmp_path / "a.pt")
    assert str(tmp_path / "a.pt") in refusal(tmp_path / "a.pt")


def test_damaged_names_inside_are_refused(tmp_path, whole):
    """One bad byte in each place of the pickled part: refused, or not noticed, nothing else."""
    path, start = tmp_path / "a.pt", whole.index(b"data.pkl")
    for place in range(start, start + 300):
        path.write_bytes(whole[:place] + b"\xb5" + whole[place + 1 :])
        try:
            checkpoint.load(path)
        except CheckpointError as error:
            assert str(path) in str(error)  # noqa: PT017


@pytest.mark.parametrize("values", [{"format": checkpoint.FORMAT + 1}, {"model": {}}])
def test_another_format_is_refused_with_both_numbers(tmp_path, values):
    path = tmp_path / "a.pt"
    torch.save(values, path)
    text = refusal(path)
    assert str(path) in text
    assert f"format {values.get('format')!r}, this version reads {checkpoint.FORMAT}" in text
    assert "use the version that wrote it" in text
