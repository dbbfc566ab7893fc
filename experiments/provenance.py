"""Where a result comes from: commit, versions, machine, job."""

import json
import os
import platform
import subprocess
from pathlib import Path

SNAPSHOT = "snapshot.json"  # beside the packages of a copy of the code


def git() -> tuple[str | None, bool | None]:
    """Commit of the running code, and whether tracked files differ from it; None if no checkout.

    A snapshot says of itself what it was taken of.
    """
    root = Path(__file__).resolve().parent.parent
    snapshot = root / SNAPSHOT
    if snapshot.exists():
        told = json.loads(snapshot.read_text())
        return told["git_commit"], told["git_dirty"]
    commit = run_git(root, "rev-parse", "HEAD")
    if commit is None:
        return None, None
    status = run_git(root, "status", "--porcelain", "--untracked-files=no")
    return commit.decode().strip(), None if status is None else bool(status.strip())


def processor_name() -> str:
    """The processor's name as its maker writes it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def slurm_job() -> str | None:
    """Id of the Slurm job that this process is part of, as `<array>_<index>` in an array."""
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{index}" if array and index else os.environ.get("SLURM_JOB_ID")


def run_git(root: Path, *words: str, seconds: float = 20.0) -> bytes | None:
    """What git prints in the checkout `root`; None where it fails."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, timeout=seconds, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
