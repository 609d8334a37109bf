# `make` alone tells what there is. Everything runs in .venv, which the first target that needs it sets up.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
PROFILE ?= demo
# A name in params/, or a file: absolute, as EMLIB_RUNS_DIR below.
override PROFILE := $(if $(filter %.yaml,$(PROFILE)),$(abspath $(PROFILE)),$(PROFILE))
# Where jobs run: local, slurm, kubernetes, or a folder with a Snakemake profile of one's own (workflow/README.md).
EXECUTOR ?= local
# Jobs at once that ask a judge which costs money.
JUDGES ?= 4
CORES := $(shell env -u OMP_NUM_THREADS nproc 2>/dev/null || echo 1)
# Two notebooks at once, each with its share of the cores: small models gain more from that than from threads. A job
# takes up to 3 GiB of memory.
ifeq ($(EXECUTOR),local)
JOBS ?= $(shell test $(CORES) -ge 2 && echo 2 || echo 1)
export OMP_NUM_THREADS ?= $(shell echo $$(( $(CORES) / $(JOBS) > 0 ? $(CORES) / $(JOBS) : 1 )))
# Notebooks that compute take a GPU each; without one there are as many places as jobs.
GPUS ?= $(shell n=$$(nvidia-smi -L 2>/dev/null | grep -c GPU || true); test "$$n" -gt 0 && echo $$n || echo $(JOBS))
PLACES := --cores $(JOBS) --resources gpu=$(GPUS) judge=$(JUDGES)
else
JOBS ?= 40
PLACES := --jobs $(JOBS) --resources judge=$(JUDGES)
endif
VENV := .venv
# What resolves the pins of a GPU's packages; here, and in a test.
UV := 0.13.9
BIN := $(VENV)/bin
# Which packages: gpu where the driver lists a GPU, else cpu; DEVICE=cpu takes the smaller ones all the same.
DEVICE ?= $(shell nvidia-smi -L 2>/dev/null | grep -q GPU && echo gpu || echo cpu)
PINS := requirements/$(DEVICE).txt requirements/model.txt
STAMP := $(VENV)/installed-$(shell cat $(PINS) pyproject.toml | sha256sum | cut -c1-16)
# Absolute, because notebooks run in folders of their own.
export EMLIB_RUNS_DIR := $(abspath $(or $(EMLIB_RUNS_DIR),runs))
$(foreach name,EMLIB_DATA_DIR EMLIB_CACHE_DIR,$(if $($(name)),$(eval export $(name) := $(abspath $($(name))))))
# Results go by the name that the profile states (emlib/core/paths.py reads it in the same way), else by its file's.
STATED := $(shell sed -nE "s/^name:[ \t]*(['\"]?)([A-Za-z0-9][A-Za-z0-9_.-]*)\1[ \t\r]*(\#.*)?$$/\2/p" '$(if $(filter %.yaml,$(PROFILE)),$(PROFILE),params/$(PROFILE).yaml)' 2>/dev/null | grep -vx null | head -n 1)
RESULTS := $(EMLIB_RUNS_DIR)/$(or $(STATED),$(notdir $(patsubst %.yaml,%,$(patsubst %/profile.yaml,%,$(PROFILE)))))
EXECUTION := $(if $(findstring /,$(EXECUTOR)),$(EXECUTOR),workflow/profiles/$(EXECUTOR))
# Where an executor's files go through a storage, it is the same folder.
STORAGE := $(if $(shell grep -s '^default-storage-provider' $(EXECUTION)/config.yaml),--default-storage-prefix $(RESULTS))
SNAKEMAKE := $(BIN)/snakemake --snakefile Snakefile --directory $(RESULTS) $(PLACES) --config profile=$(PROFILE) $(if $(ONLY),only='$(ONLY)') \
	--workflow-profile $(EXECUTION) $(STORAGE) \
	--rerun-triggers params input --rerun-incomplete --nolock --keep-going

# Plugins of a profile are code, and run only with PLUGINS=yes (emlib/core/plugins.py).
export PLUGINS

.PHONY: help setup test check reproduce plan status merge report figures lab bench readme pins gpupins vllm clean

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14
	@echo; echo "PROFILE=$(PROFILE) of: $(basename $(notdir $(filter-out %/sources.yaml %/datasets.yaml %/models.yaml %/throughput.yaml %/prices.yaml,$(wildcard params/*.yaml))))"

setup: $(STAMP) ## install everything into .venv

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"emlib needs Python 3.11 or newer, and this is {sys.version.split()[0]}. Name one: make PYTHON=python3.12 ...")'
	@echo "Setting up $(VENV) (once, some minutes) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/$(DEVICE).txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/model.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@rm -f $(VENV)/installed-*; touch $(STAMP)

