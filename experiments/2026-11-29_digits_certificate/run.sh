#!/usr/bin/env bash
# Error rates of certificates on digits: fourteen fits, images of 18 models, simulations. Takes an hour on two cores. The same
# command resumes after an interruption.
set -euo pipefail
cd "$(dirname "$0")/../.."
export OMP_NUM_THREADS=1
study=experiments/2026-11-29_digits_certificate/study.py
python $study fit
python $study look
python $study table
python $study simulate
