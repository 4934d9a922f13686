"""inpaint-data status: how far a cache is."""

from inpaint_data.commands.outcome import Outcome
from inpaint_data.job.status import status_of


def run(root: str, json: bool = False) -> Outcome:
    """Print how far a cache is, from another shell than the job's: what is done, rate, time to go, faults, who writes.

    Args:
        root: the cache's folder
        json: print one JSON object instead
    """
    status = status_of(root)
    return Outcome(status.to_json() if json else status.table())
