"""Print the table of README.md, without the controls, from results_papers.csv and results_tuned.csv."""

from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent
DELTA = "delta/fid_retain/classifier"
FORMATS = {
    "ua_noise_aware": ".3f",
    "ua": ".2f",
    "retain_accuracy": ".3f",
    DELTA: "+.3f",
    "drift": ".3f",
    "total_seconds": ".1f",
    "total_flops": ".2e",
}
PAPERS = {"ua_noise_aware": ".3f", DELTA: "+.3f"}


def cells(block: str, formats: dict[str, str]) -> pd.DataFrame:
    """The means of a block, a row per method, as text.

    The ± of `DELTA` is its standard deviation over seeds, averaged over the digits.
    """
    runs = pd.read_csv(HERE / f"results_{block}.csv")
    means = runs.groupby("method")[list(formats)].mean()
    deviations = runs.groupby(["method", "forget_classes"])[DELTA].std().groupby("method").mean()
    text = pd.DataFrame({name: means[name].map(lambda x, form=form: f"{x:{form}}") for name, form in formats.items()})
    text[DELTA] += deviations.map(" ± {:.3f}".format)
    return text.rename(columns={DELTA: "Δ FID"})


def main() -> None:
    papers, tuned = cells("papers", PAPERS).add_prefix("papers: "), cells("tuned", FORMATS)
    table = papers.join(tuned, how="outer").fillna("")
    print("| method | " + " | ".join(table.columns) + " |")
    print("|---" + "|---:" * len(table.columns) + "|")
    for method, row in table.iterrows():
        print(f"| {method} | " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
