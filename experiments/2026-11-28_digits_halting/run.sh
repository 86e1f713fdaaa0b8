#!/usr/bin/env bash
# SAFEMax with and without rows of the halted path: ten digits, three seeds, two samplers; attacks on two digits. Takes an
# hour on two cores. The same command resumes after an interruption.
set -euo pipefail
cd "$(dirname "$0")/../.."
export OMP_NUM_THREADS=1
study=experiments/2026-11-28_digits_halting/study.py
printf '%s\n' 'fit 3 1 5 7 9' 'fit 8 0 2 4 6' 'attack 3' 'attack 8' | xargs -P 2 -I{} bash -c "python $study {}"
python $study table
