"""What a benchmark found: rows for people and for JSON, remarks, and the machine they are of."""

import platform
import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from experiments.contest import Outcome
from experiments.launch import cores
from experiments.peaks import vendor_peak
from experiments.provenance import processor_name
from experiments.worker import Report
from minigpt.counts import flops_per_token


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure; None where it was not measured or is not known.

    `tokens_per_second` is of all members together. `mfu` divides by the vendor's peak, `of_matmul`,
    which is only printed, by the rate of a large product that the same process timed.
    """

    suite: str
    variant: str
    d_model: int | None = None
    n_layers: int | None = None
    members: int | None = None
    tokens_per_second: float | None = None
    ratio_to_reference: float | None = None
    mfu: float | None = None
    ops_per_step: int | None = None
    peak_memory_bytes: int | None = None
    of_matmul: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The row as a file has it."""
        return {key: value for key, value in asdict(self).items() if key != "of_matmul"}

    def shown(self) -> dict[str, Any]:
        """The row as the printed table has it."""
        memory = self.peak_memory_bytes
        return {
            "suite": self.suite,
            "variant": self.variant,
            "d_model": self.d_model,
            "layers": self.n_layers,
            "members": self.members,
            "tokens/s": _text(self.tokens_per_second, ",.0f"),
            "ratio": _text(self.ratio_to_reference, ".2f"),
            "MFU": _text(self.mfu, ".1%"),
            "of matmul": _text(self.of_matmul, ".0%"),
            "ops/step": self.ops_per_step,
            "memory, GB": _text(None if memory is None else memory / 1e9, ".2f"),
        }


@dataclass
class Findings:
    """What a suite found; `matmul` holds the rates of large products, FLOP/s, by dtype.

    `failed`: some of it is missing, and a remark says which.
    """

    rows: list[Row] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    matmul: dict[str, list[float]] = field(default_factory=dict)
    failed: bool = False

    def add(
        self,
        suite: str,
        variant: str,
        outcome: Outcome,
        report: Report,
        reference: Outcome | None,
    ) -> Row:
        """The row of a contest's `outcome`, beside the outcome that it is compared with."""
        trial, speed = outcome.trial, outcome.tokens_per_second
        flops = speed * flops_per_token(trial.model).exact
        half = trial.dtype == "bfloat16" or trial.device.startswith("cuda")
        self.matmul.setdefault("bfloat16" if half else "float32", []).append(report.matmul_flops)
        peak = vendor_peak(device_name(trial.device))
        row = Row(
            suite=suite,
            variant=variant,
            d_model=trial.model.d_model,
            n_layers=trial.model.n_layers,
            members=trial.members,
            tokens_per_second=speed,
            ratio_to_reference=None if reference is None else speed / reference.tokens_per_second,
            mfu=None if peak is None else flops / peak,
            ops_per_step=report.ops_per_step,
            peak_memory_bytes=report.peak_memory_bytes,
            of_matmul=flops / report.matmul_flops,
        )
        self.rows.append(row)
        return row

    def extend(self, other: "Findings") -> None:
        """Add what another suite found."""
        self.rows += other.rows
        self.remarks += other.remarks
        self.failed |= other.failed
        for dtype, rates in other.matmul.items():
            self.matmul.setdefault(dtype, []).extend(rates)

    def to_json(self, device: str, load: float | None) -> dict[str, Any]:
        """The machine, the rows, and the remarks.

        `load`: processes that wanted a core before the benchmark began; they lengthen times on the
        wall, and are unfair to threads that wait for one another.
        """
        name = device_name(device)
        matmul = {dtype: statistics.median(rates) for dtype, rates in self.matmul.items()}
        machine = {
            "device": name,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "cores": cores(),
            "load": load,
            "peak_flops": vendor_peak(name),
            "matmul_flops": matmul,
        }
        rows = [row.to_json() for row in self.rows]
        return {"machine": machine, "rows": rows, "remarks": self.remarks}


def device_name(device: str) -> str:
    """As the maker calls the processor or the GPU."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else processor_name()


def _text(value: float | None, form: str) -> str | None:
    return None if value is None else format(value, form)
