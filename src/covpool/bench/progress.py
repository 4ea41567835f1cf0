"""What goes on during a long measurement, on standard error."""

import sys
import time
from typing import Self


class Progress:
    """One line that is written over on a terminal; elsewhere a line now and then.

    Args:
        seconds: at least between two lines where there is no terminal.
    """

    def __init__(self, seconds: float = 20) -> None:
        self.seconds, self.last = seconds, time.monotonic()
        self.terminal = sys.stderr.isatty()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.clear()

    def __call__(self, text: str) -> None:
        now = time.monotonic()
        if self.terminal:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
        elif now - self.last >= self.seconds:
            self.last = now
            print(text, file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Empty the line, for other output."""
        if self.terminal:
            self("")
