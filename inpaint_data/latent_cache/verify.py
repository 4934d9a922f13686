"""Whether a cache is what its sidecars say."""

from pathlib import Path

from inpaint_data.errors import CacheError
from inpaint_data.latent_cache.format import Sidecar, committed, read_cache_file, sidecar_path, tar_path, totals
from inpaint_data.latent_cache.writer import sha256_of


def verify_cache(root: str | Path) -> dict[str, int]:
    """Check every shard against its sidecar: presence, size, SHA-256, fingerprint and counts.

    Returns:
        The totals: shards, samples, quarantined, bytes.

    Raises:
        CacheError: the first file that does not agree, and what to do.
    """
    root = Path(root)
    cache = read_cache_file(root)
    sidecars = [Sidecar.read(path) for path in committed(root)]
    stems = {Path(sidecar.shard).stem for sidecar in sidecars}
    for path in sorted(root.glob("*.tar")):
        if path.stem not in stems:
            raise CacheError(f"{path}: no sidecar commits this shard; run the cache command again to finish it")
    for sidecar in sidecars:
        _verify_shard(root, sidecar, cache["fingerprint"])
    found = totals(sidecars)
    if found != cache["totals"]:
        raise CacheError(
            f"{root}: cache.json counts {cache['totals']}, the sidecars {found}; run the cache command again"
        )
    return found


def _verify_shard(root: Path, sidecar: Sidecar, fingerprint: str) -> None:
    path = tar_path(root, Path(sidecar.shard).stem)
    mend = f"delete {sidecar_path(root, path.stem).name} and run the cache command again"
    if not path.is_file():
        raise CacheError(f"{path}: missing; {mend}")
    if sidecar.fingerprint != fingerprint:
        raise CacheError(f"{path}: made with other settings than cache.json says; {mend}")
    if path.stat().st_size != sidecar.output["size"]:
        raise CacheError(f"{path}: {path.stat().st_size} bytes, its sidecar says {sidecar.output['size']}; {mend}")
    with path.open("rb") as file:
        if sha256_of(file) != sidecar.output["sha256"]:
            raise CacheError(f"{path}: its bytes are not those that were written; {mend}")
    for name, columns in sidecar.index.items():
        if not len(sidecar.keys) == len(columns["offset"]) == len(columns["size"]):
            raise CacheError(
                f"{path}: the index of {name} does not have an entry for each of {len(sidecar.keys)} samples; {mend}"
            )
