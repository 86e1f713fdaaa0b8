#!/usr/bin/env bash
# A sweep of SAFEMax on digits, 36 trials by two workers of one study; runs again where it was interrupted. On a cluster
# the command below is that of every array task.
set -euo pipefail
cd "$(dirname "$0")/../.."
here=experiments/2026-11-25_digits_sweep
for worker in 1 2; do
  OMP_NUM_THREADS=1 ${PYTHON:-python} -m safemax_pl.sweep experiment=digits_methods sweep=safemax sweep.trials=36 \
    name=digits_sweep logger=csv trainer.enable_progress_bar=false sampler=dpm_solver sampler.steps=10 \
    trainer.val_check_interval=15 trainer.max_steps=60 evaluation.plans.standard.retain_total=270 &
done
wait
cp runs/digits_sweep/{trials.csv,best.md,pareto.png,importance.png} $here/
${PYTHON:-python} -m safemax_pl.report runs/digits_sweep --out runs/digits_sweep/report --title "Sweep of SAFEMax on digits"
