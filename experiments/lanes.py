"""Packs in training at once in one process, each in a lane: on a GPU a CUDA stream of its own.

A step of small models leaves a part of a GPU idle, which steps on other streams can use. What of a
lane waits for the GPU makes the others wait too, so each has its turn after every step.
"""

from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext

import torch

from experiments.pack import Pack, Place
from experiments.spec import Event
from experiments.trunk import in_turns


def run_lanes(packs: Iterator[Pack], place: Place) -> Generator[Event | Pack]:
    """Train `packs`, as many at once as `place` has lanes.

    Yields their events, and each pack at its end. The next is asked for when a lane is
    free. Closing the generator closes every lane's training, which saves.
    """
    lanes: list[_Lane] = []
    with ExitStack() as stack:
        stack.callback(_close, lanes)
        while True:
            while len(lanes) < place.lanes and (pack := next(packs, None)) is not None:
                lanes.append(_Lane(pack, place))
            if not lanes:
                return
            for lane in list(lanes):
                with lane.here():
                    told = next(lane.turns, lane.pack)
                if told is lane.pack:
                    lanes.remove(lane)
                if told is not None:
                    yield told


class _Lane:
    """One pack in training."""

    def __init__(self, pack: Pack, place: Place) -> None:
        self.pack, self.turns = pack, in_turns(pack, place)
        cuda = place.device.startswith("cuda") and place.lanes > 1
        self.stream = torch.cuda.Stream(place.device) if cuda else None

    def here(self) -> AbstractContextManager[object]:
        """Work that is queued in this context is this lane's."""
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)


def _close(lanes: list[_Lane]) -> None:
    """Close all of them, also where one cannot save."""
    with ExitStack() as stack:
        for lane in lanes:
            stack.callback(_close_one, lane)


def _close_one(lane: _Lane) -> None:
    with lane.here():
        lane.turns.close()
