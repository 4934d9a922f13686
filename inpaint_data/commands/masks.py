"""inpaint-data masks: 64 masks to look at before a job."""

from inpaint_data.commands.mask_sheet import mask_sheet
from inpaint_data.commands.outcome import Outcome
from inpaint_data.job.settings import JobSettings
from inpaint_data.masks.settings import MaskSettings
from inpaint_data.pictures.settings import PictureSettings


def run(
    out: str,
    pictures: PictureSettings,
    masks: MaskSettings,
    job: JobSettings,
    shards: str | list[str] | None = None,
) -> Outcome:
    """Draw 64 masks over the demo's images or your own, as a job would make them.

    Args:
        out: the .png or .jpg to write
        shards: image shards of your own, whose first samples are drawn over; only as a flag, a job's YAML does not say
    """
    return Outcome(mask_sheet(out, pictures, masks, job, shards))
