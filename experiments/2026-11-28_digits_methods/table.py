"""Print the tables of README.md from results_tuned.csv and results_papers.csv.

Significance: every method against SAFEMax on the runs that share digit and seed, by a paired t-test on Δ FID; p values
are corrected by Holm over all methods. Digits share a base model, so the pairs are not wholly independent.
"""

from pathlib import Path

import pandas as pd
from scipy.stats import ttest_rel

HERE = Path(__file__).parent
DELTA = "delta/fid_retain/classifier"
FORMATS = {
    "ua_noise_aware": ".3f",
    "ua": ".2f",
    "halting": ".2f",
    "retain_accuracy": ".3f",
    DELTA: "+.3f",
    "drift": ".3f",
    "total_seconds": ".1f",
    "total_flops": ".2e",
}
PAPERS = {"ua_noise_aware": ".3f", "retain_accuracy": ".3f", DELTA: "+.3f", "drift": ".3f", "total_flops": ".1e"}
PAIR = ["forget_classes", "seed"]


def cells(runs: pd.DataFrame, formats: dict[str, str]) -> pd.DataFrame:
    """Return the means of a block, a row per method, as text.

    The ± of `DELTA` is its standard deviation over seeds, averaged over the digits; a block of one seed has none.
    """
    means = runs.groupby("method")[list(formats)].mean()
    deviations = runs.groupby(["method", "forget_classes"])[DELTA].std().groupby("method").mean()
    text = pd.DataFrame({name: means[name].map(lambda x, form=form: f"{x:{form}}") for name, form in formats.items()})
    text[DELTA] += deviations.map(lambda x: "" if pd.isna(x) else f" ± {x:.3f}")
    return text.rename(columns={DELTA: "Δ FID"})


def holm(p: pd.Series) -> pd.Series:
    """Return p values corrected by Holm for as many tests."""
    order = p.sort_values()
    scaled = pd.Series([min(1.0, (len(order) - i) * value) for i, value in enumerate(order)], order.index)
    return scaled.cummax().reindex(p.index)


def against(runs: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Return for each method the mean paired difference of Δ FID to `reference`, and its corrected p value."""
    table = runs.pivot_table(DELTA, PAIR, "method")
    assert not table.isna().any(axis=None), "runs are missing"
    others = table.drop(columns=reference)
    differences = others.sub(table[reference], axis=0)
    p = pd.Series({method: ttest_rel(others[method], table[reference]).pvalue for method in others})
    return pd.DataFrame({"difference": differences.mean(), "pairs": len(table), "p": p, "p (Holm)": holm(p)})


def show(table: pd.DataFrame) -> None:
    """Print a table in Markdown."""
    print("\n| method | " + " | ".join(table.columns) + " |\n|---" + "|---:" * len(table.columns) + "|")
    for method, row in table.iterrows():
        print(f"| {method} | " + " | ".join(map(str, row)) + " |")


def main() -> None:
    blocks = {block: pd.read_csv(HERE / f"results_{block}.csv") for block in ("tuned", "papers")}
    for runs in blocks.values():
        runs["method"] = runs["method"].str.replace(r" \((tuned|paper)\)", "", regex=True)
    tuned, papers = blocks["tuned"], blocks["papers"].query("forget_classes == 8 and seed == 0")
    order = tuned.groupby("method")[["ua_noise_aware", DELTA]].mean()
    order["left"] = -order["ua_noise_aware"].clip(upper=0.9)
    show(cells(tuned, FORMATS).loc[order.sort_values(["left", DELTA]).index])
    show(cells(papers, PAPERS))
    tests = against(tuned[~tuned.method.isin(["retrain"])], "safemax").sort_values("difference")
    show(tests.round({"difference": 3}).assign(**{key: tests[key].map("{:.2g}".format) for key in ("p", "p (Holm)")}))


if __name__ == "__main__":
    main()
