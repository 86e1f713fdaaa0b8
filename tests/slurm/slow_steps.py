"""`python slow_steps.py -m MODULE ...`: as `python -m MODULE ...`, but step $HOLD_AT only goes on when it must end.

So a job is always interrupted in that step, however fast the machine is. A job that was requeued is not held any more.
"""

import os
import runpy
import sys
import time

from safemax_pl.training.module import UnlearningModule
from safemax_pl.training.preemption import Preemption

if "SLURM_RESTART_COUNT" not in os.environ:
    step = UnlearningModule.training_step

    def held(self, batch, batch_idx):
        (preemption,) = (callback for callback in self.trainer.callbacks if isinstance(callback, Preemption))
        while self.global_step == int(os.environ["HOLD_AT"]) and not preemption.signalled:
            time.sleep(0.1)
        return step(self, batch, batch_idx)

    UnlearningModule.training_step = held
del sys.argv[:2]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
