# Sourced by the batch scripts. `resumable COMMAND...` runs a command to its end, over as many starts of the job as it
# needs: when the time is nearly up, or the job is pre-empted, SLURM sends SIGUSR1 to the script (#SBATCH
# --signal=B:USR1@120), the script hands it on, the command writes its checkpoint and ends, and the job is requeued.

if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then
  export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"  # srun no longer takes over what sbatch was told
fi

resumable() {
  local asked="" status=0
  trap 'asked=yes; kill -USR1 "$child" || true' USR1
  "$@" &
  child=$!
  wait "$child" || status=$?
  if [ -n "$asked" ]; then  # the signal has ended that wait, not the command
    if timeout "${PATIENCE:-90}" tail --pid="$child" -f /dev/null; then
      status=0
      wait "$child" || status=$?
    else
      echo "no checkpoint in time: the last one counts"
    fi
  elif scontrol show job "$SLURM_JOB_ID" | grep -q 'PreemptTime=[0-9]'; then  # SIGTERM, to the command alone
    asked=yes
  fi
  if [ -n "$asked" ] && [ "$status" -ne 0 ]; then
    scontrol requeue "${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}"
  fi
  return "$status"
}
