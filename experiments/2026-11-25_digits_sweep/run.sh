#!/usr/bin/env bash
# A sweep of SAFEMax on digits, 32 trials by two workers of one study; runs again where it was interrupted. On a cluster
# the command below is that of every array task.
set -euo pipefail
cd "$(dirname "$0")/../.."
here=experiments/2026-11-25_digits_sweep
for worker in 1 2; do
  OMP_NUM_THREADS=1 ${PYTHON:-python} -m safemax_pl.sweep experiment=digits_methods sweep=safemax sweep.trials=32 \
    name=digits_sweep logger=csv trainer.enable_progress_bar=false sampler=dpm_solver sampler.steps=10 \
    data.forget_batch_size=16 data.retain_batch_size=16 trainer.val_check_interval=20 trainer.max_steps=40 \
    evaluation.plans.quick.retain_total=27 evaluation.plans.standard.retain_total=180 &
done
wait
cp runs/digits_sweep/{trials.csv,best.md,pareto.png,importance.png} $here/
${PYTHON:-python} -m safemax_pl.report runs/digits_sweep --out runs/digits_sweep/report --title "Sweep of SAFEMax on digits"
