#!/usr/bin/env bash
# All methods on three digits and three seeds, at the papers' settings and tuned: about an hour on two cores, where it
# runs two fits at a time. Run again after an interruption, it goes on with what is missing.
set -euo pipefail
cd "$(dirname "$0")/../.."
export OMP_NUM_THREADS=1
here=experiments/2026-11-23_digits_methods
for part in tuning papers tuned retrain; do
  python $here/study.py $part | xargs -P 2 -d '\n' -I{} bash -c '{}'
done
python -m safemax_pl.report runs/digits_methods/papers runs/digits_methods/retrain --out $here/papers
python -m safemax_pl.report runs/digits_methods/tuned runs/digits_methods/retrain --out $here/tuned
