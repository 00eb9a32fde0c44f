# make train-sentiment | train-topic | train-<your task> | test | lint | dashboard
# make baselines [TASKS="sentiment topic"] [ENCODER=/path/to/folder] runs every baseline that this machine can.
# make compare sets the runs side by side: tables, paired tests, runs/report.html (ARGS="--readme README.md --wandb").
# make ablations [MODEL=tiny] [SEEDS=1] asks the paper's open questions of a model and writes docs/ablations.md; stopped,
# the same command goes on.
# make torture tries faults of every kind and says what was lost; make mutants breaks the code and looks for a red test.
# make dependencies lists the licences of everything that is installed, and the vulnerabilities that are known of it.
# make audit TASK=topic looks for repeats, leaks and contradictions in a task's rows.
# make serve RUN=runs/sentiment/tiny [ARGS="--port 8000"] answers over HTTP with a trained run.
# make bench measures training and scoring against the stock ways on this machine's CPU, 11 minutes; on a GPU run
# .venv/bin/python benchmarks/gpu.py
# MODEL=auto looks at the machine; MODEL=qwen3-0.6b takes configs/qwen3-0.6b.yaml. ARGS="--learning_rate 1e-4" is
# passed on, by train, compare, ablations, serve, bench and torture.

.DEFAULT_GOAL := help
PYTHON ?= python3
MODEL ?= auto
ARGS ?=
TASKS ?= sentiment topic
ENCODER ?=
SEEDS ?= 1
TASK ?= sentiment
RUN ?= runs/sentiment/tiny
BIN := .venv/bin
READY := .venv/installed

.PHONY: help install ablations audit baselines bench compare serve test torture mutants lint dashboard dependencies

help:
	@sed -n '1,/^$$/s/^# //p' Makefile

install: $(READY)

train-%: $(READY)
	@recipe=$$($(BIN)/python -m fintune.machine $(MODEL)) && \
		$(BIN)/python train_sft.py data/$*.yaml $$recipe $(ARGS)

baselines: $(READY)
	@$(BIN)/python baselines.py $(TASKS) $(if $(ENCODER),--encoder "$(ENCODER)")

compare: $(READY)
	@$(BIN)/python compare.py $(ARGS)

ablations: $(READY)
	@$(BIN)/python ablations.py --model $(MODEL) --seeds $(SEEDS) $(ARGS); status=$$?; [ $$status -gt 2 ] || \
		$(BIN)/python ablations.py --report $(ARGS) && exit $$status

audit: $(READY)
	@$(BIN)/python audit.py data/$(TASK).yaml

serve: $(READY)
	$(BIN)/python serve.py "$(RUN)" $(ARGS)

bench: $(READY)
	$(BIN)/python benchmarks/cpu.py $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest tests

torture: $(READY)
	$(BIN)/python tests/torture.py $(ARGS)

mutants: $(READY)
	$(BIN)/python tests/mutants.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

dependencies: $(READY)
	@$(PYTHON) -m venv .venv/audit
	@.venv/audit/bin/pip install --quiet --disable-pip-version-check pip-audit==2.10.1 pip-licenses==5.5.5
	@.venv/audit/bin/pip-licenses --python $(BIN)/python --format=markdown --output-file docs/licences.md
	@.venv/audit/bin/pip-audit --progress-spinner off --path \
		$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

dashboard: $(READY)
	@$(BIN)/python -m fintune.tracking
	$(BIN)/wandb leet wandb

# torch comes first and alone: pip then keeps that build, where it would else take one with gigabytes of CUDA
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
