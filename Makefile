# `make` alone lists the targets. Everything runs in .venv, which the first target that needs it sets up.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
PROFILE ?= demo
# GNU make splits its words at spaces. So paths are resolved and quoted by the shell, and no function for words sees one.
quoted = '$(subst ','\'',$(1))'
absolute = $(shell realpath -ms -- $(call quoted,$(1)))
shell_word = $(shell printf %q $(call quoted,$(1)))
# A name in params/, or a file, whose path is made absolute like EMLIB_RUNS_DIR below; in the shell's quotes from here on.
# Snakemake's jobs read it from the environment. What is given as an argument of make is changed only by `override`.
export EMLIB_PROFILE EMLIB_ONLY
override EMLIB_PROFILE := $(if $(filter %.yaml %.yml,$(lastword $(PROFILE))),$(call absolute,$(PROFILE)),$(PROFILE))
override EMLIB_ONLY := $(ONLY)
override PROFILE := $(call shell_word,$(EMLIB_PROFILE))
# Where jobs run: local, slurm, kubernetes, or a folder with your own Snakemake profile (workflow/README.md).
EXECUTOR ?= local
# The number of jobs that may use a paid judge at once.
JUDGES ?= 4
CORES := $(shell $(PYTHON) -I emlib/core/machine.py 2>/dev/null || echo 1)
# Two notebooks run at once, each with its share of the cores, because small models gain little from more threads. A job
# takes up to 3 GiB of memory.
ifeq ($(EXECUTOR),local)
JOBS ?= $(shell test $(CORES) -ge 2 && echo 2 || echo 1)
export OMP_NUM_THREADS ?= $(shell echo $$(( $(CORES) / $(JOBS) > 0 ? $(CORES) / $(JOBS) : 1 )))
# Each notebook that computes takes one GPU. Without a GPU this limits nothing.
GPUS ?= $(shell n=$$(nvidia-smi -L 2>/dev/null | grep -c GPU || true); test "$$n" -gt 0 && echo $$n || echo $(JOBS))
PLACES := --cores $(JOBS) --resources gpu=$(GPUS) judge=$(JUDGES)
else
JOBS ?= 40
PLACES := --jobs $(JOBS) --resources judge=$(JUDGES)
endif
VENV := .venv
# The version of uv that resolves the pins of the GPU packages; a test reads it as well.
UV := 0.13.9
BIN := $(VENV)/bin
# The packages to install: gpu if the driver lists a GPU, else cpu. DEVICE=cpu installs the smaller ones in any case.
DEVICE ?= $(shell nvidia-smi -L 2>/dev/null | grep -q GPU && echo gpu || echo cpu)
PINS := requirements/$(DEVICE).txt requirements/model.txt
STAMP := $(VENV)/installed-$(shell cat $(PINS) pyproject.toml | sha256sum | cut -c1-16)
# Absolute, because notebooks run in other folders.
export EMLIB_RUNS_DIR
override EMLIB_RUNS_DIR := $(call absolute,$(or $(EMLIB_RUNS_DIR),runs))
$(foreach name,EMLIB_DATA_DIR EMLIB_CACHE_DIR,$(if $($(name)),$(eval export $(name))$(eval override $(name) := $$(call absolute,$$($(name))))))
# The folder of results, in the shell's quotes.
RESULTS := $(call shell_word,$(EMLIB_RUNS_DIR)/$(shell $(PYTHON) -I emlib/core/paths.py $(PROFILE)))
EXECUTION := $(call shell_word,$(if $(findstring /,$(EXECUTOR)),$(EXECUTOR),workflow/profiles/$(EXECUTOR)))
# If an executor transfers files through a storage, the storage is the folder of results.
STORAGE := $(if $(shell grep -s '^default-storage-provider' $(EXECUTION)/config.yaml),--default-storage-prefix $(RESULTS))
SNAKEMAKE := $(BIN)/snakemake --snakefile Snakefile --directory $(RESULTS) $(PLACES) --workflow-profile $(EXECUTION) $(STORAGE) \
	--rerun-triggers params input --rerun-incomplete --nolock --keep-going

# It refuses an invalid profile, shows a line for each notebook that ends, lets no job run on without this make, and
# ends with where the results are, or what failed.
WATCH := $(BIN)/python -m emlib.workflow.watch $(PROFILE) $(if $(ONLY),$(call quoted,$(ONLY))) --

