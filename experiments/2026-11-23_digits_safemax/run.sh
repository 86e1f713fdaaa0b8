#!/usr/bin/env bash
# SAFEMax on digits: every digit forgotten, three seeds. One task per line.
set -euo pipefail
cd "$(dirname "$0")/../.."
fit="${PYTHON:-python} -m safemax_pl.fit experiment=digits_forget1 logger=csv runs_dir=runs/digits_safemax trainer.val_check_interval=100 -m"
$fit seed=0,1,2 data.forget_classes=[0]
$fit seed=0,1,2 data.forget_classes=[1]
$fit seed=0,1,2 data.forget_classes=[2]
$fit seed=0,1,2 data.forget_classes=[3]
$fit seed=0,1,2 data.forget_classes=[4]
$fit seed=0,1,2 data.forget_classes=[5]
$fit seed=0,1,2 data.forget_classes=[6]
$fit seed=0,1,2 data.forget_classes=[7]
$fit seed=0,1,2 data.forget_classes=[8]
$fit seed=0,1,2 data.forget_classes=[9]
${PYTHON:-python} experiments/2026-11-23_digits_safemax/collect.py runs/digits_safemax
