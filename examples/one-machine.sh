#!/usr/bin/env bash
# A run on all GPUs of this machine, or on its CPUs if it has none, or with so many processes:
#   examples/one-machine.sh recipe.yaml -o runs/mine
#   PROCESSES=2 examples/one-machine.sh recipe.yaml
# Started again, it resumes where it stopped, also with another number of processes.
set -euo pipefail
exec torchrun --standalone --nproc-per-node "${PROCESSES:-auto}" -m inheritune run "$@"
