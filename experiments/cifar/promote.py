"""Make the study's base model the project's, if it is better: runs/cifar/weights/DATA replaces weights/DATA.

  PYTHONPATH=. python experiments/cifar/promote.py cifar10

Better is a lower FID at every guidance weight, by the same classifier, images and sampler. The replaced model stays as
weights/DATA_compact, for model.path=. Classifiers are not replaced: those of the study are added where there is none.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

from study import SCORED, SHIPPED, WEIGHTS

from safemax_pl.common.errors import UserError, clear_errors
from safemax_pl.runs.run import read_metrics

FID = "fid_retain/classifier"
COMPARED = ("plan", "sampler", "classifier", "data")  # of two protocols


def promote(data: str) -> None:
    """Replace what is shipped.

    Raises:
        UserError: when there is no new base model, it was not scored as the shipped one, or is not better.
    """
    new, shipped, compact = WEIGHTS / data, SHIPPED / data, SHIPPED / f"{data}_compact"
    scores = read_metrics(new)
    if scores is None or not scores["published"]["scored"]:
        raise UserError(f"{new} has no scored base model: run the part base of the study")
    if (shipped / "unet").exists():
        if compact.exists():
            raise UserError(f"{compact} exists: the compact base model was replaced before, move one of them away")
        check_better(scores, shipped)
        compact.mkdir()
        for path in shipped.iterdir():
            if "classifier" not in path.name:
                path.rename(compact / path.name)
    shipped.mkdir(parents=True, exist_ok=True)
    for path in new.iterdir():
        place = shipped / path.name
        if path.is_dir() and path.name != "evaluations" and not place.exists():
            shutil.copytree(path, place)
        elif path.is_file():
            shutil.copy(path, place)
    for name in ("README.md", "config.yaml", "metrics.json"):
        text = (shipped / name).read_text()
        (shipped / name).write_text(text.replace(str(WEIGHTS), str(SHIPPED)))  # where a classifier of the study was


def check_better(scores: dict[str, Any], shipped: Path) -> None:
    """Compare with the scores of the shipped model under the same protocol."""
    found = [read_metrics(folder) for folder in (shipped, *sorted(shipped.glob("evaluations/*")))]
    protocol = {key: scores["protocol"].get(key) for key in COMPARED}
    same = [old for old in found if old and {key: old["protocol"].get(key) for key in COMPARED} == protocol]
    if not same:
        raise UserError(
            f"{shipped} was not scored as the new base model: run python -m safemax_pl.evaluate {shipped} "
            + " ".join(f"'{item}'" for item in SCORED)
        )
    for guidance, models in scores["scores"].items():
        mine, old = (of["model"][FID] for of in (models, same[0]["scores"][guidance]))
        print(f"{guidance}: {FID} {mine:.4g}, shipped {old:.4g}")
        if not mine < old:  # NaN is not better
            raise UserError(f"the new base model is not better at {guidance}: {shipped} stays as it is")


def main() -> None:
    with clear_errors():
        if len(sys.argv) != 2:
            raise UserError(f"got {len(sys.argv) - 1} arguments: give the data set, such as cifar10")
        promote(sys.argv[1])


if __name__ == "__main__":
    main()
