"""Shards are written by webdataset's TarWriter, with the same bytes every time."""

import tarfile
from typing import Any

from inpaint_data.durable import NewFile


def tar_writer(file: NewFile) -> Any:
    """A `webdataset.TarWriter` into `file`: no times, no owners, members of a sample by name.

    Use it as a context manager, or close it before the file: else tarfile complains when it is thrown away.
    """
    from webdataset import TarWriter  # which loads torch; a command's --help needs neither

    # keep_meta: else members whose names begin with an underscore would be dropped without a word.
    writer = TarWriter(file, encoder=False, keep_meta=True, mtime=0, mode=0o644, user="", group="")
    # TarWriter takes a format but does not pass it on. PAX headers would have another layout in each Python.
    writer.tarstream.format = tarfile.GNU_FORMAT
    return writer
