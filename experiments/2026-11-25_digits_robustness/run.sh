#!/usr/bin/env bash
# All methods on digit 3 and three seeds under all attacks: under two hours on two cores, one half of it fits. Run again
# after an interruption, it goes on with what is missing.
set -euo pipefail
cd "$(dirname "$0")/../.."
export OMP_NUM_THREADS=1
here=experiments/2026-11-25_digits_robustness
python $here/study.py fit | xargs -P 2 -d '\n' -I{} bash -c '{}'
python $here/study.py attack
python -m safemax_pl.report runs/digits_robustness --out $here/report
python $here/study.py figure
