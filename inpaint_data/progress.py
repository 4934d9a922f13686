"""What a person sees while the job runs: a bar on a terminal, plain lines in a log."""

import sys
import time
from datetime import timedelta

from tqdm import tqdm


class Progress:
    """Counts images and bytes of input; both go to stderr.

    Args:
        shards: how many will be cached in this run.
        total_bytes: the size of them all, which the time still needed is reckoned from.
    """

    def __init__(self, shards: int, total_bytes: int) -> None:
        self._shards, self._total = shards, max(1, total_bytes)
        self._images = self._done = 0
        self._started = time.perf_counter()
        self._bar = None
        if sys.stderr.isatty() and shards:
            layout = "{percentage:3.0f}%|{bar}| {postfix} [{elapsed}<{remaining}]"
            self._bar = tqdm(total=self._total, bar_format=layout, postfix=self._counts(), file=sys.stderr)

    def _counts(self) -> str:
        rate = self._images / max(time.perf_counter() - self._started, 1e-9)
        return f"shard {min(self._done + 1, self._shards)}/{self._shards}, {self._images} images, {rate:.1f} images/s"

    def images(self, count: int, bytes_read: int) -> None:
        self._images += count
        if self._bar is not None:
            self._bar.set_postfix_str(self._counts(), refresh=False)
            self._bar.n = min(bytes_read, self._total)
            self._bar.refresh()

    def shard(self, name: str, samples: int, quarantined: int, bytes_read: int) -> None:
        """One shard is committed."""
        self._done += 1
        if self._bar is not None:
            return
        elapsed = time.perf_counter() - self._started
        left = elapsed * max(0.0, self._total / max(1, bytes_read) - 1)
        sys.stderr.write(
            f"shard {self._done}/{self._shards} {name}: {samples} cached, {quarantined} quarantined, "
            f"{self._images / max(elapsed, 1e-9):.1f} images/s, {timedelta(seconds=round(left))} to go\n"
        )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
