"""Whether the members of one cached sample hold what the settings of their cache say."""

from collections.abc import Iterator, Mapping
from typing import Any

from inpaint_data.errors import SampleError
from inpaint_data.latent_cache.members import MEMBERS, RECORD, Expected, Seen, coverage_of, masks_member


class SampleCheck:
    """Checks one sample after another; the first sets how many channels all have, which no setting says."""

    def __init__(self, expected: Expected) -> None:
        self.expected, self._seen = expected, Seen()

    @property
    def size(self) -> tuple[int, int]:
        """Of the picture of the sample that was checked last."""
        return self._seen.size

    def problems(self, members: Mapping[str, bytes]) -> Iterator[str]:
        """What is wrong with a sample, given the bytes of its own members."""
        expected = [name for name in MEMBERS if name in self.expected.members]
        yield from (f"{name}: is not there" for name in expected if name not in members)
        extra = (MEMBERS.keys() & members.keys()) - set(expected)
        yield from (f"{name}: is there, though the settings say that there is none" for name in sorted(extra))
        self._seen.size = min(self.expected.sizes)
        good: dict[str, Any] = {}
        for name in expected:
            if name in members:
                try:
                    good[name] = MEMBERS[name].check(members[name], self.expected, self._seen)
                except SampleError as error:
                    yield f"{name}: {error}"
        masks = masks_member(self.expected.members)
        if masks in good and RECORD in good:
            for number, (mask, variant) in enumerate(zip(good[masks], good[RECORD]["variants"], strict=True)):
                has = coverage_of(mask)
                if not abs(variant["coverage"] - has) <= 1e-6:
                    yield f"{RECORD}: variant {number} says coverage {variant['coverage']}, its mask has {has:.6f}"
