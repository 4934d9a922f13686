"""inpaint-data index: sidecars for a cache of plain tars."""

from inpaint_data.commands.outcome import Outcome
from inpaint_data.latent_cache.indexing import index_cache


def run(root: str, vae: str | None = None) -> Outcome:
    """Write the sidecars that are missing from a folder of tars.

    Args:
        root: the folder with the tars
        vae: the autoencoder that made the latents; needed where there is no cache.json
    """
    indexed = index_cache(root, vae)
    return Outcome(f"indexed {', '.join(indexed)}" if indexed else "every shard has its sidecar")
