"""Report of mask statistics: a table, or a picture of bars."""

from collections import Counter
from collections.abc import Sequence

from PIL import Image, ImageDraw

from inpaint_data.commands.bands import (
    ASPECTS,
    HOLES,
    OFFSETS,
    PIECES,
    RESOLUTIONS,
    Bands,
    aspects,
    by_band,
    short_sides,
    spread,
)
from inpaint_data.commands.drawing import INK, LINE, MARGIN, PAPER, check_suffix, draw_text, save, text_width
from inpaint_data.commands.mask_statistics import SIDES, VANISHING, MaskStatistics
from inpaint_data.shown import shown

BAD_SHOWN = 10
BAR, WIDTH = 14, 480  # pixels: height of a bar, width of a panel
COLOURS = (
    (31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189), (140, 86, 75), (227, 119, 194),
    (127, 127, 127), (188, 189, 34), (23, 190, 207),
)  # fmt: skip


def _first(statistics: MaskStatistics, kind: str) -> str:
    names = statistics.named[kind]
    return f" (the first: {', '.join(names)})" if names else ""


def statistics_table(statistics: MaskStatistics) -> str:
    """The statistics as lines of text; shares are in percent of the masks."""
    left_out = f"{len(statistics.bad)} bad" + (f", {statistics.filtered} filtered" if statistics.filtered else "")
    samples = f"{statistics.samples} looked at, {statistics.of}; {statistics.variants} masks each; {left_out}"
    lines = [
        f"  {'samples':<12} {samples}",
        f"  {'masks':<12} {statistics.masks}, {statistics.empty} of them empty{_first(statistics, 'empty')}, "
        f"{statistics.full} full{_first(statistics, 'full')}",
    ]
    lines += [f"  {'bad':<12} {shard}, {key!r}: {reason}" for shard, key, reason in statistics.bad[:BAD_SHOWN]]
    if len(statistics.bad) > BAD_SHOWN:
        lines.append(f"  ... and {len(statistics.bad) - BAD_SHOWN} more; --json lists all")
    lines += ["", *_hole_table(statistics), ""]
    pixels, pieces = spread(statistics.offsets), spread(statistics.pieces)
    touching = ", ".join(f"{side} {_percent(statistics.borders[side], statistics.masks)}" for side in ("any", *SIDES))
    vanishing = ", ".join(f"{how} {statistics.share_that_vanishes(how):.1%}" for how in VANISHING)
    lines += [
        f"  {'offset':<12} {pixels['min']} to {pixels['max']} px, mean {pixels['mean']:.1f}: "
        + _shares(by_band(statistics.offsets, OFFSETS), OFFSETS),
        f"  {'border':<12} touched at {touching}",
        f"  {'components':<12} {pieces['min']} to {pieces['max']}, mean {pieces['mean']:.1f}: "
        + _shares(by_band(statistics.pieces, PIECES), PIECES),
        f"  {'vanishing':<12} {vanishing} of those not empty, at latent resolution, {statistics.factor}x smaller",
    ]
    for name, sizes in (("original", statistics.originals), ("target", statistics.targets)):
        sides = short_sides(sizes)
        short = spread(sides)
        common = ", ".join(f"{w}x{h} ({n})" for (h, w), n in sizes.most_common(3))
        more = f" and {len(sizes) - 3} more sizes" if len(sizes) > 3 else ""
        lines += [
            f"  {name:<12} {common}{more}",
            f"  {'':<12} short side {short['min']} to {short['max']} px, mean {short['mean']:.0f}: "
            + _shares(by_band(sides, RESOLUTIONS), RESOLUTIONS),
            f"  {'':<12} width to height {_shares(aspects(sizes), ASPECTS)}",
        ]
    if statistics.stored:
        total, count = statistics.stored.total(), max(1, statistics.in_cache)
        members = ", ".join(f"{name} {size / count:,.0f}" for name, size in statistics.stored.most_common())
        lines.append(f"  {'bytes':<12} {total / count:,.0f} a sample, {total / 1e6:,.1f} MB of all: {members}")
    return "\n".join(shown(line).rstrip() for line in lines)


def _hole_table(statistics: MaskStatistics) -> list[str]:
    """A row for all masks, each generator, and each label where a generator has several."""
    rows: list[tuple[str, Counter[str], float]] = [("all", *statistics.of_all)]
    for name, group in statistics.by_generator.items():
        rows.append((name, *group))
        origins = statistics.origins_of(name)
        if [origin.edits for origin in origins] != [()]:
            for origin in origins:
                label = "".join(f"+{edit}" for edit in origin.edits) or name
                rows.append((f"  {label}", *statistics.of_origin(origin)))
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


