PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
CELLS  := data/solar-cells
RUN    := runs/quickstart
PHOTOS := data/photographs
TORUS  := runs/torus_cpu
# make study ARCHIVE=cifar10.tar.xz: images and runs of docs/study.md; the archive is needed once.
FOLDER  ?= data/study
ARCHIVE ?=

# make wheels WHAT=".[medical]": what a machine without a network installs, see docs/launch.md.
WHAT   ?= .

.PHONY: quickstart torus study test test-all lint wheels clean

quickstart: $(VENV)/.installed
	images=$$($(BIN)/python -m data_pipeline.demo.cells $(CELLS).csv) && \
	$(BIN)/python -m data_pipeline pack "$$images" $(CELLS) --labels $(CELLS).csv \
		--image-column image --label-column defect --val-fraction 0.15 --test-fraction 0.15 --group-duplicates
	$(BIN)/python -m pretrain --config configs/quickstart.yaml
	$(BIN)/python -m eval_suite $(RUN) --train $(CELLS)/train --val $(CELLS)/val --test $(CELLS)/test

torus: $(VENV)/.installed
	$(BIN)/python -m data_pipeline.demo.photographs $(PHOTOS)-patches
	$(BIN)/python -m data_pipeline pack $(PHOTOS)-patches $(PHOTOS) --labels $(PHOTOS)-patches.csv \
		--image-column image --label-column photograph --split-column set --allow-duplicates
	$(BIN)/python -m pretrain --config configs/torus_cpu.yaml data.path=$(PHOTOS)/train steps=1500 \
		objective.content_weight=0.15
	$(BIN)/python -m eval_suite certificate $(TORUS) --data $(PHOTOS)/test

study: $(VENV)/.installed
	$(if $(ARCHIVE),test -d $(FOLDER)/cifar/shards || $(BIN)/python -m studies.torus.cifar $(ARCHIVE) $(FOLDER)/cifar)
	$(BIN)/python -m studies.geometry.study $(FOLDER)
	$(BIN)/python -m studies.geometry.tables

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The long ones too.
test-all: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "nightly or not nightly"

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
# Found here, a test file that cannot be imported does not cost a whole run of the tests.
	@found=$$($(BIN)/python -m pytest --collect-only -qq -m "nightly or not nightly") || { echo "$$found"; exit 1; }

# Installed versions are the tested ones; drop the constraint to try newer.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install -qq --constraint constraints.txt --editable ".[demo,dev]"
	touch $@

wheels:
	$(PYTHON) -m pip wheel --quiet --constraint constraints.txt --wheel-dir wheels "$(WHAT)"
	@echo "wheels/ is complete; copy it, then: python3 -m venv .venv && .venv/bin/pip install --no-index --find-links wheels isotorus"

clean:
	rm -rf $(VENV) wheels build dist *.egg-info
