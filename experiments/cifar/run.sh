#!/usr/bin/env bash
# Run the CIFAR study part by part, in legs: after LEG seconds (500) a fit saves and stops, and this script ends with
# status 75. The same call resumes. The most important parts come first.
#   bash experiments/cifar/run.sh classifier base table
#   bash experiments/cifar/run.sh candidates gate targets cifar100 classifiers standard
#   PYTHONPATH=. python experiments/cifar/results.py              tables and figures, on any machine
#   DRY=1 bash experiments/cifar/run.sh classifier base table    tiny, on a CPU, in runs/cifar_dry
# CIFAR_PATH: folder with cifar10/ and cifar100/ as parquet files; default: the Hugging Face hub.
# BASE_SECONDS (330), CANDIDATE_SECONDS (45): of training. INCEPTION: weights for evaluation.inception.
# KEEP=FOLDER: after every run, copy there what the call has written, without checkpoints and unlearned weights, in at
# most four pieces of 15 MiB, the most important first; the log names the rest. To unpack it on any machine:
# for call in FOLDER/call_*; do cat $call/kept.* | tar x; done
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHONPATH=".${PYTHONPATH:+:$PYTHONPATH}" LEG="${LEG:-500}" LEG_STARTED="$(date +%s)"
exec timeout --preserve-status -s TERM -k 15 "$LEG" "${PYTHON:-python}" experiments/cifar/study.py "$@"