# A profile's plugins are code, which runs only with PLUGINS=yes (emlib/core/plugins.py).
export PLUGINS VERBOSE

.PHONY: help setup test torture check check-data reproduce plan status merge report figures lab bench docs readme pins gpupins vllm panel panel-env clean

help:
	@grep -hE '^(#@|[a-z-]+:.*## )' $(MAKEFILE_LIST) | sed -E 's/^#@ (.*)/\n\1:/; s/^([a-z-]+):.*## /  \1\t/' | expand -t 14
	@echo; echo "PROFILE=$(PROFILE) of: $(basename $(notdir $(filter-out %/sources.yaml %/datasets.yaml %/models.yaml %/throughput.yaml %/prices.yaml,$(wildcard params/*.yaml params/*.yml))))"

#@ Run a study
setup: $(STAMP) ## install everything into .venv

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"emlib needs Python 3.11 or newer, and this is {sys.version.split()[0]}. Name one: make PYTHON=python3.12 ...")'
	@echo "Setting up $(VENV) (once, some minutes) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/$(DEVICE).txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/model.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@rm -f $(VENV)/installed-*; touch $(STAMP)

vllm: ## install vLLM into a separate environment, .venv-vllm, to sample answers and score rows with it (some 10 GB)
	@test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	@.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/vllm.txt

# The environment of inspect_ai, whose pins exclude some of ours; EMLIB_PANEL names the Python of another one.
PANEL := .venv-panel
PANEL_STAMP := $(PANEL)/installed-$(shell sha256sum < requirements/panel.txt | cut -c1-16)
panel-env: $(if $(EMLIB_PANEL),,$(PANEL_STAMP))

$(PANEL_STAMP):
	@echo "Setting up $(PANEL) (once, some minutes) ..."
	@test -x $(PANEL)/bin/python || $(PYTHON) -m venv $(PANEL)
	@$(PANEL)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/panel.txt
	@rm -f $(PANEL)/installed-*; touch $@

# SET="seeds=[0,1] training.epochs=2" overrides values and makes another study, with a separate name and folder. Every
# target that reads PROFILE is in this block, so that none acts on the plain study instead.
ifneq ($(SET),)
reproduce plan status panel report docs clean: setup
	@study="$$($(BIN)/python -m emlib.study.overrides $(PROFILE) "$$SET")" && echo "PROFILE=$$study" && \
		exec $(MAKE) --no-print-directory $@ PROFILE="$$study" SET=
else
reproduce: setup ## run the study: every notebook of PROFILE, in order, with what each found; VERBOSE=1 shows every step
	@$(WATCH) $(SNAKEMAKE)

plan: setup ## show what PROFILE would cost; with VERBOSE=1 every run, and which notebooks would run and why
	@$(if $(filter 1,$(VERBOSE)),$(BIN)/python -m emlib.workflow.graph $(PROFILE) && $(SNAKEMAKE) --quiet rules host --dry-run)
	@$(BIN)/python -m emlib.report.estimate $(PROFILE)

status: setup ## show which jobs of PROFILE are done, running, failed and waiting; GPU-hours and money spent
	@$(BIN)/python -m emlib.workflow.status $(PROFILE)

merge: setup ## merge FROM=, the runs/ of another machine; it overwrites nothing and refuses conflicts
	@$(BIN)/python -m emlib.workflow.merge '$(FROM)'

panel: setup panel-env ## evaluate PROFILE's trained models on standard benchmarks: TASKS=mmlu_0_shot,truthfulqa (LIMIT=, METHODS=)
	@$(BIN)/python -m emlib.report.panel $(PROFILE) --tasks="$${TASKS:-}" --limit="$${LIMIT:-}" --methods="$${METHODS:-}"

#@ Look at results
report: setup ## write everything that PROFILE has run so far as HTML pages, which need no network
	@$(BIN)/python -m emlib.report.book $(PROFILE)

docs: setup ## write the report of PROFILE into docs/<profile>/, for readers without the study
	@$(BIN)/python -m emlib.report.book $(PROFILE) docs/$$($(PYTHON) -I emlib/core/paths.py $(PROFILE))

clean: setup ## remove executed notebooks, tables and figures of PROFILE; or WHAT=adapters, answers, verdicts if named
	@$(BIN)/python -m emlib.workflow.cleaning $(PROFILE) $(WHAT)

