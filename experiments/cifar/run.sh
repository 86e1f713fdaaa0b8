#!/usr/bin/env bash
# CIFAR, part by part, in legs: after LEG seconds (540) a fit saves and stops, this script ends with 75, and the same
# call goes on from there. What matters most comes first.
#   bash experiments/cifar/run.sh classifier candidates pretrain table
#   bash experiments/cifar/run.sh gate targets cifar100 judges
#   DRY=1 bash experiments/cifar/run.sh classifier candidates pretrain table     tiny, on a CPU, in runs/cifar_dry
# CIFAR_PATH: folder with cifar10/ and cifar100/ as parquet files; without it they come from the Hugging Face hub.
# BASE_SECONDS (1200), CANDIDATE_SECONDS (90): of training. INCEPTION: weights for evaluation.inception.
# KEEP=FOLDER: copy all but checkpoints and unlearned weights there at the end, whatever the end.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHONPATH=.
python=${PYTHON:-python}
study=experiments/cifar/study.py
leg=${LEG:-540}
failed=0

keep() {
  shopt -s nullglob
  find runs/cifar* weights/cifar* experiments/cifar -type f ! -name '*.ckpt' ! -path 'runs/*.safetensors' -print0 \
    | xargs -r -0 cp --parents -t "$KEEP"
}
if [ -n "${KEEP:-}" ]; then
  mkdir -p "$KEEP"
  trap keep EXIT
fi

for part in "${@:?name a part, see experiments/cifar/study.py}"; do
  commands=$($python $study "$part")
  while IFS= read -r command <&3; do
    left=$((leg - SECONDS))
    code=124
    if [ "$left" -gt 0 ]; then
      echo "[$SECONDS s] $command"
      code=0
      timeout -s TERM -k 90 "$left" bash -c "exec ${command/#python/$python}" || code=$?
    fi
    if [ "$code" -eq 124 ]; then
      echo "the $leg seconds are over in $part: the same call goes on from here"
      exit 75
    elif [ "$code" -ne 0 ]; then
      echo "failed with $code: $command" >&2
      failed=$((failed + 1))
    fi
  done 3<<< "$commands"
done
echo "[$SECONDS s] all done, $failed failed"
$python $study collect
[ "$failed" -eq 0 ]
