"""inpaint-data pack: a folder of images to shards."""

from inpaint_data.commands.outcome import Outcome
from inpaint_data.commands.packing import OnBad, pack


def run(
    folder: str,
    out: str,
    layout: str = "auto",
    masks_from: str | None = None,
    targets_from: str | None = None,
    captions_from: str | None = None,
    shard_size: int = 1000,
    on_bad: OnBad = "quarantine",
    prefix: str | None = None,
    append: bool = False,
    dry_run: bool = False,
    columns: str | None = None,
) -> Outcome:
    """Make shards from a folder of images.

    Args:
        folder: the folder with the images, or a parquet table, or a folder of those
        out: the folder or the URL for the shards
        layout: auto, beside, folders, kohya, onetrainer, simpletuner, imagefolder, lama or coco: see docs/layouts.md
        masks_from: the folder with the masks, where it is not found by its name, or how masks beside their images are
            called, with a star for the image's name: '*_hole.png'
        targets_from: the same for targets
        captions_from: the table with the captions, or the column of one: metadata.csv, text_en
        shard_size: samples in each shard
        on_bad: quarantine leaves bad files out and lists them, raise writes nothing if there are any
        prefix: the shards' name, by default the folder's: photos-000000.tar
        append: add what is new as further shards; changed and removed files are named
        dry_run: tell what belongs to what, and write nothing
        columns: of parquet tables: image=photo,mask=mask,caption=en
    """
    packed = pack(
        folder,
        out,
        shard_size,
        layout=layout,
        masks_from=masks_from,
        targets_from=targets_from,
        captions_from=captions_from,
        on_bad=on_bad,
        prefix=prefix,
        append=append,
        dry_run=dry_run,
        columns=columns,
    )
    return Outcome(packed.table())
