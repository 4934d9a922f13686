"""How the statistics of masks look to a person: a table, or a picture of bars."""

from collections import Counter
from collections.abc import Sequence

from PIL import Image, ImageDraw

from inpaint_data.commands.drawing import INK, LINE, MARGIN, PAPER, check_suffix, save, text_width, write
from inpaint_data.commands.mask_statistics import (
    ASPECTS,
    HOLES,
    OFFSETS,
    PIECES,
    RESOLUTIONS,
    SIDES,
    VANISHING,
    Bands,
    MaskStatistics,
    aspects,
    banded,
    short_sides,
    spread,
)

BAD_SHOWN = 10
BAR, WIDTH = 14, 480  # pixels: height of a bar, width of a panel
COLOURS = (
    (31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189), (140, 86, 75), (227, 119, 194),
    (127, 127, 127), (188, 189, 34), (23, 190, 207),
)  # fmt: skip


def statistics_table(found: MaskStatistics) -> str:
    """The figures as lines of text; shares are in percent of the masks."""
    left_out = f"{len(found.bad)} bad" + (f", {found.filtered} filtered" if found.filtered else "")
    lines = [
        f"  {'samples':<12} {found.samples} looked at, {found.of}; {found.variants} masks each; {left_out}",
        f"  {'masks':<12} {found.masks}, {found.empty} of them empty",
    ]
    lines += [f"  {'bad':<12} {shard}, {key!r}: {reason}" for shard, key, reason in found.bad[:BAD_SHOWN]]
    if len(found.bad) > BAD_SHOWN:
        lines.append(f"  ... and {len(found.bad) - BAD_SHOWN} more; --json lists all")
    lines += ["", *_hole_table(found), ""]
    pixels, pieces = spread(found.offsets), spread(found.pieces)
    touching = ", ".join(f"{side} {_percent(found.borders[side], found.masks)}" for side in ("any", *SIDES))
    gone = ", ".join(f"{how} {found.share_that_vanishes(how):.1%}" for how in VANISHING)
    lines += [
        f"  {'offset':<12} {pixels['min']} to {pixels['max']} px, mean {pixels['mean']:.1f}: "
        + _shares(banded(found.offsets, OFFSETS), OFFSETS),
        f"  {'border':<12} touched at {touching}",
        f"  {'components':<12} {pieces['min']} to {pieces['max']}, mean {pieces['mean']:.1f}: "
        + _shares(banded(found.pieces, PIECES), PIECES),
        f"  {'vanishing':<12} {gone} of those not empty, at latent resolution, {found.factor}x smaller",
    ]
    for name, sizes in (("original", found.originals), ("target", found.targets)):
        sides = short_sides(sizes)
        short = spread(sides)
        common = ", ".join(f"{w}x{h} ({n})" for (h, w), n in sizes.most_common(3))
        more = f" and {len(sizes) - 3} more sizes" if len(sizes) > 3 else ""
        lines += [
            f"  {name:<12} {common}{more}",
            f"  {'':<12} short side {short['min']} to {short['max']} px, mean {short['mean']:.0f}: "
            + _shares(banded(sides, RESOLUTIONS), RESOLUTIONS),
            f"  {'':<12} width to height {_shares(aspects(sizes), ASPECTS)}",
        ]
    return "\n".join(line.rstrip() for line in lines)


def _hole_table(found: MaskStatistics) -> list[str]:
    """A row for all masks, each generator, and each label where a generator has several."""
    rows: list[tuple[str, Counter[str], float]] = [("all", *found.of_all)]
    for name, group in found.by_generator.items():
        rows.append((name, *group))
        origins = found.origins_of(name)
        if [each.edits for each in origins] != [()]:
            labels = ["".join(f"+{edit}" for edit in each.edits) or name for each in origins]
            rows += [(f"  {label}", *found.of_origin(each)) for label, each in zip(labels, origins, strict=True)]
    width = max(12, *(len(name) for name, _, _ in rows))
    head = f"  {'hole ratio':<{width}} {'masks':>7} {'mean':>6} " + "".join(f"{name:>8}" for name in HOLES.names)
    return [head] + [
        f"  {name:<{width}} {bands.total():>7} {mean:>6.3f} "
        + "".join(f"{_percent(bands[band], bands.total()) if bands[band] else '':>8}" for band in HOLES.names)
        for name, bands, mean in rows
    ]


def _percent(count: int, total: int) -> str:
    return f"{100 * count / max(1, total):.1f}%"


