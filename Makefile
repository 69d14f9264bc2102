# make demo     trains a search agent on this machine's CPU (a few minutes)
# make install  .venv with everything that development needs
# make check    ruff, pyright strict, sizes and arrows
# make test     the tests (no root, no network); what was skipped is said, with why: sandboxes, where this machine cannot isolate
# make smoke    the whole loop in under a minute
# make wheel    the wheel in a new environment: `agentrl demo --smoke` without the clone
# make browser  the pages of `view` and `report` in Chromium
# make engines  .engines: SGLang and vLLM, each in an environment of its own (once; 4.2 GB), and `make test-engines` runs them
# make sandboxes  a Docker engine with gVisor and an image, without a registry (root, if no engine runs); `make test-sandboxes` uses them
# make bench    the benchmarks, one table each; learning studies are apart (STUDIES)

PY := .venv/bin/python
OUT ?= runs/demo
SEED ?= 0

.PHONY: demo install check test smoke wheel browser engines test-engines sandboxes test-sandboxes bench clean

.venv/.demo: pyproject.toml scripts/install.sh
	@scripts/install.sh demo

.venv/.dev: pyproject.toml scripts/install.sh
	@scripts/install.sh dev

demo: .venv/.demo
	@$(PY) -m agentrl_workflows.search_qa.demo --out $(OUT) --seed $(SEED)

install: .venv/.dev

check: .venv/.dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright
	$(PY) -m pytest tests/test_structure.py

test: .venv/.dev
	$(PY) -m pytest -n 2 --dist worksteal -rs

# the whole loop, small: warm start and RL of a few steps, under a minute
smoke: .venv/.dev
	$(PY) -m agentrl_workflows.search_qa.demo --out $${TMPDIR:-/tmp}/agentrl-smoke --fresh --smoke

# the pages of `view` and `report` in a real browser; no skips (Debian: apt-get install chromium)
browser: .venv/.dev
	AGENTRL_BROWSER=1 $(PY) -m pytest -m browser

# the wheel in a new environment, as someone without a clone would have it
wheel: .venv/.dev
	@scripts/wheel.sh

# real servers for the tests; a second call does nothing
engines:
	@scripts/engines.sh

# the contract, weights and faults on real servers; no skips
test-engines: .venv/.dev engines
	AGENTRL_ENGINES=1 $(PY) -m pytest -n 0 tests/engines_real

# a second call does nothing; `scripts/sandboxes.sh stop` ends what it started
sandboxes: .venv/.dev
	@scripts/sandboxes.sh

# containers by runc and by gVisor, and every attempt to get out of them; no skips
test-sandboxes: .venv/.dev sandboxes
	AGENTRL_SANDBOXES=1 $(PY) -m pytest -n 2 --dist loadfile tests/sandboxes_docker

STUDIES := search_qa code_tests credit_curves
PARTS := learning_study credit_batches network_server

bench: .venv/.dev
	@for program in $(filter-out $(patsubst %,benchmarks/%.py,$(STUDIES) $(PARTS)),$(wildcard benchmarks/*.py)); do echo "== $$program"; $(PY) $$program || exit 1; done

clean:
	rm -rf .venv .engines .cache .pytest_cache .ruff_cache dist build
