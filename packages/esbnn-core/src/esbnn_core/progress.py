"""Progress for people: a bar on a terminal, one plain line now and then elsewhere; always on stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

__all__ = ["Bar", "say"]

_PLAIN_SECONDS = 20.0  # between two plain lines: short enough to see life, long enough for a log file


def say(text: str) -> None:
    """One line for the person who watches; results go to stdout or to files instead."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        tqdm.write(text, file=sys.stderr)
    else:
        print(text, file=sys.stderr, flush=True)


class Bar:
    """Progress of `total` units of work under a title; figures given to `advance` are shown behind it.

    On a terminal this is a tqdm bar. Elsewhere it prints a line every 20 seconds, so that short work prints nothing.
    shown: False (other ranks of a distributed run) prints nothing at all. start: units that were done before.
    """

    def __init__(self, total: int, title: str, *, unit: str = "step", start: int = 0, shown: bool = True) -> None:
        self.total, self.title, self.unit, self.done, self.shown = total, title, unit, start, shown
        self._bar: Any = None
        self._began = self._printed = time.monotonic()
        self._start = start
        if shown and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=title, unit=unit, initial=start, leave=False, file=sys.stderr)

    def advance(self, count: int = 1, **figures: float) -> None:
        """Note `count` more units as done."""
        self.done += count
        if self._bar is not None:
            if figures:
                self._bar.set_postfix({k: f"{v:.4g}" for k, v in figures.items()}, refresh=False)
            self._bar.update(count)
        elif self.shown and time.monotonic() - self._printed > _PLAIN_SECONDS:
            self._printed = time.monotonic()
            each = (self._printed - self._began) / max(1, self.done - self._start)
            left = each * max(0, self.total - self.done)
            tail = "".join(f", {k} {v:.4g}" for k, v in figures.items())
            say(f"{self.title}: {self.done}/{self.total} {self.unit}s, {left:.0f} s left{tail}")

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
