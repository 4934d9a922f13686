"""The offline job: image shards in, a cache out."""
