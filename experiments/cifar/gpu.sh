#!/usr/bin/env bash
# Run the CIFAR study on a GPU machine without network, in calls of limited time; the order is in README.md.
#   bash experiments/cifar/gpu.sh 1       install the delivered wheels, test a short fit, measure (300 seconds at most)
#   bash experiments/cifar/gpu.sh data    only take delivered data, where they come in more than two calls
#   bash experiments/cifar/gpu.sh 2       classifier, if none is shipped, base model, table (LEG and half a minute)
# deliver.py makes what is delivered, .gpu/. Results are written to OUT (out): at most 8 files of 16 MiB each.
# Settings, by environment:
#   LEG (560)                       seconds of the study
#   BASE_SECONDS (46 % of LEG)      seconds of base training
#   COMPILE (the probe decides)     true or false
#   PROBE_SECONDS (110), SMOKE_SECONDS (120)
#   SCRATCH (/tmp/safemax)          folder for what outlasts a call
#   DRY=1                           tiny networks and few steps
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHON="${PYTHON:-python3}" OUT="${OUT:-out}" PROBE_SECONDS="${PROBE_SECONDS:-110}"
scratch="${SCRATCH:-/tmp/safemax}"
export PYTHONPATH=".:$scratch/site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
export CIFAR_PATH="$scratch/data" TORCHINDUCTOR_CACHE_DIR="$scratch/inductor"
mkdir -p "$OUT" "$scratch/pieces" "$CIFAR_PATH/cifar10"

say() { echo "[$SECONDS s] $*"; }
stop() { say "$*"; exit 1; }

take_data() {
  say "take the delivered data"
  find .gpu -name 'data.*' -exec cp -t "$scratch/pieces" {} +
  ls -l "$scratch/pieces"
}

prepare() {
  rm -f "$scratch/ready"
  take_data
  say "install the delivered wheels"
  "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$scratch/site" .gpu/whl/*.whl
  say "smoke test: SalUn on digits in bfloat16"
  timeout "${SMOKE_SECONDS:-120}" "$PYTHON" -m safemax_pl.fit experiment=digits_forget1 unlearner=salun logger=csv name=smoke \
    trainer=auto trainer.precision=bf16-mixed trainer.max_steps=12 trainer.val_check_interval=6 \
    trainer.enable_progress_bar=false sampler.steps=10 \
    'evaluation.plans.standard={forget_per_class: 20, retain_total: 90}' 2>&1 | tee "$OUT/smoke.log" \
    || stop "the smoke test failed: give the machine back and mend it"
  touch "$scratch/ready"
  say "probe"
  timeout $((PROBE_SECONDS + 60)) "$PYTHON" experiments/cifar/probe.py 2>&1 | tee "$OUT/probe.log" \
    || say "the probe ended early: nothing will be compiled"
  cp "$OUT/probe.json" "$scratch" || true
}

study() {
  [ -f "$scratch/ready" ] || stop "call 1 has not passed on this machine: make it first"
  take_data
  cat "$scratch"/pieces/data.* | tar -x -C "$CIFAR_PATH/cifar10" || stop "a piece of the data is missing: make the calls in order"
  cp "$scratch/probe.json" "$OUT" || true
  if grep -qE '"(integers|uniform)_equal": false' "$OUT/probe.json"; then
    stop "the GPU draws other random numbers than a CPU: give the machine back"
  fi
  grep -q '"compile": true' "$OUT/probe.json" && worth=true || worth=false
  grep -q '"bf16_norm_is_right": false' "$OUT/probe.json" && export PLAIN_NORM=true
  export LEG="${LEG:-560}" KEEP="$OUT" COMPILE="${COMPILE:-$worth}"
  [ -f "$scratch/base_seconds" ] || echo $((LEG * 46 / 100)) > "$scratch/base_seconds"  # the same when a call goes on
  [ "${DRY:-}" = 1 ] || export BASE_SECONDS="${BASE_SECONDS:-$(cat "$scratch/base_seconds")}"
  say "study: LEG=$LEG BASE_SECONDS=${BASE_SECONDS:-} COMPILE=$COMPILE"
  status=0
  bash experiments/cifar/run.sh classifier base table 2>&1 | tee "$OUT/log.txt" || status=$?
  rm -rf "$OUT"/.call_*.part  # half written when the time was over
  [ "$status" = 0 ] || exit "$status"
}

case "${1:-}" in
  1) prepare ;;
  data) take_data ;;
  2) study ;;
  *) stop "got '${1:-}': give 1, data or 2" ;;
esac
say "ended well"
