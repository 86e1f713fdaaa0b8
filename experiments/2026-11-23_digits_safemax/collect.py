"""Gather the runs of run.sh into results.csv and figure.png."""

import csv
import json
import sys
from pathlib import Path
from statistics import mean

from matplotlib import pyplot as plt

METRICS = ("ua_noise_aware", "ua", "retain_accuracy", "fid_retain/classifier", "drift", "noise_std", "noise_saturation")
HERE = Path(__file__).parent


def main(runs: Path) -> None:
    rows = []
    for path in sorted(runs.glob("*/metrics.json")):
        metrics = json.loads(path.read_text())
        for guidance, models in metrics["scores"].items():
            row = {
                "run": metrics["name"],
                "guidance": guidance,
                "forget": ",".join(metrics["protocol"]["forget_classes"]),
            }
            row |= {name: models["unlearned"].get(name) for name in METRICS}
            row |= {f"original {name}": models["original"].get(name) for name in METRICS[:4]}
            row["uniform noise ua"] = models["uniform_noise"]["ua"]
            row["unlearn_seconds"] = metrics["cost"]["unlearn_seconds"]
            rows.append(row)
    with (HERE / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    draw(rows)


def draw(rows: list[dict]) -> None:
    digits = sorted({row["forget"] for row in rows})
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4))
    for name, colour in (("ua_noise_aware", "#1f77b4"), ("ua", "#c1272d"), ("uniform noise ua", "#bbbbbb")):
        values = [mean(row[name] for row in rows if row["forget"] == digit) for digit in digits]
        left.plot(digits, values, "o-", color=colour, label=name)
    left.set(xlabel="forgotten digit", ylabel="share", ylim=(0, 1.05), title="forgotten? mean of 3 seeds, w = 0")
    left.legend(fontsize=8)
    for name, colour in (("original fid_retain/classifier", "#bbbbbb"), ("fid_retain/classifier", "#1f77b4")):
        right.plot(
            digits,
            [mean(row[name] for row in rows if row["forget"] == d) for d in digits],
            "o-",
            color=colour,
            label=name,
        )
    right.set(xlabel="forgotten digit", ylabel="fid_retain/classifier", title="retained classes (lower is better)")
    right.set_ylim(0, 1.2 * right.get_ylim()[1])
    right.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(HERE / "figure.png", dpi=120)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
