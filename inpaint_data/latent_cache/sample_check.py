"""Check of one cached sample: its members against the settings of the cache."""

from collections.abc import Iterator, Mapping
from typing import Any

from inpaint_data.errors import SampleError
from inpaint_data.latent_cache.codec import Expected, Seen
from inpaint_data.latent_cache.members import MEMBERS, masks_member
from inpaint_data.latent_cache.record import RECORD, coverage_of


class SampleCheck:
    """Checks samples in turn. The first one sets the number of channels for all, since no setting says it."""

    def __init__(self, expected: Expected) -> None:
        self.expected, self._seen = expected, Seen()

    @property
    def size(self) -> tuple[int, int]:
        """The size of the image of the last checked sample."""
        return self._seen.size

    def problems(self, members: Mapping[str, bytes]) -> Iterator[str]:
        """The problems of a sample, given the bytes of the members that are not carried."""
        expected = [name for name in MEMBERS if name in self.expected.members]
        yield from (f"{name}: is not there" for name in expected if name not in members)
        extra = (MEMBERS.keys() & members.keys()) - set(expected)
        yield from (f"{name}: is there, though the settings say that there is none" for name in sorted(extra))
        self._seen.size = min(self.expected.sizes)
        contents: dict[str, Any] = {}
        for name in expected:
            if name in members:
                try:
                    contents[name] = MEMBERS[name].check(members[name], self.expected, self._seen)
                except SampleError as error:
                    yield f"{name}: {error}"
        masks = masks_member(self.expected.members)
        if masks in contents and RECORD in contents:
            variants = contents[RECORD]["variants"]
            for number, (mask, variant) in enumerate(zip(contents[masks], variants, strict=True)):
                coverage = coverage_of(mask)
                if not abs(variant["coverage"] - coverage) <= 1e-6:
                    yield f"{RECORD}: variant {number} says coverage {variant['coverage']}, its mask has {coverage:.6f}"
