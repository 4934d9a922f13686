"""inpaint-data verify: check a cache, and print its problems."""

from inpaint_data.commands.outcome import Outcome
from inpaint_data.job.audit import verify_cache


def run(
    root: str, deep: bool = False, against: str | list[str] | None = None, vae: str | None = None, json: bool = False
) -> Outcome:
    """Print what is wrong with a cache, and exit 1 if anything is.

    Args:
        root: the cache's folder
        deep: also encode some images again and compare; needs --against
        against: the input shards: every sample of theirs must be cached or quarantined
        vae: the autoencoder for --deep, that the cache was made with; left out, the demo's, if that made it
        json: print one JSON object instead
    """
    result = verify_cache(root, deep, against, vae)
    errors = "" if json else "".join(f"{problem}\n" for problem in result.problems)
    return Outcome(result.to_json() if json else result.table(), errors, int(not result.ok))
