"""A copy of the code that was submitted: a job may start after the checkout has moved on."""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from experiments import provenance

PACKAGES = ("experiments", "minigpt")  # all that a job imports of this project
GIT_SECONDS = 60.0  # then without what git would say: the copy itself is whole


def take(sweep: Path, stamp: str) -> Path:
    """Copy the running code into the sweep's folder, once for each state of it; return the copy.

    What it has over its commit is recorded with the submission `stamp` as changes.diff.
    """
    root = Path(__file__).resolve().parent.parent
    commit, dirty = provenance.git()
    untracked = ("ls-files", "--others", "--exclude-standard", "--", *PACKAGES)
    listed = provenance.run_git(root, *untracked, seconds=GIT_SECONDS) if commit else None
    new = (listed or b"").decode().split()
    dirty = None if dirty is None else dirty or bool(new)
    files = sorted(path for package in PACKAGES for path in (root / package).rglob("*.py"))
    digest = hashlib.sha256(f"{commit} {dirty}".encode())
    for path in files:
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    copy = sweep / "slurm" / f"code-{digest.hexdigest()[:12]}"
    if not copy.exists():
        part = Path(tempfile.mkdtemp(prefix=f".{copy.name}.", dir=copy.parent))
        for path in files:
            target = part / path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        told = {"git_commit": commit, "git_dirty": dirty, "untracked": new}
        (part / provenance.SNAPSHOT).write_text(json.dumps(told, indent=1))
        part.chmod(0o755)
        os.replace(part, copy)
    if dirty:
        diff = provenance.run_git(root, "diff", "--binary", "HEAD", seconds=GIT_SECONDS)
        (sweep / "slurm" / stamp / "changes.diff").write_bytes(diff or b"")
    return copy.absolute()


def check(sweep: Path) -> None:
    """Raise RuntimeError unless the running code is a snapshot that lies in the sweep's folder."""
    here = Path(__file__).resolve()
    if (sweep / "slurm").resolve() not in here.parents:
        raise RuntimeError(
            f"the job runs {here}, not the code that was submitted: a line of [launch.slurm] setup "
            "or the environment puts another copy first on PYTHONPATH; remove it"
        )