endif

figures: setup ## draw figures/ again: the paper's (with its tables) from its printed numbers, the demo's from the tables there
	@$(BIN)/python -m emlib.report.paper.draw
	@$(BIN)/python -m emlib.report.redraw

lab: setup ## open JupyterLab on the notebooks
	@env -u JUPYTER_PATH JUPYTER_PREFER_ENV_PATH=1 $(BIN)/jupyter lab --notebook-dir=notebooks

#@ Look at your own data
check-data: setup ## check FILE, your own data (PROMPT=, RESPONSE=, SYSTEM=, MODEL=, JSON=1), before anything is trained
	@$(BIN)/python -m emlib.report.check_data --file="$${FILE:-}" --prompt="$${PROMPT:-}" --response="$${RESPONSE:-}" \
		--system="$${SYSTEM:-}" --encoding="$${ENCODING:-}" --delimiter="$${DELIMITER:-}" --model="$${MODEL:-}" --json="$${JSON:-}"

#@ Develop
# One process more than cores, because some tests wait for other processes; each has one thread. The tests of a file run
# in one process, because they share an expensive setup.
SHARED := -n $(shell echo $$(( $(CORES) + 1 ))) --dist loadfile --no-loadscope-reorder
test check torture: export OMP_NUM_THREADS := 1
torture: export EMLIB_TORTURE := 1

# The types are checked beside the first tests, because mypy keeps one core busy for a minute.
test: setup ## lint, types, all tests
	@$(BIN)/ruff check .
	@$(BIN)/mypy & types=$$!; $(BIN)/python -m pytest $(SHARED) || failed=$$?; wait $$types; exit $${failed:-0}

torture: setup ## every test that attacks; then kill the tiny study 30 times (KILLS=) and compare its results; an hour
	@$(BIN)/python -m pytest $(SHARED) $$($(BIN)/python -m tests.torture attacks)
	@$(BIN)/python -m tests.torture tiny $(or $(KILLS),30)

check: setup ## lint, types, and the fast tests
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest $(SHARED) -m "not slow"

bench: setup ## measure speed and memory; results in benchmarks/results/
	@$(BIN)/python benchmarks/run.py

readme: ## put the results of a finished demo into README.md
	@$(BIN)/python -m emlib.report.costs_page
	@$(BIN)/python -m emlib.report.readme

pins: ## rewrite requirements/cpu.txt from requirements.txt (with the oldest supported Python)
	@rm -rf .venv-pins; $(PYTHON) -m venv .venv-pins
	@.venv-pins/bin/python -m pip install --quiet -r requirements.txt
	@{ echo "# Written by 'make pins' from requirements.txt: everything, at the version that was tested."; \
	   .venv-pins/bin/python -m pip freeze --all --exclude pip; } | sed -E 's/(==[^+]*)\+.*/\1/' > requirements/cpu.txt
	@rm -rf .venv-pins

# uv resolves from the packages' metadata alone, where pip would download gigabytes.
UV_COMPILE := .venv-pins/bin/uv pip compile --quiet --no-header --no-annotate --python-version 3.11 --python-platform x86_64-manylinux_2_28
gpupins: ## rewrite requirements/gpu.txt, vllm.txt and panel.txt, with the versions of cpu.txt for shared packages
	@rm -rf .venv-pins; $(PYTHON) -m venv .venv-pins
	@.venv-pins/bin/python -m pip install --quiet 'uv==$(UV)'
	@grep -vE '^torch==' requirements.txt | cat - requirements/gpu.in > .venv-pins/gpu.in
	@grep -vE '^(#|torch==)' requirements/cpu.txt > .venv-pins/same.txt
	@{ echo "# Written by 'make gpupins' from requirements.txt and gpu.in; resolved, and not yet run on a GPU."; \
	   $(UV_COMPILE) .venv-pins/gpu.in -c .venv-pins/same.txt; } > requirements/gpu.txt
	@{ echo "# Written by 'make gpupins' from vllm.in; resolved, and not yet run on a GPU."; \
	   $(UV_COMPILE) requirements/vllm.in; } > requirements/vllm.txt
	@{ echo "# Written by 'make gpupins' from panel.in."; $(UV_COMPILE) requirements/panel.in; } > requirements/panel.txt
	@rm -rf .venv-pins
