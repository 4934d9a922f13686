"""inpaint-data look: what there is, before anything is encoded."""

from inpaint_data.commands.outcome import Outcome
from inpaint_data.commands.survey_report import look
from inpaint_data.encoding.settings import EncodeSettings
from inpaint_data.job.settings import JobSettings
from inpaint_data.masks.settings import MaskSettings
from inpaint_data.pictures.settings import PictureSettings


def run(
    source: str,
    pictures: PictureSettings,
    masks: MaskSettings,
    encode: EncodeSettings,
    job: JobSettings,
    samples: int = 2000,
) -> Outcome:
    """Look at headers alone: sizes, buckets, what is too small or lacks a mask or a caption, bytes and hours.

    Args:
        source: a folder of images, or image shards: a brace pattern, a glob, a folder, a URL
        samples: how many to look at, of larger sets; spread over all shards
    """
    return Outcome(look(source, pictures, masks, encode, job, samples))
