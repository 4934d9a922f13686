"""A dry run: what a job would do, what it would leave out, and how long it would take."""

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

from inpaint_data.errors import CacheError
from inpaint_data.job.encoding import encode
from inpaint_data.job.plan import Plan, Stamps, check_exact, plan_shards
from inpaint_data.job.progress import Summary
from inpaint_data.job.storage_costs import precision_cost, storage_costs
from inpaint_data.job.work import Work
from inpaint_data.latent_cache.folder import CacheFolder
from inpaint_data.latent_cache.members import members_of
from inpaint_data.latent_cache.writer import settings_for
from inpaint_data.pipeline.survey import survey_shards
from inpaint_data.shards.reading import Fault, ShardAnew, ShardEnd
from inpaint_data.shards.tar import stored_size

PROBE_BATCHES = 3  # the first one warms up


def dry_run(work: Work, inputs: Sequence[str], folder: CacheFolder, settings: Mapping[str, Any]) -> Summary:
    """The plan of a run: from headers what would be cached, from a few batches how long it takes and how large it is.

    Raises:
        UsageError: as the run itself does.
        CacheError: more samples than allowed would be quarantined; its `summary` has the plan.
    """
    settings_for(folder, settings)
    plan = plan_shards(inputs, folder, Stamps(folder, None), work.made_with)
    check_exact(plan, work.job.exact)
    plan.bytes_expected, plan.seconds_expected = 0, 0.0
    summary = Summary(plan, dry_run=True)
    if not plan.todo:
        return summary
    plan.survey = survey_shards(plan.todo, work.examples, work.own_stages)
    bytes_of_pixel, seconds_of_pixel = _probe(work, plan) if plan.survey.targets else (0.0, 0.0)
    if work.encoder.autoencoder.compiled:
        plan.storage.append(("compiling", "half a minute or so besides, for each size of views"))
    pixels = plan.survey.pixels
    plan.bytes_expected, plan.seconds_expected = round(pixels * bytes_of_pixel), pixels * seconds_of_pixel
    _check_budget(summary, plan, work.job.max_bad_fraction, folder.name)
    return summary


def _probe(work: Work, plan: Plan) -> tuple[float, float]:
    """Bytes in the cache, and seconds, that a pixel of a view takes, by the first batches."""
    measured: list[tuple[int, int, float]] = []  # pixels, bytes and seconds of each batch
    last = time.perf_counter()
    with closing(work.events(plan.todo)) as events:
        for event in events:
            if isinstance(event, ShardEnd | ShardAnew | Fault):
                continue
            pixels = size = 0
            for batches, _ in encode(work, event):
                plan.storage = plan.storage or [
                    *storage_costs(work, batches),
                    *precision_cost(work, event, batches),
                ]
                rows = range(len(batches[0]["__key__"]))
                pixels += len(rows) * batches[0]["mask"].shape[-2] * batches[0]["mask"].shape[-1]
                size += sum(stored_size(members_of(batches, row, work.storing).values()) for row in rows)
            now = time.perf_counter()
            measured.append((pixels, size, now - last))
            last = now
            if len(measured) == PROBE_BATCHES:
                break
    measured = measured[1:] or measured
    pixels = max(1, sum(pixels for pixels, _, _ in measured))
    return sum(size for _, size, _ in measured) / pixels, sum(seconds for _, _, seconds in measured) / pixels


def _check_budget(summary: Summary, plan: Plan, max_bad_fraction: float, name: str) -> None:
    survey = plan.survey
    assert survey is not None
    if survey.bad_fraction <= max_bad_fraction:
        return
    kind, count = survey.unusable.most_common(1)[0]
    error = CacheError(
        f"{name}: {survey.unusable.total()} of the {survey.samples} samples that were looked at would be quarantined, "
        f"more than max_bad_fraction {max_bad_fraction}; {count} are {kind}: {survey.examples[kind][0]}"
    )
    error.summary = summary
    raise error
