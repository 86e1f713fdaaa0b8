#!/usr/bin/env bash
# The defences of SAFEMax on digits 3 and 8, seeds 0, 1, 2: 30 fits and their attacks, one after the other; resumes.
set -euo pipefail
cd "$(dirname "$0")/../.."
OMP_NUM_THREADS=1 PYTHONPATH=. ${PYTHON:-python} experiments/2026-11-25_digits_defences/study.py
