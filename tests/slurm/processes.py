"""Daemons and commands of the tests' Slurm; nothing here waits for ever."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

DIR = Path(os.environ.get("SLURM_TEST_DIR", "/tmp/scaling-law-slurm")).absolute()
ETC, LOG, RUN = DIR / "etc", DIR / "log", DIR / "run"
# A login by `su` lacks sbin; the SLURM_* of a caller who is in a job himself would mislead.
ENV = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")} | {
    "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/bin:/bin",
    "SLURM_CONF": str(ETC / "slurm.conf"),
    "DEBIAN_FRONTEND": "noninteractive",
}


class ClusterError(Exception):
    """The cluster cannot be brought up or down; the message says why, for a person."""


def launch(name: str, *command: str) -> None:
    """Start a daemon that detaches itself, unless it runs; `name` is that of its pid file."""
    if running(name) is None and not logged(name, *command, seconds=30):
        raise ClusterError(f"{name} does not start{tail(name)}")


def running(name: str) -> int | None:
    """The pid in the file, if that process is still the daemon: not a zombie, not a stranger."""
    try:
        pid = int((RUN / f"{name}.pid").read_text())
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return None
    return pid if Path(argv[0].decode()).name == name.split("-")[0] else None


def node_daemons() -> list[str]:
    """Names of the pid files of every slurmd, of earlier settings too."""
    return sorted(file.stem for file in RUN.glob("slurmd-*.pid"))


def end(*names: str) -> None:
    """Terminate daemons and wait; kill what is still there after 20 s."""
    for number, seconds in ((signal.SIGTERM, 20), (signal.SIGKILL, 5)):
        for pid in filter(None, map(running, names)):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + seconds
        while any(map(running, names)) and time.monotonic() < deadline:
            time.sleep(0.05)
    for name in names:
        (RUN / f"{name}.pid").unlink(missing_ok=True)


def logged(name: str, *command: str, seconds: float = 120) -> bool:
    """Whether a command works; its output goes to a log, for a daemon would hold a pipe open."""
    with (LOG / f"{name}.log").open("ab") as log:
        return _ran(command, seconds, log, log) is not None


def output(*command: str) -> str | None:
    """What a command prints; None if it fails or does not answer."""
    done = _ran(command, 10, subprocess.PIPE, subprocess.DEVNULL)
    return None if done is None else done.stdout.decode()


def _ran(
    command: Sequence[str], seconds: float, out: IO[bytes] | int, error: IO[bytes] | int
) -> subprocess.CompletedProcess[bytes] | None:
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=error,
            env=ENV,
            timeout=seconds,
            check=True,
            start_new_session=True,  # Ctrl-C in the caller's terminal is not for the daemons
        )
    except (subprocess.SubprocessError, FileNotFoundError):
        return None


def wait(what: str, there: Callable[[], bool], *daemons: str) -> None:
    """Poll until something is there; fail after 60 s, or early when one of the daemons ends."""
    start = time.monotonic()
    while not there():
        seconds = time.monotonic() - start
        # Daemons write their pid files at their leisure.
        if seconds > 60 or (seconds > 15 and None in map(running, daemons)):
            raise ClusterError(f"no {what} within {seconds:.0f} s{tail(*daemons)}")
        time.sleep(0.1)


def tail(*logs: str) -> str:
    """The last lines of these logs, to end a message with."""
    files = [file for log in logs if (file := LOG / f"{log}.log").exists()]
    lines = [f"{f.name}: {x}" for f in files for x in f.read_text().splitlines()[-5:]]
    return "\n".join(["", *lines])
