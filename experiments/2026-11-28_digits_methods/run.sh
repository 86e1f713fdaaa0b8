#!/usr/bin/env bash
# All methods on three digits: tuned with equal budgets on three seeds, and at the papers' values. Takes about four hours on
# two cores, two fits at a time. The same command resumes after an interruption. Reports stay in runs/digits_methods.
set -euo pipefail
cd "$(dirname "$0")/../.."
export OMP_NUM_THREADS=1
here=experiments/2026-11-28_digits_methods
python $here/study.py tuning | xargs -P 2 -d '\n' -I{} bash -c '{}'
python $here/study.py settings
for part in tuned papers retrain no_path; do
  python $here/study.py $part | xargs -P 2 -d '\n' -I{} bash -c '{}'
done
for block in papers tuned; do
  report=runs/digits_methods/report_$block
  python -m safemax_pl.report runs/digits_methods/$block runs/digits_methods/retrain out=$report
  cp $report/results.csv $here/results_$block.csv
done
cp runs/digits_methods/report_tuned/figures/w0-samples.png $here/figure.png
python $here/study.py relearning
python $here/table.py
