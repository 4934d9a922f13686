"""How a slow iterator is run ahead of whoever iterates, in a thread of its own."""

import threading
from collections.abc import Generator, Iterator
from queue import Full, Queue
from typing import Any, TypeVar

T = TypeVar("T")
PATIENCE = 1.0  # seconds that whoever stops early waits for a read that is under way


def ahead(items: Iterator[T], depth: int) -> Generator[T, None, None]:
    """Run `items` in a thread of its own, up to `depth` ahead of whoever iterates; its errors surface there."""
    done, stopped = object(), threading.Event()
    queue: Queue[Any] = Queue(depth)

    def put(item: Any) -> bool:
        while not stopped.is_set():
            try:
                queue.put(item, timeout=0.1)
                return True
            except Full:
                continue
        return False

    def run() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((done, None))
        except BaseException as error:
            put((done, error))

    thread = threading.Thread(target=run, name="inpaint_data-ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = queue.get()
            if error is not None:
                raise error
            if item is done:
                return
            yield item
    finally:
        stopped.set()
        thread.join(PATIENCE)  # a read from a store that hangs ends by itself, and the thread with it
