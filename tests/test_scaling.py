"""The prediction of docs/scaling.md: what it counts is what is done here, and its arithmetic."""

import json
from dataclasses import replace

import pytest
from ranks_job import SMALL, steps

from benchmarks.rank_worker import measure
from benchmarks.scaling import PASSES, Batches, Machine, Network, Run, main, networks, runs
from safemax_pl.common.errors import UserError
from safemax_pl.common.hardware import flop_counter
from safemax_pl.training.module import UnlearningModule

MACHINE = Machine(mfu=0.5, peak=1e12, launch=1e-6, nvlink=1e9, network=1e8, start=1.0, price=1.0)
NETWORK = Network("small", parameters=10**6, forward_flops=1e9, kernels=100)
RUN = Run(steps=10, batch=64, passes=3.5, calls=4, sampled=(Batches(64, at_once=8, calls=100),))


@pytest.mark.parametrize("method", ["safemax", "salun", "esd", "sfr_on", "dimum", "finetune"])
def test_the_passes_of_a_method_are_those_that_it_makes(method, tmp_path, monkeypatch):
    """Counted as FLOPs of two steps of 4 forget and 12 retain images on the digits."""
    counted, step = [], UnlearningModule.training_step

    def training_step(self, batch, batch_idx):
        with flop_counter() as flops:
            step(self, batch, batch_idx)
        counted.append(flops.get_total_flops())
        present = next(part for part in batch.values() if part is not None)
        with flop_counter() as forward:
            self.student(present.x_0, present.labels, present.labels)
        per_image.append(forward.get_total_flops() / len(present.labels))

    per_image: list[float] = []
    monkeypatch.setattr(UnlearningModule, "training_step", training_step)
    steps(tmp_path, 1, method, *SMALL.get(method, []))
    forget, retain = PASSES[method]
    made = sum(counted) / len(counted) / per_image[0]
    assert made == pytest.approx(4 * forget + 12 * retain, rel=0.05)


def test_one_gpu_exchanges_nothing_and_computing_is_shared_out():
    one, two = (RUN.seconds(NETWORK, MACHINE, gpus) for gpus in (1, 2))
    assert one["exchange"] == 0 and two["exchange"] == pytest.approx(10 * 2 * 1 / 2 * 4e6 / 1e9)
    assert one["training"] == pytest.approx(10 * 64 * 3.5 * 1e9 / 5e11) and two["training"] == one["training"] / 2
    assert two["sampling"] == one["sampling"] / 2 and one["start"] == two["start"]


def test_a_step_is_never_shorter_than_its_launches_and_between_nodes_the_exchange_is_slower():
    many = RUN.seconds(NETWORK, MACHINE, 4096)
    assert many["training"] == pytest.approx(10 * 4 * 100 * 1e-6)
    assert many["exchange"] > 9 * RUN.seconds(NETWORK, MACHINE, 8)["exchange"]


@pytest.mark.parametrize(
    ("count", "gpus", "batches"), [(10, 1, 1), (10, 2, 1), (10, 64, 1), (250, 1, 1), (251, 1, 2), (1001, 2, 3)]
)
def test_sampling_costs_the_launches_of_its_batches_however_few_images_are_in_them(count, gpus, batches):
    network, rows = Network("tiny", 1, 1.0, 100), Batches(count, at_once=250, calls=7, doubled=True)
    assert rows.seconds(network, MACHINE, gpus) == pytest.approx(batches * 7 * 100 * 1e-6)


def test_every_plan_has_batches_of_its_own():
    network, few = Network("tiny", 1, 1.0, 100), Batches(10, at_once=250, calls=7)
    run = replace(RUN, sampled=(few, few, few))
    assert run.seconds(network, MACHINE, 1)["sampling"] == pytest.approx(3 * 7 * 100 * 1e-6)


def test_guidance_doubles_the_computing():
    plain, doubled = (
        Batches(10, at_once=250, calls=7, doubled=twice).seconds(NETWORK, MACHINE, 1) for twice in (False, True)
    )
    assert plain == pytest.approx(10 * 7 * 1e9 / 5e11) and doubled == 2 * plain


def test_the_networks_have_their_known_sizes():
    cifar, dit = networks()
    assert cifar.parameters == pytest.approx(35.8e6, rel=0.01) and cifar.forward_flops == pytest.approx(
        12.4e9, rel=0.01
    )
    assert dit.forward_flops == pytest.approx(2 * 118.6e9, rel=0.05), "Table 4 of the paper, in multiply-adds"


def test_the_priors_of_a_method_are_part_of_its_work():
    passes = {method: sum(rows.passes for rows in run.sampled) for method, run in runs().items()}
    plain = passes["safemax"]
    assert passes["finetune"] == plain == 100 * 3 * (9_950 + 5 * 280), "5 000 of 90 classes are 55 of each"
    assert passes["esd"] == plain + 500 * 10 * 100
    assert passes["selective_amnesia"] == plain + (500 * 90 + 500) * 100 + 3 * 500 * 32


@pytest.mark.parametrize("option", [{"mfu": 2}, {"mfu": 0}, {"launch": -1}, {"price": "abc"}, {"peak": None}])
def test_an_assumption_that_makes_no_sense_is_refused(option, tmp_path):
    with pytest.raises(UserError, match="give a number above 0"):
        main(**option, folder=str(tmp_path))


def test_the_study_costs_more_gpu_hours_the_more_gpus_share_a_run(tmp_path):
    main(folder=str(tmp_path))
    rows = next(iter(json.loads((tmp_path / "scaling.json").read_text())["tables"].values()))
    for network in {row["network"] for row in rows}:
        shared = [row["GPU-hours"] for row in rows if row["network"] == network]
        apart = [row["GPU-hours (a GPU per run)"] for row in rows if row["network"] == network]
        assert shared == sorted(shared) and shared[0] == pytest.approx(apart[0]) and len(set(apart)) == 1


def test_what_one_rank_measures(tmp_path):
    measure("unet_digits", batch=4, devices=1, steps=2, out=str(tmp_path / "one.json"))
    found = json.loads((tmp_path / "one.json").read_text())
    assert len(found["step"]) == 2 and min(found["step"]) > 0 and found["exchange"] == []
    assert found["exchanged_bytes"] == 4 * found["parameters"] and min(found["sampling"]) > 0
    assert 12 * found["parameters"] < found["checkpoint_bytes"] < 13 * found["parameters"]
