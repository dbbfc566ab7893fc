"""The [launch] section of a config: where runs execute, and what a Slurm job of them asks for."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from minigpt.config import Count, Frozen, Positive, PositiveFloat, Strategy

# Flags of sbatch that have a key of their own, or that submitting depends on.
OWN_FLAGS = {
    **{key: key for key in ("partition", "account", "qos", "constraint", "exclude", "nodes")},
    "gpus-per-node": "gpus_per_node",
    "cpus-per-task": "cpus_per_task",
    "ntasks-per-node": "launch.ranks",
    "ntasks": "launch.ranks",
    "mem": "mem_gb",
    "time": "time_min",
    "signal": "signal_seconds",
    "array": "array_parallelism",
    **{flag: "gpus_per_node (a number, or 'a100:2')" for flag in ("gres", "gpus", "gpus-per-task")},
    **{key: None for key in ("job-name", "output", "error", "open-mode", "requeue", "no-requeue")},
    **{key: None for key in ("dependency", "parsable", "quiet", "wait", "wrap", "test-only")},
    **{key: None for key in ("clusters", "chdir", "export", "hold")},
}
# A number, or with a type as sbatch has it: "a100:2".
GPUs = Count | Annotated[str, Field(pattern=r"^[A-Za-z][\w.-]*:[1-9]\d*$")]


class Asked(Frozen):
    """What one job asks for, as [launch.slurm] says it."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    nodes: Positive = 1
    gpus_per_node: GPUs = 0
    cpus_per_task: Positive = 1
    mem_gb: PositiveFloat | None = None
    time_min: Positive = 60
    runs_per_job: Positive = 1
    sbatch: dict[str, bool | int | float | str] = Field(default_factory=dict)


class Resources(Asked):
    """What one job asks for, resolved for the models that it trains."""

    ranks: Positive = 1
    strategy: Strategy = "ddp"

    @property
    def gpus(self) -> int:
        """GPUs on each node, of whatever type."""
        asked = self.gpus_per_node
        return asked if isinstance(asked, int) else int(asked.rpartition(":")[2])

    @property
    def tasks_per_node(self) -> int:
        """Processes on each node: one per rank of the model."""
        return self.ranks // self.nodes

    @property
    def devices(self) -> int:
        """What a job holds and a price is paid for: GPUs, or CPU cores where it has none."""
        per_node = self.gpus or self.cpus_per_task * self.tasks_per_node
        return self.nodes * per_node

    def flags(self) -> dict[str, str | bool]:
        """The flags of sbatch and srun; True for a flag without a value."""
        values: dict[str, object] = {
            **{k: getattr(self, k) for k in ("partition", "account", "qos", "constraint")},
            "exclude": self.exclude,
            "nodes": self.nodes,
            "ntasks-per-node": self.tasks_per_node,
            "cpus-per-task": self.cpus_per_task,
            "gpus-per-node": self.gpus_per_node or None,
            "mem": None if self.mem_gb is None else f"{round(self.mem_gb * 1024)}M",
            "time": self.time_min,
            **{key: value for key, value in self.sbatch.items() if value is not False},
        }
        return {k: v if v is True else str(v) for k, v in values.items() if v is not None}

    def words(self) -> list[str]:
        """The flags as sbatch and srun take them."""
        return [f"--{k}" if v is True else f"--{k}={v}" for k, v in self.flags().items()]

    def checked(self) -> Self:
        """Itself, where its numbers fit together.

        Raises ValueError with value, rule and remedy.
        """
        if self.ranks % self.nodes:
            raise ValueError(
                f"nodes = {self.nodes} does not divide ranks = {self.ranks}: every node holds the "
                "same number of the processes that train one model together"
            )
        if self.ranks > 1 and self.gpus not in (0, self.tasks_per_node):
            raise ValueError(
                f"gpus_per_node = {self.gpus_per_node}: ranks = {self.ranks} on {self.nodes} nodes "
                f"need one GPU each; use gpus_per_node = {self.tasks_per_node}"
            )
        if self.ranks > 1 and self.runs_per_job > 1:
            raise ValueError(
                f"runs_per_job = {self.runs_per_job} packs models that are small; one that takes "
                f"ranks = {self.ranks} processes has its job alone: remove one of the two"
            )
        return self


class Tier(Frozen):
    """From `n_total` parameters on, these keys in place of those of [launch] and [launch.slurm]."""

    n_total: Positive
    partition: str | None = None
    qos: str | None = None
    constraint: str | None = None
    nodes: Positive | None = None
    gpus_per_node: GPUs | None = None
    cpus_per_task: Positive | None = None
    mem_gb: PositiveFloat | None = None
    time_min: Positive | None = None
    runs_per_job: Positive | None = None
    ranks: Positive | None = None
    strategy: Strategy | None = None


