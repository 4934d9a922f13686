"""inpaint-data repair: remove damaged shards, so that the cache command makes them again."""

from inpaint_data.commands.outcome import Outcome
from inpaint_data.latent_cache.repair import repair_cache


def run(root: str) -> Outcome:
    """Remove damaged shards from a cache.

    Args:
        root: the cache's folder
    """
    removed = repair_cache(root)
    if not removed:
        return Outcome("no shard had to be removed")
    return Outcome(f"removed {', '.join(removed)}; run the cache command again, it makes just these shards anew")
