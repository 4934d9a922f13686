"""Tar shards: strict reading, nothing executed, and local copies of remote ones."""
