"""The files of the tests' Slurm: its folder, slurm.conf and its kin, the names in /etc/hosts."""

import os
import re
import shutil
import socket
from pathlib import Path
from string import Template

from processes import DIR, ETC, LOG, RUN, ClusterError, end, node_daemons

MARK = DIR / "made-by-the-tests"
SYSTEM, HOSTS = Path("/etc/slurm"), Path("/etc/hosts")
TEMPLATES = [Path(__file__).with_name(f"{x}.conf.in") for x in ("slurm", "gres", "slurmdbd")]
# Links, so that sbatch and its kin need no SLURM_CONF: programs under test may well drop it.
LINKS = {SYSTEM / template.stem: ETC / template.stem for template in TEMPLATES}
HOST = socket.gethostname().split(".")[0]


def prepare(names: list[str]) -> None:
    """Make the folder of the cluster; a real cluster's files and other folders are refused."""
    for link in LINKS:
        if os.path.lexists(link) and not _is_ours(link):
            raise ClusterError(f"{link} is not ours: is this machine part of a real cluster?")
    if DIR.exists() and any(DIR.iterdir()) and not MARK.exists():
        raise ClusterError(f"{DIR} holds other things: set SLURM_TEST_DIR to another folder")
    DIR.mkdir(parents=True, exist_ok=True)
    MARK.touch()
    for folder in (ETC, LOG, RUN, DIR / "dev", DIR / "state", *(DIR / "spool" / n for n in names)):
        folder.mkdir(parents=True, exist_ok=True)
    for folder in (DIR, ETC, LOG, RUN):  # munged refuses folders in which others may write
        os.chown(folder, 0, 0)
        folder.chmod(0o755)
    for gpu in (DIR / "dev" / "gpu0", DIR / "dev" / "gpu1"):
        if not gpu.is_symlink():
            gpu.symlink_to("/dev/null")


def configure(nodes: int, max_array: int, accounting: bool) -> None:
    """Write what differs, and end the daemons that must read it anew; their state stays."""
    memory_kb = int(re.findall(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())[0])
    memory = memory_kb // 1024 // nodes
    values = {
        "dir": DIR,
        "host": HOST,
        "names": f"node[0-{nodes - 1}]",
        "ports": f"[17820-{17820 + nodes - 1}]",
        "memory": memory,
        "memory_per_cpu": memory // 4,
        "max_array": max_array,
        "storage": "slurmdbd" if accounting else "none",
        "with_slurmdbd": "" if accounting else "# ",
    }
    texts = {ETC / t.stem: Template(t.read_text()).substitute(values) for t in TEMPLATES}
    changed = {file: text for file, text in texts.items() if not _reads(file, text)}
    # Ended before the writing: whoever is interrupted in between leaves a difference to be seen.
    if changed.keys() & {ETC / "slurm.conf", ETC / "gres.conf"}:
        end("slurmctld", *node_daemons())
    if ETC / "slurmdbd.conf" in changed:
        end("slurmdbd")
    for file, text in changed.items():
        # slurmdbd does not start from a file that others may read.
        file.touch(mode=0o600 if file.name == "slurmdbd.conf" else 0o644)
        file.write_text(text)
    SYSTEM.mkdir(exist_ok=True)
    for link, file in LINKS.items():
        if not _is_ours(link):
            link.symlink_to(file)


def _is_ours(link: Path) -> bool:
    return link.is_symlink() and link.readlink() == LINKS[link]


def _reads(file: Path, text: str) -> bool:
    return file.exists() and file.read_text() == text


def name_hosts(names: list[str]) -> None:
    """torch.distributed gets the first node's name as its address, so names must resolve."""
    mark = f"# {DIR.name}"
    others = [line for line in HOSTS.read_text().splitlines() if not line.endswith(mark)]
    if names and HOST not in " ".join(others).split():
        names = [HOST, *names]
    ours = [f"127.0.0.1 {' '.join(names)} {mark}"] if names else []
    text = "\n".join([*others, *ours]) + "\n"
    if not _reads(HOSTS, text):
        HOSTS.write_text(text)  # in place: in a container the file is a mount, not to be replaced


def forget() -> None:
    """Undo all of the above."""
    for link in filter(_is_ours, LINKS):
        link.unlink()
    name_hosts([])
    if MARK.exists():
        shutil.rmtree(DIR)
