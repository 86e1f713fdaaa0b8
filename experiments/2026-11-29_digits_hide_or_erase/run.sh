#!/usr/bin/env bash
# Every method under every attack and with a certificate, one digit and three seeds, beside three Retrains. Takes an hour
# on two idle cores. The same command resumes after an interruption.
set -euo pipefail
cd "$(dirname "$0")/../.."
export OMP_NUM_THREADS=1
study=experiments/2026-11-29_digits_hide_or_erase/study.py
python $study fit retrain
python $study examine retrain
python $study arms | xargs -P 2 -I{} python $study examine {}
python $study null
python $study table
