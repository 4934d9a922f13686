"""Samples that cannot be used: each is passed on as an item, logged, kept in a list, or ends the run."""

import logging
from collections.abc import Callable

from inpaint_data.errors import SampleError, UsageError
from inpaint_data.shards.reading import Fault
from inpaint_data.shown import shown

log = logging.getLogger(__name__)
OnFault = Callable[[Fault], None] | list[Fault] | None


def warn(fault: Fault) -> None:
    """Name it in the log, and go on without it."""
    log.warning("%s", shown(f"{fault.shard}, sample {fault.key!r} is left out: {fault.reason}"))


def stop(fault: Fault) -> None:
    """Raises SampleError that names the shard, the key and the reason; what is left out on purpose is passed over."""
    if not fault.on_purpose:
        raise SampleError(f"{fault.shard}, sample {fault.key!r}: {fault.reason}")


def handled(fault: Fault, on_fault: OnFault) -> bool:
    """True if somebody took the fault; else it is to be passed on."""
    if on_fault is None:
        return False
    take = on_fault.append if isinstance(on_fault, list) else on_fault
    if not callable(take):
        raise UsageError(f"on_fault: {on_fault!r} is neither a function nor a list nor None; give ip.warn or ip.stop")
    take(fault)
    return True
