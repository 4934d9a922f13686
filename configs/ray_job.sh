#!/bin/bash
# The job on a Ray cluster that is up already, whose image has inpaint_data and ray (configs/Dockerfile with
# EXTRAS=s3,ray):
#
#     RAY_API_SERVER_ADDRESS=http://head:8265 configs/ray_job.sh job.yaml
#
# job.yaml is what `inpaint-data init` writes; its shards and its `out` are where every node sees them. It is sent along
# with the working directory, which must be small. Stopped, the same command resumes: finished shards are kept.
# Checked with `bash -n` and shellcheck; not run, for want of a cluster.
set -euo pipefail
config=${1:?usage: configs/ray_job.sh job.yaml [more flags of inpaint-data cache]}
shift

# --ray_address auto is the cluster that the command runs on, rather than a new one of this machine.
ray job submit --working-dir "$(dirname "$config")" \
    -- inpaint-data cache --config "$(basename "$config")" --engine ray --ray_address auto "$@"
