#!/usr/bin/env bash
# The cheapest fit that forgets a digit without harm: SAFEMax and four baselines. Takes half an hour on two cores. The same
# command resumes after an interruption.
set -euo pipefail
cd "$(dirname "$0")/../.."
export OMP_NUM_THREADS=1
study=experiments/2026-11-28_digits_fast/study.py
for part in search verify; do
  printf '%s\n' 'safemax noise_image salun' 'barrier sfr_on' | xargs -P 2 -I{} bash -c "python $study $part {}"
done
python $study preset
python $study transfer
python $study attack
python $study table