class SlurmSection(Asked):
    """What every job of the sweep asks for, and how jobs are made of runs.

    A job takes trunks until it holds `runs_per_job` runs. `signal_seconds` before its time limit it
    saves and is put back into the queue, `max_requeues` times; a preempted job is always put back.
    `setup` are lines of bash before the job's python; `sbatch` any other flags.
    """

    array_parallelism: Positive = 256
    max_requeues: Count = 10
    signal_seconds: Positive = 120
    setup: Annotated[tuple[str, ...], Field(strict=False)] = ()
    tiers: Annotated[tuple[Tier, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _own_flags(self) -> Self:
        for flag in self.sbatch:
            if flag.startswith("-") or "_" in flag:
                plain = flag.lstrip("-").replace("_", "-")
                raise ValueError(f"sbatch: flag '{flag}': write it as sbatch does, '{plain}'")
            if flag in OWN_FLAGS:
                key = OWN_FLAGS[flag]
                told = f"is what the key {key} is for" if key else "is set by the suite"
                raise ValueError(f"sbatch: flag '{flag}' {told}; remove it")
        return self


class LaunchSection(Frozen):
    """Where runs execute; nothing here changes a result, so it may change between calls.

    `slots` are models in training at once on one machine (or in one Slurm job), each with
    `threads_per_slot` CPU threads, or a GPU; more slots than GPUs share them, each a CUDA stream. A
    slot trains `members` models of one shape side by side: auto is one on a CPU, and on a GPU as
    many as its memory holds. `ranks` processes train one model together, by `strategy`: copies of
    it (ddp) or shards of it (fsdp).
    `price_per_device_hour` is for `plan`.
    """

    executor: Literal["inline", "local", "slurm"] = "local"
    slots: Literal["auto"] | Positive = "auto"
    threads_per_slot: Positive = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    members: Literal["auto"] | Positive = "auto"
    ranks: Positive = 1
    strategy: Strategy = "ddp"
    checkpoint_seconds: PositiveFloat = 60.0
    price_per_device_hour: PositiveFloat | None = None
    slurm: SlurmSection = SlurmSection()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.executor == "inline" and self.ranks > 1:
            raise ValueError(
                f"ranks = {self.ranks}: executor = 'inline' is one process; use 'local' or 'slurm'"
            )
        if self.executor != "slurm":
            return self
        for tier in (None, *self.slurm.tiers):
            where = "[launch.slurm]"
            where += "" if tier is None else f", tier from n_total = {tier.n_total}"
            try:
                asked = self.resources(tier.n_total if tier else 0).checked()
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
            work = asked.time_min * 60 - self.slurm.signal_seconds
            if work < self.checkpoint_seconds:
                raise ValueError(
                    f"{where}: time_min = {asked.time_min} leaves {max(0, work)} s before the "
                    f"warning {self.slurm.signal_seconds} s ahead of the limit, less than one "
                    f"checkpoint_seconds = {self.checkpoint_seconds:g}; raise time_min"
                )
            if self.device == "cuda" and not asked.gpus:
                raise ValueError(
                    f"{where}: device = 'cuda' and gpus_per_node = 0; ask for a GPU, or use "
                    "device = 'cpu'"
                )
        return self

    def slot_count(self, gpus: int, cores: int) -> int:
        """Models in training at once where there are so many GPUs, or CPU cores without any."""
        auto = gpus or max(1, cores // self.threads_per_slot)
        return auto if self.slots == "auto" else self.slots

    def members_on(self, gpus: int) -> int | None:
        """Models of one shape side by side where there are so many GPUs; None: measure it there."""
        auto = None if gpus else 1
        return auto if self.members == "auto" else self.members

    def resources(self, n_total: int) -> Resources:
        """What a Slurm job asks for that trains a model of `n_total` parameters.

        On other executors only `ranks` and `strategy` mean something: tiers belong to Slurm.
        """
        values = {name: getattr(self.slurm, name) for name in Asked.model_fields}
        values |= {"ranks": self.ranks, "strategy": self.strategy}
        tiers = self.slurm.tiers if self.executor == "slurm" else ()
        for tier in sorted(tiers, key=lambda tier: tier.n_total):
            if n_total >= tier.n_total:
                values |= tier.model_dump(exclude={"n_total"}, exclude_none=True)
        return Resources(**values)
