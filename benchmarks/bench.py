"""The table of docs/performance.md: what the work costs, as ratios measured side by side in one run.

    python benchmarks/bench.py [--full] [--only offsets,reads]

Short by default; `--full` takes larger data and more rounds. Ratios of CPU time on one pinned thread, unless a row says
wall time. A row is red where it neither reaches what it is to reach nor is what docs/performance.md explains.
"""

import argparse
import importlib
import sys
import time

from table import HEAD, Row, chosen_parts

# Each has `rows(full)`, which yields `Row`s, and says on stderr what it left out and how to install it.
PARTS = ("offsets", "reads", "starts", "pictures", "jobs", "encoding", "imports", "growth")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="larger data and more rounds")
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {', '.join(PARTS)}")
    options = parser.parse_args()
    chosen = chosen_parts(parser, options.only, PARTS)
    started, rows = time.monotonic(), list[Row]()
    print(HEAD, flush=True)
    for part in chosen:
        for row in importlib.import_module(part).rows(options.full):
            print(row.line(), flush=True)
            rows.append(row)
    reached, known = sum(row.is_reached for row in rows), sum(not row.is_reached and row.is_as_known for row in rows)
    worse = len(rows) - reached - known
    print(f"{reached} of {len(rows)} reached, {known} bounded, {worse} worse; {time.monotonic() - started:.0f} s")
    sys.exit(1 if worse else 0)


if __name__ == "__main__":
    main()
