# `make` alone lists the targets. MODEL=auto looks at the machine; MODEL=qwen3-0.6b takes configs/qwen3-0.6b.yaml.
# ARGS="--learning_rate 1e-4" is passed on by train, compare, ablations, serve, bench and faults.

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

.PHONY: help install ablations audit baselines bench compare results serve test faults mutants lint wheel dashboard dependencies

help: ## list the targets
	@sed -n 's/^\([a-z%-]*\):.*## \(.*\)/\1|\2/p' Makefile | sed 's/%/<task>/' | while IFS='|' read -r target what; do \
		printf '  make %-13s %s\n' "$$target" "$$what"; done

install: $(READY) ## create .venv with the tested versions; every target does it by itself

train-%: $(READY) ## train a task, such as train-sentiment [MODEL=auto] [ARGS="..."]
	@recipe=$$($(BIN)/python -m fintune.machine $(MODEL)) && \
		$(BIN)/python train_sft.py data/$*.yaml $$recipe $(ARGS)

baselines: $(READY) ## run each baseline that this machine can [TASKS="sentiment topic"] [ENCODER=dir]
	@$(BIN)/fintune baselines $(TASKS) $(if $(ENCODER),--encoder "$(ENCODER)")

compare: $(READY) ## compare the runs: tables, paired tests, runs/report.html [ARGS="--wandb"]
	@$(BIN)/fintune compare $(ARGS)

results: $(READY) ## write the README's table and docs/results.md from the runs
	@$(BIN)/fintune compare --readme README.md --results docs/results.md

ablations: $(READY) ## answer the paper's open questions in docs/ablations.md [MODEL=auto] [SEEDS=1]
	@$(BIN)/fintune ablations --model $(MODEL) --seeds $(SEEDS) $(ARGS); status=$$?; [ $$status -gt 1 ] || \
		$(BIN)/fintune ablations --report --model $(MODEL) $(ARGS) && exit $$status

audit: $(READY) ## look for repeats, leaks and contradictions in a task's rows [TASK=sentiment]
	@$(BIN)/fintune audit data/$(TASK).yaml

serve: $(READY) ## answer over HTTP with a run [RUN=runs/sentiment/tiny] [ARGS="--port 8000"]
	$(BIN)/fintune serve "$(RUN)" $(ARGS)

bench: $(READY) ## measure training and scoring on this CPU; on a GPU see benchmarks/gpu.py
	$(BIN)/python benchmarks/cpu.py $(ARGS)

test: $(READY) ## run the tests
	$(BIN)/python -m pytest tests

faults: $(READY) ## inject faults of every kind and report what is lost [ARGS="--only headlines"]
	$(BIN)/python tests/faults/run.py $(ARGS)

mutants: $(READY) ## break the code in known places and look for a red test
	$(BIN)/python tests/mutants.py

lint: $(READY) ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

wheel: $(READY) ## build dist/*.whl and try the command without the checkout
	@BIN=$(BIN) PYTHON=$(PYTHON) .ci/wheel

dependencies: $(READY) ## list the licences and the known vulnerabilities of what is installed
	@$(PYTHON) -m venv .venv/audit
	@.venv/audit/bin/pip install --quiet --disable-pip-version-check pip-audit==2.10.1 pip-licenses==5.5.5
	@.venv/audit/bin/pip-licenses --python $(BIN)/python --format=markdown --output-file docs/licences.md
	@sed -i '/^| *|/d' docs/licences.md  # cleanlab's metadata holds the whole text of its licence
	@.venv/audit/bin/pip-audit --progress-spinner off --path \
		$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

dashboard: $(READY) ## list the runs by name and accuracy, then show their curves in the terminal
	@$(BIN)/python -m fintune.results.publish
	$(BIN)/wandb leet wandb

# torch comes first and alone: pip then keeps that build, where it would else take one with gigabytes of CUDA
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
