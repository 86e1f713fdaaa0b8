#!/usr/bin/env bash
# All methods on three digits and three seeds, at the papers' settings and tuned. Takes about an hour on two cores, two
# fits at a time. The same command resumes after an interruption. The full reports stay in runs/digits_methods.
set -euo pipefail
cd "$(dirname "$0")/../.."
export OMP_NUM_THREADS=1
here=experiments/2026-11-23_digits_methods
for part in tuning papers tuned retrain; do
  python $here/study.py $part | xargs -P 2 -d '\n' -I{} bash -c '{}'
done
for block in papers tuned; do
  report=runs/digits_methods/report_$block
  python -m safemax_pl.report runs/digits_methods/$block runs/digits_methods/retrain out=$report
  cp $report/results.csv $here/results_$block.csv
done
cp runs/digits_methods/report_tuned/figures/w0-samples.png $here/figure.png
python $here/table.py
