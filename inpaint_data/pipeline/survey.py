"""A survey of image shards: what they hold and what settings would make of it, by the headers of tars and images."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from inpaint_data.errors import FilteredError, SampleError, ShardError
from inpaint_data.pictures.annotations import annotations_of
from inpaint_data.pictures.brought import check_paired_members, image_of, mask_member
from inpaint_data.pictures.captions import caption_of
from inpaint_data.pictures.geometry import Size
from inpaint_data.pictures.mask_files import check_size, in_order, mask_pattern
from inpaint_data.pictures.settings import ExampleSettings
from inpaint_data.pipeline.decorator import Stage
from inpaint_data.pipeline.samples import as_dict, as_sample
from inpaint_data.pipeline.shard_file import ShardFile
from inpaint_data.pipeline.user_stages import run_on
from inpaint_data.seeding import generator_for
from inpaint_data.shards.naming import shard_size
from inpaint_data.shards.reading import IMAGE_EXTENSIONS, Fault, Sample, ShardEnd, read_shard
from inpaint_data.shards.stores import is_remote

SAMPLES = 2000  # looked at, of larger sets; a shard that was begun is looked at to its end where it lies here
JSONS = 20  # read, to see whether they are annotations
EXAMPLES = 3  # of each kind of what cannot be used
# Kinds of what would be quarantined.
TOO_SMALL, NO_IMAGE, NO_MASK = "too small", "without an image that can be read", "without a mask that fits"
NO_PAIR = "without the pictures that belong to them"
DAMAGED, UNREADABLE = "damaged in the shard", "shards that cannot be read"


@dataclass
class Survey:
    """What was looked at, and what would come of it.

    Attributes:
        shards, bytes: of the whole.
        looked_at_bytes: of the samples that were looked at.
        samples: that were looked at, usable or not.
        members: extension -> samples that have it.
        sizes: of images, upright.
        targets: of the views that would be made.
        captions: samples that have one, by their members.
        transparent: samples whose PNG has an alpha channel.
        annotated: of the first samples that have a json, those with objects in it.
        jsons: how many these first ones are.
        unusable: kind -> samples that would be quarantined.
        filtered: filter -> samples that would be left out on purpose.
        examples: kind or filter -> the first few, each named with its reason.
    """

    shards: int = 0
    bytes: int = 0
    looked_at_bytes: int = 0
    samples: int = 0
    members: Counter[str] = field(default_factory=Counter)
    sizes: Counter[Size] = field(default_factory=Counter)
    targets: Counter[Size] = field(default_factory=Counter)
    captions: int = 0
    transparent: int = 0
    annotated: int = 0
    jsons: int = 0
    unusable: Counter[str] = field(default_factory=Counter)
    filtered: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        """True if every sample was looked at."""
        return self.looked_at_bytes >= self.bytes

    @property
    def times(self) -> float:
        """How many times what was looked at the whole is, by bytes."""
        return 1.0 if self.is_whole else self.bytes / max(1, self.looked_at_bytes)

    @property
    def pixels(self) -> float:
        """Of all views that would be made of the whole."""
        return sum(height * width * count for (height, width), count in self.targets.items()) * self.times

    @property
    def bad_fraction(self) -> float:
        """The share of samples that would be quarantined."""
        return self.unusable.total() / max(1, self.samples - self.filtered.total())

    def lines(self) -> list[tuple[str, str]]:
        """Name and text of each line of a table: how many samples would be used, and what becomes of the others."""
        used = self.samples - self.unusable.total() - self.filtered.total()
        views = f", as {self.targets.total()} views" if self.targets.total() != used else ""
        seen = "" if self.is_whole else f", the first of about {self.samples * self.times:,.0f}"
        lines = [("usable", f"{used} of {self.samples} samples{views}{seen}, by their headers")]
        for name, counter in (("unusable", self.unusable), ("filtered", self.filtered)):
            if counter:
                kinds = ", ".join(f"{count} {kind}" for kind, count in counter.most_common())
                lines.append((name, f"{counter.total()}: {kinds}"))
                lines += [(name, example) for kind in counter for example in self.examples[kind]]
        return lines

    def note(self, counter: Counter[str], kind: str, key: str | None, reason: str) -> None:
        """Count one that is left out."""
        counter[kind] += 1
        examples = self.examples.setdefault(kind, [])
        if len(examples) < EXAMPLES:
            examples.append(reason if key is None else f"{key!r}: {reason}")


def survey_shards(
    shards: Sequence[str], settings: ExampleSettings, own: Sequence[Stage] = (), samples: int = SAMPLES
) -> Survey:
    """Look at shards, nothing decoded: all of them, or whole ones evenly spread until `samples` were looked at.

    What only decoding shows, such as damage or an empty mask, is not known afterwards. With stages of the user's,
    samples are read whole and go through them.

    Raises:
        ShardError: no shard can be read.
    """
    survey = Survey(shards=len(shards))
    problems: list[ShardError] = []
    sizes: dict[str, int] = {}
    for shard in shards:
        try:
            sizes[shard] = shard_size(shard)
        except ShardError as error:
            problems.append(error)
    survey.bytes = sum(sizes.values())
    readable = list(sizes)
    for place in generator_for(0, "", 0, "survey").permutation(len(readable)):
        if survey.samples >= samples:
            break
        shard = readable[place]
        try:
            _look(survey, shard, sizes[shard], settings, own, samples)
        except ShardError as error:
            problems.append(error)
    for problem in problems:
        survey.note(survey.unusable, UNREADABLE, None, str(problem))
    if problems and not survey.samples:
        raise problems[0]
    return survey


def _look(survey: Survey, shard: str, size: int, settings: ExampleSettings, own: Sequence[Stage], samples: int) -> None:
    file, end = ShardFile(shard), 0
    for item in _items(file, own, settings.pictures.filters.caption):
        if isinstance(item, ShardEnd):
            break
        survey.samples += 1
        end = max(end, item.end or 0 if isinstance(item, Fault) else item.extent[1])
        if isinstance(item, Fault):
            counter = survey.filtered if item.on_purpose else survey.unusable
            survey.note(counter, item.reason.partition(":")[0] if item.on_purpose else DAMAGED, item.key, item.reason)
        else:
            _count(survey, item, file, settings)
        if is_remote(shard) and survey.samples >= samples:
            survey.looked_at_bytes += end
            return
    survey.looked_at_bytes += size


def _items(file: ShardFile, own: Sequence[Stage], whole: bool) -> Iterator[Sample | Fault | ShardEnd]:
    """The samples of a shard behind the user's stages; without their bytes where only headers are needed."""
    if is_remote(file.shard):
        items: Iterable[Sample | Fault | ShardEnd] = read_shard(file.shard)
    else:
        items = file.locate()
        if own or whole:
            items = (file.read(item.extent) if isinstance(item, Sample) else item for item in items)
    keys: set[str] = set()
    for item in items:
        if not own or not isinstance(item, Sample):
            yield item
            continue
        for result in run_on(as_dict(item), own, file.shard, keys):
            yield result if isinstance(result, Fault) else replace(as_sample(result), extent=item.extent)