def _shares(counts: Counter[str], bands: Bands) -> str:
    total = counts.total()
    return ", ".join(f"{name} ({_percent(counts[name], total)})" for name in bands.names if counts[name])


def check_png(out: str) -> None:
    """Raises UsageError unless `out` ends in .png."""
    check_suffix("png", out, (".png",))


def draw_statistics(found: MaskStatistics, out: str) -> str:
    """Draw the histograms as bars: of the hole ratio with a colour for each generator.

    Raises:
        UsageError: `out` does not end in .png, or cannot be written.
    """
    check_suffix("png", out, (".png",))
    holes = {name: bands for name, (bands, _) in found.by_generator.items()}
    panels = [
        _panel("hole ratio", HOLES, holes),
        _panel("offset, pixels", OFFSETS, {"": banded(found.offsets, OFFSETS)}),
        _panel("connected components", PIECES, {"": banded(found.pieces, PIECES)}),
        _panel("touches the border", Bands((*SIDES, "any"), ()), {"": found.borders}, found.masks),
        _panel("short side, original", RESOLUTIONS, {"": banded(short_sides(found.originals), RESOLUTIONS)}),
        _panel("short side, target", RESOLUTIONS, {"": banded(short_sides(found.targets), RESOLUTIONS)}),
        _panel("width to height, original", ASPECTS, {"": aspects(found.originals)}),
        _panel("width to height, target", ASPECTS, {"": aspects(found.targets)}),
    ]
    rows = [panels[first : first + 2] for first in range(0, len(panels), 2)]
    heights = [max(panel.height for panel in row) for row in rows]
    picture = Image.new("RGB", (2 * WIDTH, sum(heights) + LINE + MARGIN), PAPER)
    gone = ", ".join(f"{how} {found.share_that_vanishes(how):.1%}" for how in VANISHING)
    title = (
        f"{found.masks} masks of {found.samples} samples, {found.empty} empty; of the others vanish in latents: {gone}"
    )
    write(picture, (MARGIN, MARGIN), title)
    top = LINE + MARGIN
    for row, height in zip(rows, heights, strict=True):
        for column, panel in enumerate(row):
            picture.paste(panel, (column * WIDTH, top))
        top += height
    return save(picture, "png", out)


def _panel(title: str, bands: Bands, groups: dict[str, Counter[str]], total: int = 0) -> Image.Image:
    """A bar for each band, in it the groups side by side; lengths are shares of `total`, or of all that was counted."""
    total = total or sum(counts.total() for counts in groups.values())
    legend = [name for name in groups if name]
    rows = _legend_rows(legend)
    height = LINE * (1 + len(rows)) + len(bands.names) * (BAR + 4) + 2 * MARGIN
    panel = Image.new("RGB", (WIDTH, height), PAPER)
    pen = ImageDraw.Draw(panel)
    write(panel, (MARGIN, 2), title)
    for number, row in enumerate(rows, 1):
        for left, name in row:
            pen.rectangle((left, number * LINE + 2, left + 10, number * LINE + 12), COLOURS[legend.index(name) % 10])
            write(panel, (left + 14, number * LINE), name, 12)
    left, room = 90, WIDTH - 90 - 60
    longest = max((sum(counts[name] for counts in groups.values()) for name in bands.names), default=0)
    for number, name in enumerate(bands.names):
        top, x = LINE * (1 + len(rows)) + number * (BAR + 4), float(left)
        write(panel, (left - 6 - text_width(name, 12), top), name, 12)
        for colour, counts in enumerate(groups.values()):
            wide = room * counts[name] / max(1, longest)
            if wide:
                pen.rectangle((x, top, x + wide, top + BAR), COLOURS[colour % len(COLOURS)])
            x += wide
        in_all = sum(counts[name] for counts in groups.values())
        write(panel, (x + 4, top), _percent(in_all, total), 12)
    pen.line((left, LINE * (1 + len(rows)), left, height - 2 * MARGIN), INK)
    return panel


def _legend_rows(names: Sequence[str]) -> list[list[tuple[float, str]]]:
    """Each name with where it begins, broken into rows as wide as a panel."""
    rows: list[list[tuple[float, str]]] = []
    left = float(WIDTH)
    for name in names:
        wide = text_width(name, 12) + 26
        if left + wide > WIDTH:
            rows.append([])
            left = MARGIN
        rows[-1].append((left, name))
        left += wide
    return rows
