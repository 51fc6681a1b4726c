"""Ctrl-C and SIGTERM: the first one saves and stops the run, the second one stops at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType

MESSAGE = "interrupted: saving a checkpoint, after any evaluation under way (once more stops at once, without saving)"
NOTHING_TO_SAVE = "interrupted: stopping; nothing is computed, so nothing is saved (once more stops at once)"


class Interrupts:
    """While it is entered, a signal asks the current run to save and stop.

    Attributes:
        number: the signal that came, None so far.
        on_first: called at the first signal, in the handler.
        message: said at the first signal.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.on_first: list[Callable[[], None]] = []
        self.message = MESSAGE
        self._before: dict[int, object] = {}

    @property
    def exit_code(self) -> int:
        """130 after SIGINT, 143 after SIGTERM, as a shell reports them; 0 after none."""
        return 0 if self.number is None else 128 + self.number

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            raise KeyboardInterrupt
        self.number = number
        for call in self.on_first:
            call()
        with contextlib.suppress(OSError):  # where nobody listens any more it is saved all the same
            os.write(2, f"{self.message}\n".encode())  # print could strike in the middle of another print
