"""Ctrl-C, SIGTERM and SIGUSR1 as a request that the training loop honours between two steps.

SIGTERM comes from who ends a process in order: Slurm at preemption, torchrun, container managers.
SIGUSR1 is what Slurm is usually told to send some time before a job's limit.
"""

import os
import signal
import threading
from types import FrameType
from typing import Self


class Interrupted(BaseException):
    """The run was asked to stop and has stopped; `signal_number` says by which signal.

    No `Exception`, as KeyboardInterrupt is none: a loop over trainings that goes on after errors
    ends here too.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)  # the argument alone, so that it can be pickled
        self.signal_number = signal_number

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.signal_number).name}"


class StopRequest:
    """While open, the first of its signals is noted in `signal_number`; the second raises.

    A step that is cut in two would leave weights that no uninterrupted run ever has. Outside of the
    main thread, which alone may take signals, nothing is done. A signal that was ignored before, or
    that other than Python code handles, stays so.

    Args:
        announce: whether to say on standard error that the request was heard.

    Raises:
        Interrupted: on the second signal, at once.
    """

    SIGNALS = (
        signal.SIGINT,
        signal.SIGTERM,
        *((signal.SIGUSR1,) if hasattr(signal, "SIGUSR1") else ()),
    )

    def __init__(self, *, announce: bool = False) -> None:
        self.announce = announce
        self.signal_number: int | None = None

    def __enter__(self) -> Self:
        own = threading.current_thread() is threading.main_thread()
        self._before = {
            number: signal.getsignal(number)
            for number in (self.SIGNALS if own else ())
            if signal.getsignal(number) not in (signal.SIG_IGN, None)
        }
        self.install()
        return self

    def install(self) -> None:
        """Take the signals, also from a library that has put its own handlers before ours."""
        for number in self._before:
            signal.signal(number, self._note)

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise where the request has been heard; also to be called last, since what is heard after
        a loop's last step is forgotten once this is closed.

        Raises:
            Interrupted: a signal came.
        """
        if self.signal_number is not None:
            raise Interrupted(self.signal_number)

    def _note(self, signal_number: int, frame: FrameType | None) -> None:
        if self.signal_number is not None:
            raise Interrupted(signal_number)
        self.signal_number = signal_number
        if self.announce:  # past Python's buffers, whose use the signal may have interrupted
            os.write(2, b"\ncovpool: stopping at the next safe point; once more stops at once\n")
