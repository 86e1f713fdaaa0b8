#!/usr/bin/env bash
# CIFAR, part by part, in legs: after LEG seconds (500) a fit saves and stops, this script ends with 75, and the same
# call goes on from there. What matters most comes first.
#   bash experiments/cifar/run.sh classifier base table
#   bash experiments/cifar/run.sh candidates gate targets cifar100 classifiers standard
#   PYTHONPATH=. python experiments/cifar/results.py              tables and figures, on any machine
#   DRY=1 bash experiments/cifar/run.sh classifier base table    tiny, on a CPU, in runs/cifar_dry
# CIFAR_PATH: folder with cifar10/ and cifar100/ as parquet files; without it they come from the Hugging Face hub.
# BASE_SECONDS (330), CANDIDATE_SECONDS (45): of training. INCEPTION: weights for evaluation.inception.
# KEEP=FOLDER: what a call has written, but checkpoints and unlearned weights, is there after every run, in at most four
# pieces of 15 MiB, what matters most first; what does not fit is named. To put it in place, also on another machine:
# for call in FOLDER/call_*; do cat $call/kept.* | tar x; done
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHONPATH=".${PYTHONPATH:+:$PYTHONPATH}" LEG="${LEG:-500}" LEG_STARTED="$(date +%s)"
exec timeout --preserve-status -s TERM -k 15 "$LEG" "${PYTHON:-python}" experiments/cifar/study.py "$@"
