"""`python slow_steps.py -m MODULE ...`: as `python -m MODULE ...`, with $STEP_SECONDS more per training step.

So there is time to interrupt them. A job that was requeued is not slowed down any more.
"""

import os
import runpy
import sys
import time

from safemax_pl.module import UnlearningModule

if "SLURM_RESTART_COUNT" not in os.environ:
    step = UnlearningModule.training_step

    def slow(self, batch, batch_idx):
        time.sleep(float(os.environ["STEP_SECONDS"]))
        return step(self, batch, batch_idx)

    UnlearningModule.training_step = slow
del sys.argv[:2]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
