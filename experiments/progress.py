"""What a person sees while a sweep runs: bars on a terminal, plain timed lines elsewhere."""

import time
from collections.abc import Iterator, Sequence
from typing import Self, TypeVar

from rich.console import Console
from rich.live import Live
from rich.progress import track
from rich.table import Table

from experiments.spec import Event, TrunkSpec
from minigpt.watch import LINE_SECONDS, clock

BAR_WIDTH = 24
Item = TypeVar("Item")


def watched(items: Sequence[Item], what: str, console: Console) -> Iterator[Item]:
    """The items one after the other, `what` they are told with how many are done, and time left."""
    if console.is_terminal:
        yield from track(items, what, console=console, transient=True)
        return
    began = told = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - told > LINE_SECONDS:
            told = time.monotonic()
            left = clock((told - began) / done * (len(items) - done))
            console.print(f"{done} of {len(items)} {what}, {left} left", highlight=False)
        yield item


class Progress:
    """Follows the events of a sweep; a context manager around the loop that feeds `update`."""

    def __init__(self, trunks: list[TrunkSpec], finished: set[str], console: Console) -> None:
        """`trunks` are those still to train, `finished` the run ids that have a result already."""
        self._console = console
        self._trunks = {trunk.trunk_id: trunk for trunk in trunks}
        self._runs = {run.run_id: run for trunk in trunks for run in trunk.runs}
        self._todo = {t.trunk_id: t.cost(done=finished) for t in trunks}
        self._left = dict(self._todo)
        self._open = {t.trunk_id: [r for r in t.runs if r.run_id not in finished] for t in trunks}
        self._last: dict[str, Event] = {}
        self._steps = {run_id: self._runs[run_id].stop for run_id in finished & self._runs.keys()}
        self._began = self._told = time.monotonic()
        self._first_left: float | None = None
        self._overview = self._overview_told = ""
        self._live = Live(console=console, refresh_per_second=4) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.stop()

    def update(self, event: Event) -> None:
        """Take in one event and show what changed."""
        if event.kind == "overview":
            self._overview = event.reason or ""
        else:
            self._take(self._trunks[event.trunk_id], event)
        if self._live:
            self._live.update(self._table())
        elif time.monotonic() - self._told > LINE_SECONDS and self._news():
            self._told = time.monotonic()
            self._console.print(self._line(), highlight=False)

    def _news(self) -> bool:
        """Whether a line is due: something trains, or what waits has changed."""
        before, self._overview_told = self._overview_told, self._overview
        return bool(self._last) or self._overview != before

    def _take(self, trunk: TrunkSpec, event: Event) -> None:
        if event.kind == "progress":
            self._last[event.trunk_id] = event
            if event.run_id and event.step is not None:
                self._steps[event.run_id] = event.step
            if self._open[event.trunk_id]:
                self._left[event.trunk_id] = self._remaining(trunk)
            if self._first_left is None:
                self._first_left, self._began = sum(self._left.values()), time.monotonic()
        elif event.kind == "finished":
            self._open[event.trunk_id] = [
                r for r in self._open[event.trunk_id] if r.run_id != event.run_id
            ]
            self._steps[event.run_id or ""] = self._runs[event.run_id or ""].stop
            if not self._open[event.trunk_id]:
                self._last.pop(event.trunk_id, None)
                self._left[event.trunk_id] = 0.0
            self._say(trunk, event)
        else:
            self._last.pop(event.trunk_id, None)
            self._left[event.trunk_id] = 0.0
            self._console.print(f"failed  {_name(trunk)}: {event.reason}", highlight=False)

    def _remaining(self, trunk: TrunkSpec) -> float:
        """FLOPs still to train in `trunk`: what its open runs need of it, and their branches.

        One run after another, or all branches side by side: either way these are the steps left.
        """
        runs = self._open[trunk.trunk_id]
        reached = [min(self._steps.get(run.run_id, 0), run.start) for run in trunk.runs]
        of_trunk = max(run.start for run in runs) - max(reached)
        steps = max(0, of_trunk)
        steps += sum(r.stop - max(r.start, self._steps.get(r.run_id, 0)) for r in runs)
        return steps * trunk.flops(trunk.runs[0]) / trunk.runs[0].stop

    def _time_left(self) -> str:
        if self._first_left is None:
            return "--:--"
        left = sum(self._left.values())
        done, elapsed = self._first_left - left, time.monotonic() - self._began
        if done <= 0 or elapsed < 2:
            return "--:--"
        return clock(left * elapsed / done)

    def _share(self) -> float:
        total = sum(self._todo.values())
        return 1.0 if not total else max(0.0, min(1.0, 1 - sum(self._left.values()) / total))

    def _line(self) -> str:
        active = ", ".join(
            f"{_name(self._trunks[key])} {event.train_loss:.3f}"
            for key, event in sorted(self._last.items())
            if event.train_loss is not None
        )
        head = f"{self._clock()}  {self._share():4.0%} done, {self._time_left()} left"
        told = [text for text in (self._overview, f"training {active}" if active else "") if text]
        return f"{head}  {'; '.join(told)}"

    def _say(self, trunk: TrunkSpec, event: Event) -> None:
        run, result = self._runs[event.run_id or ""], event.result or {}
        if result.get("status") != "ok":
            told = f"{result.get('status')}: {result.get('reason')}"
        else:
            bpb = result["val_bpb"]
            bits = "" if bpb is None else f" ({bpb:.3f} bits/byte)"
            told = f"L = {result['val_loss']:.4f} nats/token{bits}"
        self._console.print(
            f"{self._clock()}  {_name(trunk)}  D = {run.tokens:>12,}  {told}", highlight=False
        )

    def _clock(self) -> str:
        return f"{clock(time.monotonic() - self._began):>6}"

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for key, event in sorted(self._last.items()):
            trunk, run = self._trunks[key], self._runs[event.run_id or ""]
            speed = event.tokens_per_second or 0.0
            left = (run.stop - (event.step or 0)) * trunk.train.batch_tokens / speed if speed else 0
            table.add_row(
                _name(trunk),
                f"D = {run.tokens:,}",
                _bar((event.step or 0) / run.stop),
                f"loss {event.train_loss:.3f}" if event.train_loss is not None else "",
                f"{speed:,.0f} tok/s",
                clock(left),
            )
        table.add_row("all", self._overview, _bar(self._share()), "", "", self._time_left())
        return table


def _name(trunk: TrunkSpec) -> str:
    arm = "" if trunk.arm == "main" else f" {trunk.arm}"
    return f"{trunk.model.preset} d={trunk.model.d_model:<4d} seed={trunk.train.seed}{arm}"


def _bar(share: float) -> str:
    full = round(share * BAR_WIDTH)
    return f"{'━' * full}{'─' * (BAR_WIDTH - full)} {share:4.0%}"