def draw_statistics(statistics: MaskStatistics, out: str) -> str:
    """Draw the histograms as bars: of the hole ratio with a colour for each generator.

    Raises:
        UsageError: `out` does not end in .png, or cannot be written.
    """
    check_suffix("png", out, (".png",))
    holes = {name: bands for name, (bands, _) in statistics.by_generator.items()}
    panels = [
        _panel("hole ratio", HOLES, holes),
        _panel("offset, pixels", OFFSETS, {"": by_band(statistics.offsets, OFFSETS)}),
        _panel("connected components", PIECES, {"": by_band(statistics.pieces, PIECES)}),
        _panel("touches the border", Bands((*SIDES, "any"), ()), {"": statistics.borders}, statistics.masks),
        _panel("short side, original", RESOLUTIONS, {"": by_band(short_sides(statistics.originals), RESOLUTIONS)}),
        _panel("short side, target", RESOLUTIONS, {"": by_band(short_sides(statistics.targets), RESOLUTIONS)}),
        _panel("width to height, original", ASPECTS, {"": aspects(statistics.originals)}),
        _panel("width to height, target", ASPECTS, {"": aspects(statistics.targets)}),
    ]
    rows = [panels[first : first + 2] for first in range(0, len(panels), 2)]
    heights = [max(panel.height for panel in row) for row in rows]
    picture = Image.new("RGB", (2 * WIDTH, sum(heights) + LINE + MARGIN), PAPER)
    vanishing = ", ".join(f"{how} {statistics.share_that_vanishes(how):.1%}" for how in VANISHING)
    title = f"{statistics.masks} masks of {statistics.samples} samples, {statistics.empty} empty"
    title += f"; of the others vanish in latents: {vanishing}"
    draw_text(picture, (MARGIN, MARGIN), title)
    top = LINE + MARGIN
    for row, height in zip(rows, heights, strict=True):
        for column, panel in enumerate(row):
            picture.paste(panel, (column * WIDTH, top))
        top += height
    return save(picture, "png", out)


def _panel(title: str, bands: Bands, groups: dict[str, Counter[str]], total: int = 0) -> Image.Image:
    """A bar for each band, its groups side by side; lengths are shares of `total`, or of the sum of all counts."""
    total = total or sum(counts.total() for counts in groups.values())
    legend = [name for name in groups if name]
    rows = _legend_rows(legend)
    height = LINE * (1 + len(rows)) + len(bands.names) * (BAR + 4) + 2 * MARGIN
    panel = Image.new("RGB", (WIDTH, height), PAPER)
    pen = ImageDraw.Draw(panel)
    draw_text(panel, (MARGIN, 2), title)
    for number, row in enumerate(rows, 1):
        for left, name in row:
            pen.rectangle((left, number * LINE + 2, left + 10, number * LINE + 12), COLOURS[legend.index(name) % 10])
            draw_text(panel, (left + 14, number * LINE), name, 12)
    left, room = 90, WIDTH - 90 - 60
    longest = max((sum(counts[name] for counts in groups.values()) for name in bands.names), default=0)
    for number, name in enumerate(bands.names):
        top, x = LINE * (1 + len(rows)) + number * (BAR + 4), float(left)
        draw_text(panel, (left - 6 - text_width(name, 12), top), name, 12)
        for colour, counts in enumerate(groups.values()):
            width = room * counts[name] / max(1, longest)
            if width:
                pen.rectangle((x, top, x + width, top + BAR), COLOURS[colour % len(COLOURS)])
            x += width
        count = sum(counts[name] for counts in groups.values())
        draw_text(panel, (x + 4, top), _percent(count, total), 12)
    pen.line((left, LINE * (1 + len(rows)), left, height - 2 * MARGIN), INK)
    return panel


def _legend_rows(names: Sequence[str]) -> list[list[tuple[float, str]]]:
    """Each name with its left edge, broken into rows as wide as a panel."""
    rows: list[list[tuple[float, str]]] = []
    left = float(WIDTH)
    for name in names:
        width = text_width(name, 12) + 26
        if left + width > WIDTH:
            rows.append([])
            left = MARGIN
        rows[-1].append((left, name))
        left += width
    return rows
