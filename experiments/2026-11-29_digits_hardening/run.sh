#!/usr/bin/env bash
# SAFEMax before and after hardening, three digits and three seeds, beside Retrain. Takes an hour on two cores. The same
# command resumes after an interruption.
set -euo pipefail
cd "$(dirname "$0")/../.."
export OMP_NUM_THREADS=1
study=experiments/2026-11-29_digits_hardening/study.py
python $study retrain 8 1
printf '%s\n' 'hardened 3' 'hardened 8' 'hardened 1' 'before 3' 'before 8' 'before 1' |
  xargs -P 2 -I{} bash -c "python $study fit {} && python $study attack {}"
python $study table
