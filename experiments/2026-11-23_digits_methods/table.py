"""Print the table of README.md from the two reports that run.sh makes."""

import csv
from pathlib import Path

HERE = Path(__file__).parent
COLUMNS = {
    "ua_noise_aware": ".3f",
    "ua": ".2f",
    "retain_accuracy": ".3f",
    "delta/fid_retain/classifier": "+.3f",
    "drift": ".3f",
    "total_seconds": ".1f",
    "total_flops": ".2e",
}


def rows(block: str) -> dict[str, dict[str, str]]:
    with (HERE / block / "summary.csv").open(newline="") as file:
        return {row["row"]: row for row in csv.DictReader(file)}


def cell(row: dict[str, str], column: str, form: str) -> str:
    if not row.get(column):
        return ""
    deviation = row[f"{column}/sd_seeds"] if column.startswith("delta") else ""
    return format(float(row[column]), form) + (f" ± {float(deviation):.3f}" if deviation else "")


def main() -> None:
    tuned, papers = rows("tuned"), rows("papers")
    names = [
        "papers: ua_noise_aware",
        "papers: Δ FID",
        *(name.replace("delta/fid_retain/classifier", "Δ FID") for name in COLUMNS),
    ]
    print("| method | " + " | ".join(names) + " |")
    print("|---" + "|---:" * len(names) + "|")
    for label in dict.fromkeys([*tuned, *papers]):
        before, after = papers.get(label, {}), tuned.get(label, {})
        cells = [cell(before, "ua_noise_aware", ".3f"), cell(before, "delta/fid_retain/classifier", "+.3f")]
        cells += [cell(after, column, form) for column, form in COLUMNS.items()]
        print(f"| {label} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
