"""Check the error rates that certificates state, on digits: `study.py fit`, `look`, `table`, `simulate`.

fit: eight Retrains without the 3, and three models that did not erase it: fine-tuned, with another embedding row, and
SAFEMax. look: images of all models in three conditions, for two nonces, and larger pools of some. table: the tests and
bounds of the certificate on these, which writes results.csv. Finished work is kept: the same command resumes.
"""

import copy
import itertools
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest, norm

from safemax_pl.certificates.arguments import split_overrides
from safemax_pl.certificates.bounds import corrected, upper_bound
from safemax_pl.certificates.certification import Certification, Classified
from safemax_pl.certificates.kernel_tests import closer_test, excess, mean_kernels
from safemax_pl.certificates.roc import auc
from safemax_pl.certificates.settings import Settings
from safemax_pl.certificates.utility import intervals
from safemax_pl.common.figures import COLOURS, WIDTH, name_axes, panels, save_figure
from safemax_pl.config.build import build
from safemax_pl.config.command_line import import_lightning, quiet
from safemax_pl.config.compose import compose
from safemax_pl.diffusion.saved_model import identified, pretrained
from safemax_pl.diffusion.unet import Model
from safemax_pl.evaluation.scoring import make_evaluator
from safemax_pl.training.fit import fit

HERE, RUNS = Path(__file__).parent, Path("runs/digits_certificate")
DIGIT, IMAGES, NONCES, RETRAINS, GIVEN = 3, 450, 2, 8, 5
COMMON = ["trainer.enable_progress_bar=false", "logger=csv", f"runs_dir={RUNS}", f"data.forget_classes=[{DIGIT}]"]
COMMON += ["evaluation.final=quick"]
RETRAIN = ["unlearner=retrain", "data.retain_batch_size=64", "optimizer.lr=1e-3", "trainer.max_steps=1000"]
RETRAIN += ["trainer.val_check_interval=1000"]
SAFEMAX = [
    "unlearner.on_path=0.5",
    "unlearner.null_on_images=0",
    "unlearner.retain_weight=10",
    "optimizer.lr=2e-4",
    "ema_decay=null",
]
SAFEMAX += ["trainer.max_steps=100"]
CONDITIONS = {"retained classes": 0.0, "forgotten classes": 0.0, "unconditional": -1.0}
ALPHA = 0.05
TRIALS = 1000  # of simulations that only count


def runs() -> dict[str, list[str]]:
    """Return name -> settings of every fit."""
    retrains = {f"retrain_{seed}": [*RETRAIN, f"seed={seed}"] for seed in range(RETRAINS)}
    finetuned = {f"finetune_{seed}": ["unlearner=finetune", "setting=tuned", f"seed={seed}"] for seed in range(3)}
    forgotten = {f"safemax_{seed}": [*SAFEMAX, f"seed={seed}"] for seed in range(3)}
    return retrains | finetuned | forgotten


def make(name: str, settings: list[str]) -> None:
    experiment = "digits_forget1" if name.startswith("safemax") else "digits_methods"
    fit(compose("fit", [f"experiment={experiment}", *COMMON, *settings]), name)


def models(certification: Certification) -> dict[str, Model]:
    """Return all models; "deletion" is the original with the embedding of another class."""
    data, original = certification.evaluator.data, certification.models["original"]
    found = {name: pretrained(data, str(RUNS / name)) for name in runs()}
    for other in (0, 5, 8):
        deleted = copy.deepcopy(original)
        with torch.no_grad():
            deleted.class_embeddings[DIGIT] = deleted.class_embeddings[other]
        found[f"deletion_{other}"] = identified(deleted)
    return found | {"original": original}


def certified() -> Certification:
    cfg = compose("fit", ["experiment=digits_methods", *COMMON, "evaluation.batch_size=450"])
    data = build(cfg.data)
    original = build(cfg.model, data=data)
    settings: Settings = build(split_overrides([])[0].node)
    return Certification(make_evaluator(cfg, data), settings, "study", {"unlearned": original, "original": original})


