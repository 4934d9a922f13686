"""What a person sees while the job runs: a bar on a terminal, plain lines in a log."""

import sys
import time
from datetime import timedelta

from tqdm import tqdm


class Progress:
    """Counts images, on stderr. `expected` is how many there will be in all, as far as one can tell by now."""

    def __init__(self, shards: int) -> None:
        self._shards = shards
        self._images = self._done = 0
        self._started = time.perf_counter()
        self._bar = None
        if sys.stderr.isatty() and shards:
            layout = "{percentage:3.0f}%|{bar}| {desc} [{elapsed}<{remaining}]"
            self._bar = tqdm(total=1, bar_format=layout, desc=self._counts(), file=sys.stderr)

    def _rate(self) -> float:
        return self._images / max(time.perf_counter() - self._started, 1e-9)

    def _counts(self) -> str:
        shard = min(self._done + 1, self._shards)
        return f"shard {shard}/{self._shards}, {self._images} images, {self._rate():.1f} images/s"

    def images(self, count: int, expected: float) -> None:
        self._images += count
        if self._bar is not None:
            self._bar.total, self._bar.n = max(expected, self._images), self._images
            self._bar.set_description_str(self._counts(), refresh=True)

    def shard(self, name: str, samples: int, quarantined: int, expected: float) -> None:
        """One shard is committed."""
        self._done += 1
        if self._bar is not None:
            return
        left = max(0.0, expected - self._images) if self._done < self._shards else 0.0
        sys.stderr.write(
            f"shard {self._done}/{self._shards} {name}: {samples} cached, {quarantined} quarantined, "
            f"{self._rate():.1f} images/s, {timedelta(seconds=round(left / max(self._rate(), 1e-9)))} to go\n"
        )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
