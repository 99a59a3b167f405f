# make run     the main job on the embedded default: a work queue, real processes, the real service
# make test    every test, on a real HTCondor too
# make check   format, lint, types, fast tests: seconds
# make bench   the benchmarks
# make docs    the generated part of the documentation

VENV ?= .venv
PYTHON ?= python3
export PYTHON
BIN := $(VENV)/bin
CODE := apf_elastic backends glidein wrappers configs tests benchmarks setup.py
ARGS ?=
SETUP := $(if $(findstring --htcondor,$(ARGS)),$(VENV)/.htcondor,$(VENV)/.core)

.PHONY: run test check format bench docs clean

run: $(SETUP)
	@$(BIN)/python -m apf_elastic.demo $(ARGS)

test: $(VENV)/.test
	@$(BIN)/python -m pytest -n 4 --dist loadfile $(ARGS)

check: $(VENV)/.test
	@$(BIN)/ruff format --check --quiet $(CODE)
	@$(BIN)/ruff check --quiet $(CODE)
	@$(BIN)/mypy -p apf_elastic
	@HYPOTHESIS_PROFILE=few $(BIN)/python -m pytest -q -m "not real and not slow" -n 2 $(ARGS)

format: $(VENV)/.test
	@$(BIN)/ruff format --quiet $(CODE)
	@$(BIN)/ruff check --quiet --fix $(CODE)

bench: $(VENV)/.test
	@$(BIN)/python -m benchmarks $(ARGS)

docs: $(VENV)/.test
	@$(BIN)/python -m apf_elastic.config.reference

$(VENV)/.core: setup.py pyproject.toml tools/venv.sh
	@tools/venv.sh $(VENV) $@ -e .

$(VENV)/.htcondor: setup.py pyproject.toml tools/venv.sh
	@tools/venv.sh $(VENV) $@ -e '.[htcondor]'

$(VENV)/.test: setup.py pyproject.toml tools/venv.sh requirements-test.lock
	@tools/venv.sh $(VENV) $@ -r requirements-test.lock -e .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
