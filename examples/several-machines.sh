#!/usr/bin/env bash
# A run on several machines that share a file system. On each of them, in the same folder:
#   MACHINES=2 MEET=first-machine:29500 examples/several-machines.sh recipe.yaml -o runs/mine
# MEET is a free port of one of the machines. RUN distinguishes runs that meet at the same place.
set -euo pipefail
exec torchrun --nnodes "${MACHINES:?says how many machines}" --nproc-per-node "${PROCESSES:-auto}" \
    --rdzv-backend c10d --rdzv-endpoint "${MEET:?says where they meet, as first-machine:29500}" --rdzv-id "${RUN:-inheritune}" \
    -m inheritune run "$@"
