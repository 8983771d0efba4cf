# labkit. `make` alone lists what can be made; HW picks a profile from params/hardware.

HW      ?= cpu
VENV    ?= .venv
BIN     := $(VENV)/bin
READY   := $(VENV)/ready
PYTHON  ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
REPORTS := $(patsubst %.ipynb,%,$(shell cd notebooks && ls | grep -E '^[0-9]{2}_.*\.ipynb$$' | sed -E 's/^[0-9]{2}_//'))
WINGS   := $(filter-out claims,$(REPORTS))
BOARD   := $(if $(LABKIT_OUTPUT),$(LABKIT_OUTPUT)/,)runs/aim
TRACK   ?=
FRESH   ?=
ANYWHERE ?=
UNCOMMITTED ?=
LAB     ?=
# What git keeps of a notebook, whatever JupyterLab saves: sources, and the outputs that tests compare.
STRIP   := $(BIN)/python -m labkit.workflow.sources
# What labkit.workflow.kernels says that a kernel should find.
KERNEL  := JUPYTER_PREFER_ENV_PATH=1 MALLOC_TRIM_THRESHOLD_=2000000000 MALLOC_MMAP_THRESHOLD_=1000000000 \
           PYDEVD_DISABLE_FILE_VALIDATION=1 TOKENIZERS_PARALLELISM=false
OUT     := $(if $(LABKIT_OUTPUT),$(LABKIT_OUTPUT)/,)runs/$(HW)
PROFILES := $(sort $(patsubst params/hardware/%.yaml,%,$(wildcard params/hardware/*.yaml)))
# Reports published on HW: those with committed cells are rendered, those recorded before cells were kept judged again.
# Cells alone are those of a run that goes on.
ON_RECORD := results.json
RENDERED := $(strip $(foreach r,$(WINGS),$(if $(wildcard $(addprefix figures/$(HW)/$(r)/,$(ON_RECORD))),$(r))))
SOURCES := labkit tests benchmarks notebooks

ifeq ($(filter $(HW),$(PROFILES)),)
$(error unknown profile HW=$(HW); the profiles are: $(PROFILES))
endif

export PYTHONUNBUFFERED = 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup figures render readme evidence $(REPORTS) $(subst _,-,$(REPORTS)) test nbval lab aim lint format status report clean distclean

help:  ## list the targets
	@echo "make TARGET [HW=profile] [FRESH=1: leave committed cells aside] [ANYWHERE=1: take those of other processors, too]   (profiles: $(PROFILES))"
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 16
	@echo "  REPORT        one report: $(REPORTS)"

setup: $(READY)  ## create .venv and install the locked versions

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" && $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "labkit needs Python 3.11 or newer; found: $(PYTHON). Set PYTHON=/path/to/python3.11"; exit 2; }
	@echo "installing the locked versions into $(VENV) (about two minutes)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[reports,lab,track,dev]'
	install -D -m 644 notebooks/jupyterlab_settings.json $(VENV)/share/jupyter/lab/settings/overrides.json
	install -D -m 644 notebooks/jupyter_server_config.json $(VENV)/etc/jupyter/jupyter_server_config.json
	@git config filter.labkit-notebook.clean '$(STRIP)' || echo "no git repository here: notebooks are kept as they are saved"
	@touch $@

figures: $(WINGS) claims  ## run every notebook that is not up to date and publish figures/HW

# A report also goes by its name with dashes. One rule a report: its stamp depends on the notebook, its science, the profile and the labkit modules it imports. The
# exact list is written beside the stamp by each run.
define REPORT_RULES
$(sort $(1) $(subst _,-,$(1))): $(OUT)/$(1)/done
$(OUT)/$(1)/done: notebooks/$(2) params/$(1).yaml params/hardware/$(HW).yaml | $(READY)
	$(BIN)/labkit run $(1) --hw $(HW)$(if $(TRACK), --track $(TRACK))$(if $(FRESH), --fresh)$(if $(ANYWHERE), --anywhere)$(if $(UNCOMMITTED), --uncommitted)
endef
$(foreach r,$(REPORTS),$(eval $(call REPORT_RULES,$(r),$(notdir $(wildcard notebooks/*_$(r).ipynb)))))
$(OUT)/claims/done: $(foreach w,$(WINGS),$(OUT)/$(w)/done)
-include $(foreach r,$(REPORTS),$(OUT)/$(r)/done.d)

render: $(READY)  ## make published figures again from committed cells, or judge what has none; trains nothing
	@$(if $(RENDERED),:,echo "nothing is on record for $(HW); profiles with something: $(sort $(notdir $(patsubst %/,%,$(dir $(patsubst %/,%,$(dir $(wildcard $(addprefix figures/*/*/,$(ON_RECORD)))))))))" && exit 2)
	$(if $(RENDERED),+@$(MAKE) --no-print-directory -j2 $(addprefix render-,$(RENDERED)))
	$(if $(wildcard figures/$(HW)/claims/claims.csv),$(BIN)/labkit render claims --hw $(HW)$(if $(UNCOMMITTED), --uncommitted))

render-%: $(READY)
	$(BIN)/labkit render $* --hw $(HW)$(if $(UNCOMMITTED), --uncommitted)

readme: $(READY)  ## the parts of README.md that say what came out, from what is published
	$(BIN)/python -m labkit.workflow.readme

evidence: $(READY)  ## hold the code against evidence.lock
	$(BIN)/labkit evidence check

test: $(READY)  ## everything that must hold, notebooks included
	$(BIN)/python -m pytest

nbval: $(READY)  ## only the notebooks, at their own defaults
	$(BIN)/python -m pytest tests/notebooks

lab: $(READY)  ## open JupyterLab on the ledger; LAB=--no-browser and the like are passed on
	$(KERNEL) $(BIN)/jupyter lab --LabApp.default_url=/lab/tree/notebooks/00_claims.ipynb $(LAB)

aim: $(READY)  ## serve the board of tracked runs on 127.0.0.1:53800
	mkdir -p $(BOARD)
	$(BIN)/aim up --yes --host 127.0.0.1 --port 53800 --workers 1 --repo $(BOARD)

lint: $(READY)  ## check style without changing anything
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(STRIP) --verify $(wildcard notebooks/*.ipynb)

format: $(READY)  ## fix style and strip the notebooks
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)
	$(STRIP) $(wildcard notebooks/*.ipynb)

status: $(READY)  ## what is stale on HW, and why
	$(BIN)/labkit status --hw $(HW)

report: figures  ## the executed notebooks as self-contained HTML in runs/HW/html
	$(BIN)/labkit html --hw $(HW)

clean:  ## remove runs, caches and build leftovers; published figures stay
	rm -rf runs build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find labkit tests benchmarks -name __pycache__ -type d -exec rm -rf {} +

distclean: clean  ## clean, and remove .venv
	rm -rf $(VENV)
	@git config --unset filter.labkit-notebook.clean || true
