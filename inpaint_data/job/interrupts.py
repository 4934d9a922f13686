"""Interrupts: the first Ctrl-C or SIGTERM ends a job cleanly, the second at once; a closed terminal ends none."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
HANG_UP = signal.SIGHUP


class Interrupted(KeyboardInterrupt):
    """Raised in the main thread by the first signal."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number  # what shells and schedulers expect


@contextmanager
def interruptible() -> Iterator[None]:
    """Within the block the first SIGINT or SIGTERM raises `Interrupted`, and the second exits silently.

    SIGHUP, which a closed terminal sends, is ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets only the main thread handle signals
        return

    def first(number: int, _: FrameType | None) -> None:
        for handled in SIGNALS:
            signal.signal(handled, second)
        raise Interrupted(number)

    def second(number: int, _: FrameType | None) -> None:
        os._exit(128 + number)

    previous = {number: signal.signal(number, first) for number in SIGNALS}
    previous[HANG_UP] = signal.signal(HANG_UP, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
