"""Packs side by side in one process: each as if it were alone. On a CPU, without CUDA streams."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from experiments import leg, pack, slots, store
from experiments.lanes import run_lanes
from experiments.pack import Pack, Place
from experiments.resources import LaunchSection
from experiments.spec import TrunkSpec
from experiments.trunk import run_trunks


@pytest.fixture
def packs(plan: Callable[..., list[TrunkSpec]]) -> list[Pack]:
    """Two sizes and two seeds, one trunk each."""
    return pack.packs(plan("grid.seeds=[0, 1]", "grid.tokens=[1280, 2560]"), 1, 1)


@pytest.fixture
def place(tmp_path: Path) -> Callable[..., Place]:
    """A place in a sweep's folder of its own."""

    def make(name: str, lanes: int) -> Place:
        sweep = tmp_path / "runs" / name
        return Place(sweep=sweep, device="cpu", checkpoint_seconds=60, lanes=lanes)

    return make


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def losses(place: Place) -> dict[str, float]:
    """Held-out losses by run."""
    files = place.sweep.glob("trunks/*/????????????.json")
    return {path.stem: json.loads(path.read_text())["val_loss"] for path in files}


@pytest.mark.parametrize("lanes", [3, 9])
def test_each_pack_ends_as_it_does_alone(
    packs: list[Pack], place: Callable[..., Place], lanes: int
) -> None:
    told = list(run_lanes(iter(packs), place("beside", lanes)))
    assert sorted(p[0].trunk_id for p in told if isinstance(p, tuple)) == sorted(
        p[0].trunk_id for p in packs
    )
    for each in packs:
        assert list(run_trunks(each, place("alone", 1)))
    alone = losses(place("alone", 1))
    assert len(alone) == 8
    assert losses(place("beside", lanes)) == alone


def test_lanes_take_turns_and_are_filled_again(
    packs: list[Pack], place: Callable[..., Place]
) -> None:
    asked: list[Pack] = []

    def given():
        for each in packs:
            asked.append(each)
            yield each

    ends = []
    for told in run_lanes(given(), place("beside", 2)):
        if isinstance(told, tuple):
            ends.append(told)
            assert 0 <= len(asked) - len(ends) < 2  # no more than two were in training
    first = place("beside", 2).sweep / "trunks"
    began = [(first / p[0].trunk_id / "log.txt").read_text()[:19] for p in packs]
    assert began == sorted(began)
    assert sorted(map(id, ends)) == sorted(map(id, packs))


def test_closing_saves_every_lane(
    packs: list[Pack], place: Callable[..., Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leg, "PROGRESS_SECONDS", -1.0)
    here, seen = place("beside", 3), set()
    events = run_lanes(iter(packs), here)
    for told in events:
        assert not isinstance(told, tuple)
        seen.add(told.trunk_id)
        if len(seen) == 3:
            break
    events.close()
    for trunk_id in seen:
        folder = store.trunk_folder(here.sweep, trunk_id)
        assert (folder / "latest.pt").exists()
        assert store.read_status(folder)["state"] == "stopped"
    list(run_lanes(iter(packs), here))
    for each in packs:
        list(run_trunks(each, place("alone", 1)))
    assert losses(here) == losses(place("alone", 1))


def test_a_lane_that_fails_leaves_the_others(
    packs: list[Pack], place: Callable[..., Place]
) -> None:
    here = place("beside", 2)
    bad = store.trunk_folder(here.sweep, packs[0][0].trunk_id)
    bad.mkdir(parents=True)
    (bad / "latest.pt").write_bytes(b"no checkpoint")
    told = list(run_lanes(iter(packs), here))
    failed = [t for t in told if not isinstance(t, tuple) and t.kind == "failed"]
    assert [event.trunk_id for event in failed] == [packs[0][0].trunk_id]
    assert len(losses(here)) == 6
    assert sum(isinstance(t, tuple) for t in told) == 4


def test_slots_of_a_gpu_are_lanes_of_one_process(tmp_path: Path) -> None:
    def devices(slots_wanted: int | str, gpus: int, at_most: int | None = None) -> list[tuple]:
        launch = LaunchSection.model_validate({"slots": slots_wanted})
        made = slots.places(tmp_path, launch, gpus, 4, at_most)
        return [(place.device, place.lanes) for place in made]

    assert devices(5, 2) == [("cuda:0", 3), ("cuda:1", 2)]
    assert devices("auto", 2) == [("cuda:0", 1), ("cuda:1", 1)]
    assert devices(5, 1, at_most=2) == [("cuda:0", 2)]
    assert devices(1, 2) == [("cuda:0", 1)]
    assert devices(3, 0) == [("cpu", 1)] * 3
    assert devices("auto", 0, at_most=2) == [("cpu", 1)] * 2