def _count(survey: Survey, sample: Sample, file: ShardFile, settings: ExampleSettings) -> None:
    """What comes of a sample that can be read."""
    survey.members.update(sample.members.keys())
    survey.captions += settings.pictures.caption.partition(":")[0] in sample.members
    if "json" in sample.members and survey.jsons < JSONS:
        survey.jsons += 1
        survey.annotated += _has_objects(sample, file)
    kind = NO_IMAGE
    try:
        if "json" in sample.members and not any(map(_is_picture, sample.members)):
            image_of(_whole(sample, file), settings.pictures.image)  # which img2dataset may have failed to download
        size = file.size_of(sample, settings.pictures)
        survey.sizes[size] += 1
        survey.transparent += file.has_alpha(sample, settings.pictures)
        caption = caption_of(sample.members, settings.pictures.caption) if settings.pictures.filters.caption else ""
        settings.pictures.filters.check_image(size, caption)
        kind = TOO_SMALL
        views = settings.pictures.views.of(size)
        kind = NO_MASK
        _check_mask(sample, settings, file, size)
        kind = NO_PAIR
        check_paired_members(sample, settings.pictures)
        survey.targets.update(view.target for view in views)
    except FilteredError as error:
        survey.note(survey.filtered, str(error).partition(":")[0], sample.key, str(error))
    except SampleError as error:
        survey.note(survey.unusable, kind, sample.key, str(error))


def _is_picture(member: str) -> bool:
    return member.rpartition(".")[2] in IMAGE_EXTENSIONS


def _whole(sample: Sample, file: ShardFile) -> Sample:
    """A sample with its bytes. Raises SampleError if they cannot be read."""
    read = sample if any(sample.members.values()) else file.read(sample.extent)
    if isinstance(read, Fault):
        raise SampleError(read.reason)
    return read


def _has_objects(sample: Sample, file: ShardFile) -> bool:
    """Whether a sample's json has annotations."""
    try:
        return bool(annotations_of(_whole(sample, file).members["json"], sample.key).objects)
    except SampleError:
        return False


def _check_mask(sample: Sample, settings: ExampleSettings, file: ShardFile, size: Size) -> None:
    """Raises SampleError for a sample that by its members' names and sizes has no mask where it must bring one."""
    masks, members = settings.masks, sample.members
    if masks.source == "sample":
        name = mask_member(sample, masks)
        shape = file.size_of_member(sample, name, settings.pictures.decoding)
        if shape != size[::-1]:  # of a turned image it may be either
            check_size(name, shape, size)
    elif masks.draws_objects and "json" not in members and not in_order(members, mask_pattern(masks.mask)):
        raise SampleError(f"no object mask: the sample has {', '.join(sorted(members))}; add mask.0.png or json")
