"""What Ctrl-C and a scheduler's SIGTERM do: the first ends a job cleanly, the second at once."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """Raised in the main thread by the first signal."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number  # what shells and schedulers expect


@contextmanager
def interruptible() -> Iterator[None]:
    """Within the block the first SIGINT or SIGTERM raises `Interrupted`, and the second leaves without a word."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets only the main thread handle signals
        return

    def first(number: int, _: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, second)
        raise Interrupted(number)

    def second(number: int, _: FrameType | None) -> None:
        os._exit(128 + number)

    before = {each: signal.signal(each, first) for each in SIGNALS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
