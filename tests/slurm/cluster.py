"""A private Slurm on this machine's loopback, for the tests: `cluster.py start`, `cluster.py stop`.

A fresh Debian 12 and root are enough: no systemd, no cgroups, no container engine. Virtual nodes
claim more CPUs than there are, so that arrays run in parallel; GPUs are stand-ins; memory limits
hold; sacct answers; jobs of the partition low are preempted by those of main and high.
"""

import argparse
import fcntl
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import configuration
from processes import (
    DIR,
    ENV,
    ETC,
    RUN,
    ClusterError,
    end,
    launch,
    logged,
    node_daemons,
    output,
    running,
    tail,
    wait,
)

# Beside DIR, not in it: a purge would remove the lock that the next in line waits for.
LOCK = DIR.with_name(DIR.name + ".lock")
PROGRAMS = {
    "munged": "munge",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
}
# sacct asks slurmdbd, and slurmdbd stores in MariaDB only. The bare server and client are
# enough, and bring no system-wide database with them.
ACCOUNTING_PROGRAMS = {
    "slurmdbd": "slurmdbd",
    "mariadbd": "mariadb-server-core",
    "mariadb": "mariadb-client-core",
}


def start(nodes: int = 2, max_array: int = 1001, accounting: bool = True) -> None:
    """Bring the cluster up with these settings, whatever state it is in; return when it answers."""
    if not 1 <= nodes <= 64 or max_array < 2:
        raise ClusterError("1 to 64 nodes and an array size of 2 or more are possible")
    names = [f"node{i}" for i in range(nodes)]
    with _alone():
        configuration.prepare(names)
        _install(PROGRAMS | (ACCOUNTING_PROGRAMS if accounting else {}))
        configuration.configure(nodes, max_array, accounting)
        configuration.name_hosts(names)
        _start_munge()
        if accounting:
            _start_accounting()
        launch("slurmctld", "slurmctld")
        daemons = {f"slurmd-{name}": name for name in names}
        for daemon, name in daemons.items():
            launch(daemon, "slurmd", "-N", name)
        wait("idle nodes", lambda: _nodes_up() == nodes, "slurmctld", *daemons)
        if accounting:
            wait("answer of sacct", lambda: output("sacct", "-n", "-X") is not None, "slurmdbd")


def stop(purge: bool = False) -> None:
    """Cancel the jobs and end the daemons; with `purge` leave nothing but the packages."""
    with _alone():
        if running("slurmctld"):
            _cancel_jobs()
        for names in (["slurmctld"], node_daemons(), ["slurmdbd"], ["mariadbd"], ["munged"]):
            end(*names)
        if purge:
            configuration.forget()


@contextmanager
def _alone() -> Iterator[None]:
    """One start or stop at a time, by root; the lock's descriptor does not pass to daemons."""
    if os.geteuid() != 0:
        raise ClusterError("must run as root")
    DIR.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 120
    with LOCK.open("a") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ClusterError("another start or stop has held on for 120 s") from None
                time.sleep(0.1)
        yield


def _install(programs: dict[str, str]) -> None:
    """Install the packages of the programs that are missing, and start none of their daemons."""
    missing = [p for name, p in programs.items() if not shutil.which(name, path=ENV["PATH"])]
    if not missing:
        return
    if not shutil.which("apt-get", path=ENV["PATH"]):
        raise ClusterError(f"no apt-get here to install {' '.join(missing)}")
    print(f"installing {' '.join(missing)}", file=sys.stderr)
    # A package starts its daemon, with stock settings and on every address, unless this forbids.
    policy = Path("/usr/sbin/policy-rc.d")
    forbid = not policy.exists()
    if forbid:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    apt = ("apt-get", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=60")
    install = (*apt, "install", *missing)
    try:  # a fresh machine has no lists yet
        if not logged("apt", *install, seconds=300) and not (
            logged("apt", *apt, "update") and logged("apt", *install, seconds=300)
        ):
            raise ClusterError(f"apt-get does not install the packages{tail('apt')}")
    finally:
        if forbid:
            policy.unlink()


def _start_munge() -> None:
    key = ETC / "munge.key"
    if not key.exists():
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
    files = (f"--key-file={key}", f"--socket={RUN}/munge.socket", f"--pid-file={RUN}/munged.pid")
    more_files = (f"--log-file={DIR}/log/munged.log", f"--seed-file={RUN}/munged.seed")
    launch("munged", "munged", "--force", *files, *more_files)


def _start_accounting() -> None:
    """MariaDB on a unix socket, slurmdbd on loopback, and the cluster's name in its tables."""
    data, unix = DIR / "mysql", RUN / "mysql.sock"
    common = ("--no-defaults", "--user=root", f"--datadir={data}", "--innodb-log-file-size=8M")
    if not (data / "mysql").exists():
        auth = ("--auth-root-authentication-method=socket", "--auth-root-socket-user=root")
        if not logged("install-db", "mariadb-install-db", *common, *auth, "--skip-test-db"):
            shutil.rmtree(data, ignore_errors=True)  # half a database would be taken for a whole
            raise ClusterError(f"mariadb-install-db fails{tail('install-db')}")
    small = ("--innodb-buffer-pool-size=32M", "--innodb-flush-log-at-trx-commit=0")
    private = ("--skip-networking", f"--socket={unix}", f"--pid-file={RUN}/mariadbd.pid")
    # The one daemon that does not detach itself.
    launch("mariadbd", "setsid", "--fork", "mariadbd", *common, *small, *private)
    client = ("mariadb", "--no-defaults", f"--socket={unix}", "-e", "select 1")
    wait("answer of mariadbd", lambda: output(*client) is not None, "mariadbd")
    launch("slurmdbd", "env", f"MYSQL_UNIX_PORT={unix}", "slurmdbd")
    clusters = ("sacctmgr", "-n", "-P", "list", "cluster", "format=cluster")
    wait("answer of slurmdbd", lambda: output(*clusters) is not None, "slurmdbd")
    if not output(*clusters):
        output("sacctmgr", "-i", "add", "cluster", "scaling-law")


def _nodes_up() -> int:
    """How many nodes answer, and are neither down nor drained."""
    states = (output("sinfo", "-h", "-N", "-p", "main", "-o", "%T") or "").split()
    return sum(s in ("idle", "mixed", "allocated", "completing") for s in states)


def _cancel_jobs() -> None:
    """Jobs go first, so that no step outlives its node; one that does not go is left behind."""
    jobs = set((output("squeue", "-h", "-o", "%A") or "").split())
    if jobs:
        output("scancel", *jobs)
    deadline = time.monotonic() + 15
    while output("squeue", "-h") and time.monotonic() < deadline:
        time.sleep(0.2)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    up = verbs.add_parser("start", help="install what is missing, start, wait; prints READY")
    up.add_argument("--nodes", type=int, default=2)
    up.add_argument("--max-array", type=int, default=1001, help="MaxArraySize of slurm.conf")
    up.add_argument("--no-accounting", action="store_true", help="no slurmdbd, so that sacct fails")
    down = verbs.add_parser("stop", help="cancel the jobs, end the daemons; prints STOPPED")
    down.add_argument("--purge", action="store_true", help="forget all but the packages, too")
    args = parser.parse_args()
    try:
        if args.verb == "start":
            start(args.nodes, args.max_array, not args.no_accounting)
        else:
            stop(args.purge)
    except ClusterError as error:
        sys.exit(f"cluster: {error}")
    print("READY" if args.verb == "start" else "STOPPED")


if __name__ == "__main__":
    main()
