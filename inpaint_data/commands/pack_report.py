"""What packing did or would do, for a person."""

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from tqdm import tqdm

from inpaint_data.errors import SampleError
from inpaint_data.folders.files import LeftOut
from inpaint_data.folders.layouts import LAYOUTS
from inpaint_data.listener import tell
from inpaint_data.pictures.captions import caption_of
from inpaint_data.shown import shown

SHOWN = 12  # samples of a dry run
NAMED = 3  # of each reason
REASONS = 20


@dataclass
class Packed:
    """What `pack` did, or with `dry_run` would do.

    Attributes:
        layout: the name of the layout that the folder has.
        shards: the paths or URLs of the new shards.
        images: samples that were packed.
        members: how many of them have a mask, a caption and so on.
        left_out: what was not packed, by name, with the reason.
        known: images that were in the shards already; of `append`, like the next two.
        changed: keys that are in the shards with other contents, which stay.
        removed: keys that are in the shards and not in the folder.
    """

    layout: str
    shards: list[str] = field(default_factory=list)
    images: int = 0
    members: Counter[str] = field(default_factory=Counter)
    left_out: list[LeftOut] = field(default_factory=list)
    known: int = 0
    changed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    dry_run: bool = False
    examples: list[tuple[str, dict[str, str]]] = field(default_factory=list)  # key, member -> file; of a dry run
    is_appended: bool = False
    uncaptioned: list[str] = field(default_factory=list)  # keys whose captions are empty, or not UTF-8
    in_lines: list[str] = field(default_factory=list)  # keys whose captions have several lines

    def count(self, key: str, members: Mapping[str, bytes]) -> None:
        """Count one sample; a caption only where there is one to be read in it."""
        self.images += 1
        try:
            caption = caption_of(members)
        except SampleError:
            caption = ""
        is_captioned = bool(caption)
        if "\n" in caption:
            self.in_lines.append(key)
        if "txt" in members and not is_captioned:
            self.uncaptioned.append(key)
        self.count_members({name: data for name, data in members.items() if name != "txt" or is_captioned})

    def count_members(self, members: Mapping[str, object]) -> None:
        kinds = {
            "caption" if name == "txt" else name.partition(".")[0] for name in members if "." in name or name == "txt"
        }
        self.members.update(kinds | ({"json"} & members.keys()))

    def table(self) -> str:
        """For a person to read."""
        rows = [("layout", f"{self.layout} ({LAYOUTS[self.layout].text})" if self.layout in LAYOUTS else self.layout)]
        for key, files in self.examples:
            rows.append((f"  {key}", ", ".join(f"{member} {file}" for member, file in files.items())))
        if len(self.examples) < self.images and self.dry_run:
            rows.append(("  …", f"{self.images - len(self.examples)} more"))
        rows.append(("images", f"{self.images}{' would be packed' if self.dry_run else ''}"))
        rows += [(f"with {name}", str(count)) for name, count in sorted(self.members.items())]
        if self.is_appended:
            rows += [("there already", str(self.known))]
        rows += [("changed", f"{_some(self.changed)}; the shards keep what they have")] if self.changed else []
        rows += [("removed", f"{_some(self.removed)}; the shards keep them")] if self.removed else []
        by_reason: dict[str, list[str]] = {}
        for left in self.left_out:
            by_reason.setdefault(left.reason, []).append(left.name)
        reasons = sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[0]))
        rows += [("left out", f"{_some(names)}: {reason}") for reason, names in reasons[:REASONS]]
        if len(reasons) > REASONS:
            rows.append(("left out", f"{len(reasons) - REASONS} reasons more; {len(self.left_out)} files in all"))
        rows += [("passed over", f"{_some(self.passed_over)}: hidden, or the system's")] if self.passed_over else []
        rows += [("note", note) for note in self.notes]
        if self.uncaptioned:
            problem = "captions that are empty, labels of YOLO's or not UTF-8"
            rows.append(("note", f"{problem}: {_some(self.uncaptioned)}; correct them"))
        if self.in_lines:
            lines = "captions of several lines, kept as one (OneTrainer and SimpleTuner choose a line, kohya the first)"
            rows.append(("note", f"{lines}: {_some(self.in_lines)}"))
        rows += [("shards", _some(self.shards))] if self.shards else []
        return "\n".join(shown(f"  {name:<13} {value}") for name, value in rows)

    def left_out_text(self) -> str:
        """A line for each file that was left out: its name, a tab, the reason."""
        return "".join(f"{shown(left.name)}\t{shown(left.reason)}\n" for left in self.left_out)


def _some(names: list[str]) -> str:
    listed = ", ".join(names[:NAMED])
    return f"{len(names)} ({listed}{', …' if len(names) > NAMED else ''})"


class PackProgress:
    """How many images are packed, on stderr: a bar on a terminal, else a line for each shard."""

    def __init__(self, images: int) -> None:
        self._images, self._done, self._bar = images, 0, None
        if images and sys.stderr is not None and sys.stderr.isatty():
            self._bar = tqdm(total=images, unit=" images", file=sys.stderr, leave=False)

    def image(self) -> None:
        self._done += 1
        if self._bar is not None:
            self._bar.update()

    def shard(self, name: str) -> None:
        if self._bar is None:
            tell("stderr", shown(f"{self._done}/{self._images} images, {name}") + "\n")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
