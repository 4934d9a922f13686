"""inpaint-data stats: masks in numbers."""

from inpaint_data.commands.mask_statistics import mask_statistics
from inpaint_data.commands.outcome import Outcome
from inpaint_data.commands.statistics_report import check_png, draw_statistics, statistics_table
from inpaint_data.job.settings import JobSettings
from inpaint_data.masks.settings import MaskSettings
from inpaint_data.pictures.settings import PictureSettings
from inpaint_data.shown import shown


def run(
    source: str,
    pictures: PictureSettings,
    masks: MaskSettings,
    job: JobSettings,
    samples: int = 1000,
    factor: int | None = None,
    json: bool = False,
    png: str | None = None,
) -> Outcome:
    """Count what masks are like, as a table or JSON, and as a picture if asked.

    Args:
        source: a cache's folder or URL; or image shards: a brace pattern, a glob, a folder, a URL
        samples: how many to look at, evenly spread over all
        factor: pixels per latent along each side, for shards; 8 if left out
        json: print one JSON object
        png: also draw the histograms, as this PNG
    """
    if png is not None:
        check_png(png)
    statistics = mask_statistics(source, samples, factor, pictures, masks, job)
    if png is not None:
        draw_statistics(statistics, png)
    warnings = "".join(f"{shown(warning)}\n" for warning in statistics.warnings())
    return Outcome(statistics.to_json() if json else statistics_table(statistics), warnings)
