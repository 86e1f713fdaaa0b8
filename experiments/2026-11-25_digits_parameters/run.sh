#!/usr/bin/env bash
# SAFEMax and SalUn on digit 8 with fewer weights and fewer steps: 40 fits, one after the other; resumes.
set -euo pipefail
cd "$(dirname "$0")/../.."
OMP_NUM_THREADS=1 PYTHONPATH=. ${PYTHON:-python} experiments/2026-11-25_digits_parameters/study.py