# With SET="seeds=[0,1] training.epochs=2" the study is another one, with a name and a folder of its own.
ifneq ($(SET),)
reproduce plan status: setup
	@study="$$($(BIN)/python -m emlib.study.overrides '$(PROFILE)' "$$SET")" && echo "PROFILE=$$study" && \
		$(MAKE) --no-print-directory $@ PROFILE="$$study" SET=
else
reproduce: setup ## run the study: every notebook of PROFILE, in order; then say where the results lie
	@$(BIN)/python -m emlib.workflow.graph $(PROFILE) $(if $(ONLY),'$(ONLY)')
	@$(SNAKEMAKE) || { $(BIN)/python -m emlib.workflow.status $(PROFILE); exit 1; }
	@$(BIN)/python -m emlib.workflow.result_paths $(PROFILE)

plan: setup ## show what PROFILE would cost, which notebooks would run, and why
	@$(BIN)/python -m emlib.workflow.graph $(PROFILE)
	@$(BIN)/python -m emlib.report.estimate $(PROFILE)
	@$(SNAKEMAKE) --quiet rules host --dry-run

status: setup ## what of PROFILE is done, running, failed and waiting; GPU-hours and money spent
	@$(BIN)/python -m emlib.workflow.status $(PROFILE)

merge: setup ## take over FROM=, the runs/ of another machine: nothing is overwritten, a conflict is refused
	@$(BIN)/python -m emlib.workflow.merge '$(FROM)'

endif

report: setup ## put what PROFILE has run so far into pages of HTML, for reading without a network
	@$(BIN)/python -m emlib.report.book $(PROFILE)

figures: setup ## draw the paper's tables and figures from its own numbers, into figures/published/
	@$(BIN)/python -m emlib.report.paper.draw

lab: setup ## open JupyterLab on the notebooks
	@$(BIN)/jupyter lab --notebook-dir=notebooks

# A process a core and one more, as some tests wait for others' processes; each with one thread. The tests of a file stay
# together, for they share what is dear to set up.
SHARED := -n $(shell echo $$(( $(CORES) + 1 ))) --dist loadfile --no-loadscope-reorder
test check: export OMP_NUM_THREADS := 1

test: setup ## lint, types, all tests
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest $(SHARED)

check: setup ## lint, types, and the tests that take seconds
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest $(SHARED) -m "not slow"

bench: setup ## measure speed and memory; results in benchmarks/results/
	@$(BIN)/python benchmarks/run.py

readme: ## put the results of a finished demo into README.md
	@$(BIN)/python -m emlib.report.readme

pins: ## write requirements/cpu.txt anew from requirements.txt (with the oldest Python that is promised)
	@rm -rf .venv-pins; $(PYTHON) -m venv .venv-pins
	@.venv-pins/bin/python -m pip install --quiet -r requirements.txt
	@{ echo "# Written by 'make pins' from requirements.txt: everything, at the version that was tested."; \
	   .venv-pins/bin/python -m pip freeze --all --exclude pip; } | sed -E 's/(==[^+]*)\+.*/\1/' > requirements/cpu.txt
	@rm -rf .venv-pins

# uv's resolver reads what packages say of themselves and downloads none of them, where pip would fetch gigabytes.
UV_COMPILE := .venv-pins/bin/uv pip compile --quiet --no-header --no-annotate --python-version 3.11 --python-platform x86_64-manylinux_2_28
gpupins: ## write requirements/gpu.txt and vllm.txt anew, at the versions of cpu.txt where both have a package
	@rm -rf .venv-pins; $(PYTHON) -m venv .venv-pins
	@.venv-pins/bin/python -m pip install --quiet 'uv==$(UV)'
	@grep -vE '^torch==' requirements.txt | cat - requirements/gpu.in > .venv-pins/gpu.in
	@grep -vE '^(#|torch==)' requirements/cpu.txt > .venv-pins/same.txt
	@{ echo "# Written by 'make gpupins' from requirements.txt and gpu.in; resolved, and not yet run on a GPU."; \
	   $(UV_COMPILE) .venv-pins/gpu.in -c .venv-pins/same.txt; } > requirements/gpu.txt
	@{ echo "# Written by 'make gpupins' from vllm.in; resolved, and not yet run on a GPU."; \
	   $(UV_COMPILE) requirements/vllm.in; } > requirements/vllm.txt
	@rm -rf .venv-pins

vllm: ## install vLLM into an environment of its own, .venv-vllm: answers and scores are then drawn by it (some 10 GB)
	@test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	@.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/vllm.txt

clean: setup ## remove executed notebooks, tables and figures of PROFILE; its WHAT=adapters, answers, verdicts only if named
	@$(BIN)/python -m emlib.workflow.cleaning $(PROFILE) $(WHAT)
