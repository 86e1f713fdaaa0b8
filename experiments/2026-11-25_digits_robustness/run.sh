#!/usr/bin/env bash
# All methods on digit 3 and three seeds under all attacks. Takes under two hours on two cores, half of it for the fits.
# The same command resumes after an interruption. The full report stays in runs/digits_robustness/report.
set -euo pipefail
cd "$(dirname "$0")/../.."
export OMP_NUM_THREADS=1
here=experiments/2026-11-25_digits_robustness
python $here/study.py fit | xargs -P 2 -d '\n' -I{} bash -c '{}'
python $here/study.py attack
python -m safemax_pl.report runs/digits_robustness out=runs/digits_robustness/report
cp runs/digits_robustness/report/{results,robustness}.csv $here/
python $here/study.py figure
