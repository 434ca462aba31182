# make demo   install into .venv and run the main job on a few photographs
# make test   install into .venv and run the tests
# make test-all  also the slow ones, and those of Ray, which it installs
# make lint   the checks that CI and pre-commit run
# make fuzz   100,000 damaged and forged files through decode and info
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Photographs and the LPIPS backbone, where they are at hand; tests that need them are skipped elsewhere.
ifeq ($(origin LATENT_CODEC_SHARED), undefined)
ifneq ($(wildcard ../shared/data),)
export LATENT_CODEC_SHARED := $(abspath ../shared)
endif
endif

.PHONY: install demo test test-all lint fuzz clean

install: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 15) else f"found Python {v[0]}.{v[1]}, expected 3.11 to 3.14: make PYTHON=python3.12 ...")'
	@echo "installing into $(VENV); torch is large, this takes a few minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --quiet --editable '.[dev]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/latent-codec-eval demo -o demo-output

test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

test-all: $(STAMP)
	$(BIN)/python -m pip install --quiet --quiet --editable '.[dev,ray]'
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile -m "slow or not slow"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy codec

fuzz: $(STAMP)
	$(BIN)/python -m tests.fuzz --count 100000

clean:
	rm -rf $(VENV) demo-output build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
