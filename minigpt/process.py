"""How a process that trains is set up: its threads, how it keeps memory, what signals do."""

import ctypes
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt(3)
NEVER = 2**31 - 1


def settle(threads: int | None) -> None:
    """Use so many CPU threads (None: torch's default), and keep freed memory for the next step.

    glibc gives every large block back to the kernel, which clears it anew: each step would pay for
    the pages of all its activations (docs/benchmarks.md).
    """
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library, which has its own ways
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, NEVER)


@contextmanager
def hearing() -> Iterator[list[int]]:
    """SIGINT and SIGTERM go into the list that this yields, to be acted upon between two steps.

    A signal inside a step would leave a state that no checkpoint may hold.
    """
    heard: list[int] = []
    before = {s: signal.signal(s, lambda n, _: heard.append(n)) for s in (2, signal.SIGTERM)}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
