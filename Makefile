# All targets need only Python 3.11 or newer. The first call creates .venv.
PYTHON ?= python3

.PHONY: demo report test bench docs lint format weights

.venv/ready: requirements.txt
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --progress-bar on -r requirements.txt
	touch $@

demo: .venv/ready            ## forget a digit in under two minutes: a table, metrics.json and a picture
	.venv/bin/python -m safemax_pl.fit experiment=digits_forget1

RUNS ?= runs
report: .venv/ready          ## compare finished runs: runs/report/report.html; RUNS="runs/a runs/b" selects some
	.venv/bin/python -m safemax_pl.report $(RUNS)

WITH_COVERAGE = --cov=safemax_pl --cov-report=term-missing:skip-covered --cov-fail-under=95
WORKERS = $(if $(shell command -v slurmctld),3,2)  # a third one, as one mostly waits for SLURM
test: .venv/ready            ## the test suite; COVERAGE=1 adds line coverage
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(if $(COVERAGE),$(WITH_COVERAGE))

bench: .venv/ready           ## all benchmarks: runs/benchmarks/tables.md; 15 minutes on two idle cores
	.venv/bin/python -m benchmarks

docs: .venv/ready            ## build the documentation into site/; a broken link or a page outside the navigation is an error
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict

format: .venv/ready
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

lint: .venv/ready
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy safemax_pl benchmarks
	bash -n .ci/run

weights: .venv/ready         ## train all models in weights/digits again; half an hour on two cores
	.venv/bin/python -m safemax_pl.fit_classifier experiment=digits_classifier
	.venv/bin/python -m safemax_pl.fit_classifier experiment=digits_second_classifier
	.venv/bin/python -m safemax_pl.publish runs/digits_classifier weights/digits/classifier precision=float32
	.venv/bin/python -m safemax_pl.publish runs/digits_second_classifier weights/digits/second_classifier precision=float32
	.venv/bin/python -m safemax_pl.fit experiment=digits_pretrain
	.venv/bin/python -m safemax_pl.publish runs/digits_pretrain weights/digits precision=float32
	.venv/bin/python -m safemax_pl.fit experiment=digits_methods name=digits_without_3 unlearner=retrain data.forget_classes=[3] \
	  data.retain_batch_size=64 optimizer.lr=1e-3 trainer.max_steps=2000 trainer.val_check_interval=1000
	.venv/bin/python -m safemax_pl.publish runs/digits_without_3 weights/digits/without_3 precision=float32
