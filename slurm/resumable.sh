# Sourced by the batch scripts. `resumable COMMAND...` runs a command to its end, over as many starts of the job as it
# needs: when the time is nearly up, or the job is pre-empted, SLURM sends SIGUSR1 to the script (#SBATCH
# --signal=B:USR1@120), the script hands it on, the command writes its checkpoint and ends, and the job is requeued.

resumable() {
  local asked="" status=0
  trap 'asked=yes; kill -USR1 "$child" || true' USR1
  "$@" &
  child=$!
  wait "$child" || status=$?  # the signal ends this wait, not the command
  if [ -n "$asked" ]; then
    timeout "${PATIENCE:-90}" tail --pid="$child" -f /dev/null || echo "not done with its checkpoint in time: the last one counts"
    status=0
    wait -n "$child" || status=$?
    if [ "$status" -ne 0 ]; then
      scontrol requeue "${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}"
    fi
  fi
  return "$status"
}
