#!/usr/bin/env bash
# A sweep of SAFEMax on digits on SLURM: one study of 32 trials, shared by two workers. Submit it again to resume.
# Without SLURM: start `python -m safemax_pl.sweep` with the settings below, once per worker.
set -euo pipefail
cd "$(dirname "$0")/../.."
here=experiments/2026-11-25_digits_sweep
sbatch --wait --array=1-2 --cpus-per-task=1 slurm/sweep.sbatch experiment=digits_methods sweep=safemax sweep.trials=32 \
  name=digits_sweep logger=csv sampler=dpm_solver sampler.steps=10 \
  unlearner.on_path=0 unlearner.null_on_images=0 data.forget_batch_size=16 data.retain_batch_size=16 trainer.val_check_interval=20 trainer.max_steps=40 \
  evaluation.plans.quick.retain_total=27 evaluation.plans.standard.retain_total=180
cp runs/digits_sweep/trials.csv $here/
cp runs/digits_sweep/pareto.png $here/figure.png
${PYTHON:-python} -m safemax_pl.report runs/digits_sweep out=runs/digits_sweep/report 'title="Sweep of SAFEMax on digits"'