def look(certification: Certification) -> None:
    """Generate and classify the images of all models."""
    data, every = certification.evaluator.data, models(certification)
    labels = {"retained classes": data.retain_labels, "forgotten classes": [DIGIT], "unconditional": list(range(10))}
    jobs = [(name, condition, nonce, IMAGES) for name in every for condition in CONDITIONS for nonce in range(NONCES)]
    jobs += [(name, "retained classes", 99, 9 * 600) for name in ("original", "safemax_0")]
    jobs += [("original", "forgotten classes", 99, 2000)]
    for name, condition, nonce, images in jobs:
        path = RUNS / "seen" / f"{name}-{condition}-{nonce}.pt"
        if path.exists():
            continue
        path.parent.mkdir(exist_ok=True)
        one = Certification(
            certification.evaluator,
            certification.settings,
            f"study {nonce}",
            certification.models | {name: every[name]},
        )
        plan = one.plan(labels[condition], images // len(labels[condition]), condition)
        torch.save(tuple(one.generate(name, plan, CONDITIONS[condition])), path)
        print(path.name, flush=True)


def seen(name: str, condition: str, nonce: int) -> Classified:
    return Classified(*torch.load(RUNS / "seen" / f"{name}-{condition}-{nonce}.pt"))


def excesses() -> list[dict]:
    """Rejections of `excess_test`: a Retrain against five others, and models that did not erase the class."""
    rows = []
    retrains = [f"retrain_{seed}" for seed in range(RETRAINS)]
    for condition, nonce in itertools.product(CONDITIONS, range(NONCES)):
        names = [*models_seen(), "original"]
        means = mean_kernels(torch.stack([seen(name, condition, nonce).features for name in names]))
        for name in names:
            others = [one for one in retrains if one != name]
            for chosen in itertools.combinations(others, GIVEN):
                places = [names.index(one) for one in (name, *chosen)]
                found = excess(means[places][:, places])
                kind = name.rpartition("_")[0] or name
                rows.append({"model": kind, "condition": condition, "ratio": found.ratio, "p": found.p, "nonce": nonce})
                rows[-1] |= {"name": name, "chosen": "".join(one[-1] for one in chosen)}
    return rows


def models_seen() -> list[str]:
    return [*runs(), *(f"deletion_{other}" for other in (0, 5, 8))]


def share(rejected: pd.Series) -> str:
    low, high = binomtest(int(rejected.sum()), len(rejected)).proportion_ci()
    return f"{rejected.mean():.3f} [{low:.3f}, {high:.3f}]"


def planted(rng: np.random.Generator) -> list[dict]:
    """Coverage of the bound on planted leaks: images of the original's 3 among images of noise."""
    three = (seen("original", "forgotten classes", 99).noise_aware == DIGIT).numpy()
    noise = np.concatenate(
        [
            (seen(f"safemax_{s}", "forgotten classes", n).noise_aware == DIGIT).numpy()
            for s in range(3)
            for n in range(NONCES)
        ]
    )
    misses, tested = real_misses()
    rows = []
    for p, n in itertools.product((0.001, 0.01, 0.05), (200, 1000)):
        leaked = rng.binomial(n, p, TRIALS)
        hits = [rng.choice(three, k).sum() + rng.choice(noise, n - k).sum() for k in leaked]
        bounds = [corrected(upper_bound(int(h), n, ALPHA / 2), upper_bound(misses, tested, ALPHA / 2)) for h in hits]
        rows.append(
            {"planted": p, "n": n, "coverage": np.mean(np.array(bounds) >= p), "median bound": np.median(bounds)}
        )
        plain = [upper_bound(int(h), n, ALPHA) for h in hits]
        rows[-1]["coverage without misses"] = np.mean(np.array(plain) >= p)
    return rows


def real_misses() -> tuple[int, int]:
    certification = certified()
    test = certification.evaluator.data.source.test
    real = certification.classify(test.images[test.labels == DIGIT], test.labels[test.labels == DIGIT])
    return int((real.noise_aware != DIGIT).sum()), len(real.labels)


def same_model() -> list[float]:
    """p-values of `closer_test` for two samples of one model."""
    pool = seen("original", "retained classes", 99)
    reference, labels = seen("retrain_0", "retained classes", 0).features, torch.arange(9).repeat_interleave(50)
    found = []
    for trial in range(200):
        chosen = torch.randperm(600, generator=torch.Generator().manual_seed(trial))
        features = pool.features.view(9, 600, -1)
        first, second = (features[:, part].flatten(0, 1) for part in (chosen[:50], chosen[50:100]))
        found.append(closer_test(first, second, labels, reference).p)
    return found


def closer() -> list[dict]:
    """Results of `closer_test` for every model against the original; Retrains with the seeds of another nonce."""
    rows = []
    for condition, nonce in itertools.product(CONDITIONS, range(NONCES)):
        other = (nonce + 1) % NONCES
        reference = torch.cat([seen(f"retrain_{s}", condition, other).features[::GIVEN] for s in range(GIVEN)])
        original = seen("original", condition, nonce)
        for name in models_seen():
            if not name.startswith("retrain"):
                mine = seen(name, condition, nonce).features
                found = closer_test(mine, original.features, original.labels, reference)
                way = 0 if found.p > ALPHA / len(CONDITIONS) else 1 if found.difference < 0 else -1
                rows.append({"model": name.rpartition("_")[0], "condition": condition, "way": way})
    return rows


def membership_coverage(rng: np.random.Generator) -> list[dict]:
    """Coverage of the interval of the AUC, for normal scores, with as many images as the digit has.

    The attack is the best of twelve on the original; the model shares 0.9 of the variance of its scores.
    """
    rows, candidates = [], 12
    for true in (0.5, 0.7, 0.9):
        shift = norm.ppf(true) * np.sqrt(2)
        hits = []
        for _ in range(TRIALS):
            members, others = rng.normal(shift, 1, (candidates, 146)), rng.normal(0, 1, (candidates, 37))
            best = max(range(candidates), key=lambda i: auc([(members[i], others[i])], 0.5).value)
            parts = [(shift, members[best], 146), (0, others[best], 37)]
            mine = [m + np.sqrt(0.9) * (x - m) + np.sqrt(0.1) * rng.normal(0, 1, n) for m, x, n in parts]
            one = auc([(mine[0], mine[1])], ALPHA / (2 * candidates))
            hits.append(one.low <= true <= one.high)
        rows.append({"AUC": true, "coverage": np.mean(hits)})
    return rows


def utility_coverage() -> list[dict]:
    """Coverage of the intervals for SAFEMax against the original: 50 of 600 seeds, against the value of all 600."""
    reference = certified().evaluator.real_features.reference("classifier").statistics
    ours, original = (seen(name, "retained classes", 99) for name in ("safemax_0", "original"))

    def part(one: Classified, seeds: torch.Tensor) -> Classified:
        chosen = (torch.arange(9)[:, None] * 600 + seeds).flatten()
        return Classified(*(field[chosen] for field in one))

    truth = intervals(ours, original, reference, ALPHA)
    found = []
    for trial in range(200):
        seeds = torch.randperm(600, generator=torch.Generator().manual_seed(trial))[:50]
        found.append(intervals(part(ours, seeds), part(original, seeds), reference, ALPHA))
    rows = []
    for name, one in truth.items():
        hits = [trial[name]["low"] <= one["value"] <= trial[name]["high"] for trial in found]
        half = np.mean([(trial[name]["high"] - trial[name]["low"]) / 2 for trial in found])
        rows.append({"score": name, "truth": one["value"], "coverage": np.mean(hits), "half width": half})
    return rows


def draw(rows: pd.DataFrame) -> None:
    """Draw the ratios of all models, a panel per condition."""
    figure, axes = panels(len(CONDITIONS), 2.6 * WIDTH, 2.6, len(CONDITIONS), sharey=True)
    kinds = ["retrain", "safemax", "finetune", "deletion", "original"]
    for axis, condition in zip(axes, CONDITIONS, strict=True):
        for place, kind in enumerate(kinds):
            mine = rows[(rows["condition"] == condition) & (rows["model"] == kind)]
            axis.scatter(mine["ratio"], np.full(len(mine), place), s=4, alpha=0.25, color=COLOURS[place])
        axis.set_xscale("log")
        axis.set_xlim(0.15, 60)
        axis.set_xticks([0.2, 1, 5, 20], ["0.2", "1", "5", "20"])
        axis.minorticks_off()
        name_axes(axis, "distance² / variance among Retrains", title=condition)
    axes[0].set_yticks(
        range(len(kinds)), ["one more Retrain", "SAFEMax", "fine-tuned", "embedding deleted", "original"]
    )
    save_figure(figure, HERE / "figure.png")


def simulate() -> None:
    """Print the share of rejections of one more Retrain, for normal embeddings with these variances."""
    spectra = {f"{size} equal": np.ones(size) for size in (1, 2, 3, 10, 100)}
    spectra |= {f"powers of {base}": base ** np.arange(40) for base in (0.5, 0.8)}
    spectra |= {f"1 and {n} of {v}": np.r_[1, np.full(n, v)] for n, v in ((20, 0.1), (100, 0.03), (300, 0.01))}
    rng = np.random.default_rng(0)
    for (name, variances), k in itertools.product(spectra.items(), (3, 5, 7)):
        embeddings = torch.from_numpy(rng.normal(size=(6000, k + 1, len(variances))) * np.sqrt(variances))
        p = np.array([excess(one @ one.T).p for one in embeddings])
        print(f"{name}, {k} Retrains: {(p <= ALPHA).mean():.3f}", flush=True)


def table() -> None:
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(excesses())
    rows.round({"ratio": 3, "p": 4}).to_csv(HERE / "excess.csv", index=False)
    draw(rows)
    rows["rejected"] = rows["p"] <= ALPHA
    rows["adjusted"] = rows["p"] <= ALPHA / len(CONDITIONS)
    by = rows.groupby(["condition", "model"])
    print(by["rejected"].apply(share).unstack(0).to_string(), "\n")
    print(by["ratio"].median().unstack(0).round(2).to_string(), "\n")
    anywhere = rows.groupby(["model", "name", "chosen", "nonce"])["adjusted"].any()
    print(anywhere.groupby("model").apply(share).to_string(), "\n")
    print(pd.DataFrame(planted(rng)).to_string(index=False), "\n")
    same = np.array(same_model())
    print("closer_test of one model:", share(pd.Series(same <= ALPHA)), "\n")
    ways = pd.DataFrame(closer()).groupby(["model", "condition"])["way"]
    print(ways.agg(closer=lambda w: (w == 1).mean(), farther=lambda w: (w == -1).mean()).to_string(), "\n")
    print(pd.DataFrame(membership_coverage(rng)).to_string(index=False), "\n")
    print(pd.DataFrame(utility_coverage()).to_string(index=False), "\n")


if __name__ == "__main__":
    quiet()
    import_lightning()
    if sys.argv[1] == "fit":
        mine = runs()
        for name in sys.argv[2:] or mine:
            make(name, mine[name])
    elif sys.argv[1] == "look":
        look(certified())
    elif sys.argv[1] == "simulate":
        simulate()
    else:
        table()
