"""Tables of required keys, legal ranges and legal arguments of the Trainer, for `config/schema.py`."""

from typing import Any

SEEDS = (0, 2**32 - 1)  # range of numpy
MANY = 10**9
WHOLE_NUMBERS = {  # setting -> (min, max); settings that their constructors check are left out
    "seed": SEEDS,
    "data.seed": SEEDS,
    "sweep.seed": SEEDS,
    "sweep.trials": (1, MANY),
    "images": (1, 10**6),
    "batch_size": (1, MANY),
    "shift": (0, 4096),
    "data.image_size": (1, 4096),
    "data.channels": (1, 3),
    "data.forget_batch_size": (0, MANY),
    "data.retain_batch_size": (0, MANY),
    "evaluation.batch_size": (1, 10**5),
    "trainer.max_steps": (1, MANY),
    "trainer.max_epochs": (1, MANY),
    "trainer.val_check_interval": (1, MANY),
    "trainer.log_every_n_steps": (1, MANY),
    "trainer.num_nodes": (1, MANY),
    "trainer.num_sanity_val_steps": (0, 0),  # it would log scores of a few images as those of the plan
}
NEEDED = {  # group -> keys that the program reads itself
    "data": {"cache_dir", "forget_classes", "name", "path"},
    "evaluation": {"batch_size", "final", "guidance", "plans"},
    "trainer": {"enable_progress_bar", "log_every_n_steps", "max_steps", "precision", "val_check_interval"},
}
MAY_BE_NULL = ("trainer.max_epochs",)
PLAN = {"forget_per_class": (0, 10**7), "retain_total": (0, 10**7)}
PLAN_EXAMPLE = "{forget_per_class: 100, retain_total: 100}"
GIVEN = {  # node -> arguments of its constructor that the program gives
    "architecture": {"image_shape", "num_outputs"},
    "logger": {"folder"},
    "lr_scheduler": {"optimizer"},
    "model": {"data"},
    "optimizer": {"params"},
}
FOLDERS = ("runs_dir", "data.path", "data.cache_dir", "model.path", "classifier")  # neither null nor empty
TRAINER = {  # legal arguments of Lightning's Trainer; the program decides the others
    *("accelerator", "devices", "num_nodes", "strategy", "precision", "max_steps", "max_epochs", "max_time"),
    *("val_check_interval", "check_val_every_n_epoch", "log_every_n_steps", "num_sanity_val_steps"),
    *("enable_progress_bar", "enable_model_summary", "use_distributed_sampler"),
    *("benchmark", "deterministic", "detect_anomaly", "profiler", "sync_batchnorm", "inference_mode"),
}
TRAINER_CHOICES: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("enable_progress_bar", "enable_model_summary", "benchmark"), (True, False)),
    **dict.fromkeys(("detect_anomaly", "sync_batchnorm", "inference_mode"), (True, False)),
    "deterministic": (True, False, "warn"),
    "use_distributed_sampler": (False,),  # the data module distributes batches and plans over ranks
    "check_val_every_n_epoch": (None,),  # val_check_interval counts steps
}
INSTEAD = {  # illegal argument of the Trainer -> advice
    "gradient_clip_val": "set gradient_clip",
    "gradient_clip_algorithm": "set gradient_clip",
    "accumulate_grad_batches": "set data.forget_batch_size and data.retain_batch_size",
    "min_steps": "set trainer.max_steps",
    "min_epochs": "set trainer.max_steps",
    "default_root_dir": "set runs_dir",
    "logger": "set logger=wandb or logger=csv",
    "enable_checkpointing": "checkpoints are always written",
    "limit_train_batches": "set trainer.max_steps",
    "limit_val_batches": "set evaluation.plans.quick",
    "limit_test_batches": "set evaluation.plans",
    "overfit_batches": "leave it out",
    "fast_dev_run": "set trainer.max_steps and evaluation.plans for a short try",
}
