"""What a person sees while one model trains: a bar on a terminal, plain timed lines elsewhere."""

import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from minigpt.event import Evaluation, Event, Progress

LINE_SECONDS = 15.0


class Watch:
    """Follows the events of a training of `steps` steps; a context manager around their loop."""

    def __init__(self, steps: int, batch_tokens: int, console: Console) -> None:
        self.steps, self.batch_tokens, self.console = steps, batch_tokens, console
        self.began = self.told = time.monotonic()
        self.first: int | None = None  # the step that this process started from
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
        self.bar = Bar(
            *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal
        )
        self.task = self.bar.add_task("", total=steps)

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def hear(self, event: Event) -> None:
        """Take in one event and show what changed."""
        if isinstance(event, Evaluation):
            se = "" if event.val_loss_se is None else f" ± {event.val_loss_se:.3f}"
            self._say(
                f"step {event.step:,} of {self.steps:,}: training loss {event.train_loss:.4f}, "
                f"held out {event.val_loss:.4f}{se}"
            )
        elif isinstance(event, Progress):
            if self.first is None:
                self.first = event.step
                if event.step:
                    self._say(f"goes on from step {event.step:,} of {self.steps:,}")
            loss = "" if event.train_loss is None else f"loss {event.train_loss:.3f}"
            told = f"step {event.step:,} of {self.steps:,} {loss}"
            self.bar.update(self.task, completed=event.step, description=told)
            due = time.monotonic() - self.told > LINE_SECONDS and event.step > self.first
            if due and not self.console.is_terminal:
                self._say(f"{event.step / self.steps:4.0%} done, {self._left(event.step)}  {told}")

    def _say(self, text: str) -> None:
        self.told = time.monotonic()
        self.console.print(f"{clock(self.told - self.began):>6}  {text}")

    def _left(self, step: int) -> str:
        done, seconds = step - (self.first or 0), time.monotonic() - self.began
        speed = f"{done * self.batch_tokens / seconds:,.0f} tokens/s"
        return f"{clock((self.steps - step) * seconds / done)} left, {speed}"


def clock(seconds: float) -> str:
    """Minutes and seconds, as 12:05."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
