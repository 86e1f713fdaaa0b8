"""Forgotten class and settings of the attacks' tests."""

FORGOTTEN = 3
SMALL = [
    "experiment=digits_forget1",
    "trainer.enable_progress_bar=false",
    f"data.forget_classes=[{FORGOTTEN}]",
    "sampler=dpm_solver",
    "sampler.steps=8",
]
