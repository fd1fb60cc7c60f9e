# `make train` and `make test` set up what they need: a fresh machine wants nothing but Python 3.11 and make.
PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# TORCH=cpu: PyTorch's build without CUDA, for Linux without an NVIDIA GPU
TORCH ?=
# uv where it is on the PATH, pip where not: both install the files whose hashes are in the lock, and no others
UV := $(shell command -v uv 2>/dev/null)
PIP := $(if $(UV),$(UV) pip install --quiet --python $(BIN)/python,$(BIN)/python -m pip install --quiet --disable-pip-version-check)

.DEFAULT_GOAL := help
.PHONY: help install install-more train test lint format sweep ablation figures study study-camvid study-gpu peers compare notebook notebooks bench bench-gpu test-peers test-browser test-slurm test-stress test-lock docs lock clean clean-all

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | awk -F'|' '{printf "  make %-12s %s\n", $$1, $$2}'
	@echo '  options after ARGS=, e.g.  make train ARGS="attention=dense seed=1"'

install: $(STAMP) ## create .venv and install the locked packages (about two minutes); TORCH=cpu: without CUDA

$(STAMP): $(VENV)/.packages pyproject.toml
	$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.packages: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11, 4) else "error: Python 3.11.4 or newer is needed, this is " + sys.version.split()[0] + "; give another as make PYTHON=python3.11")'
	@test ! -e $(VENV)/.begun || rm -rf $(VENV)  # an interrupted installation may have left half a package
	@mkdir -p $(VENV) && touch $(VENV)/.begun
	$(PYTHON) -m venv $(VENV)
ifeq ($(TORCH),cpu)
	$(PIP) --no-deps --index-url https://download.pytorch.org/whl/cpu $$(grep -oE '^torch(vision)?==[^ ]+' constraints.txt)
	@awk '/^[a-z]/ {skip = /^(torch|torchvision|triton|nvidia-.*|cuda-.*)==/} !skip' constraints.txt > $(VENV)/lock.txt
	$(PIP) --no-deps --require-hashes -r $(VENV)/lock.txt
else
	$(PIP) --require-hashes -r constraints.txt
endif
	@mv $(VENV)/.begun $@

install-more: $(VENV)/.more ## add to .venv what the extras docs and demo need

$(VENV)/.more: constraints-more.txt $(STAMP)
	$(PIP) --no-deps --require-hashes -r constraints-more.txt
	@touch $@

train: $(STAMP) ## train ISA on the embedded Lamps: some two minutes on two cores
	$(BIN)/python src/train.py $(ARGS)

test: $(STAMP) ## run the tests
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

lint: $(STAMP) ## check style, types and spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/yamllint conf

format: $(STAMP) ## bring the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

sweep: $(STAMP) ## train every partition size on Lamps, one after the other
	$(BIN)/python src/train.py -m sweep=group_size $(ARGS)

# the newest list: a sweep with other words, as in ARGS, has one of its own
ABLATION = src/compare.py $$(ls -t outputs/lamps_isa/context*.sweep | head -n 1) --output outputs/ablation --also val/group_acc val/group_acc_far --bounds

ablation: $(STAMP) ## train every context module on Lamps, three seeds each, and write the table and the figures
	$(BIN)/python src/train.py -m sweep=context hydra.launcher.slots=2 $(ARGS)
	$(BIN)/python $(ABLATION)

figures: $(STAMP) ## write the ablation's table and figures again from the runs on disk
	$(BIN)/python $(ABLATION) $(ARGS)

# A sweep skips what is done and goes on with what is not, so each of these may be interrupted and given again.
OPERATORS = --also val/group_acc --bounds --at last
study: $(STAMP) ## ISA beside its siblings on Lamps and Cards, three seeds each: hours on two cores; again to go on
	$(BIN)/python src/train.py -m sweep=operators trainer.max_steps=600 $(ARGS)
	$(BIN)/python src/compare.py $$(ls -t outputs/lamps_isa/operators*.sweep | head -n 1) --output outputs/operators_lamps $(OPERATORS)
	$(BIN)/python src/train.py -m sweep=operators experiment=cards_isa $(ARGS)
	$(BIN)/python src/compare.py $$(ls -t outputs/cards_isa/operators*.sweep | head -n 1) --output outputs/operators_cards $(OPERATORS)
	$(BIN)/python src/train.py -m sweep=cards_convergence experiment=cards_isa $(ARGS)
	$(BIN)/python src/compare.py $$(ls -t outputs/cards_isa/cards_convergence*.sweep | head -n 1) --output outputs/cards_convergence $(OPERATORS)

study-camvid: $(STAMP) ## context modules on CamVid's photographs, five seeds; needs ARGS="data.root=... backbone.weights=FILE"
	$(BIN)/python src/train.py -m sweep=camvid_context experiment=camvid_pretrained $(ARGS)
	list=$$(ls -t outputs/camvid_pretrained/camvid_context*.sweep | head -n 1); for split in val test; do \
		$(BIN)/python src/compare.py $$list --output outputs/camvid_context_$$split --metric $$split/mIoU --baseline none || exit; done

study-gpu: $(STAMP) ## the same on a GPU, for at most eight minutes; again to go on. CAMVID="data.root=... backbone.weights=FILE" adds CamVid
	@timeout --signal=TERM --kill-after=30 440 sh -c '$(MAKE) study ARGS="trainer=gpu $(ARGS)" && \
		{ test -z "$(CAMVID)" || $(MAKE) study-camvid ARGS="trainer=gpu $(CAMVID) $(ARGS)"; }' \
		|| { test $$? = 124 && echo "not done yet: the same command goes on"; }

compare: $(STAMP) ## tables, figures and one page of every run in outputs
	$(BIN)/python src/compare.py outputs $(ARGS)

bench: $(STAMP) ## time and memory of the ISA block beside its peers and the ceilings of this machine: ten minutes
	$(BIN)/python src/benchmark.py attention $(ARGS)

bench-gpu: $(STAMP) ## time and memory of blocks, networks, losses and a run on a GPU: at most eight minutes
	$(BIN)/python src/benchmark.py gpu $(ARGS)

notebook: $(STAMP) ## open the notebooks in a browser; installs JupyterLab the first time
	@$(BIN)/python -c 'import jupyterlab' 2>/dev/null || $(PIP) jupyterlab
	$(BIN)/jupyter lab notebooks $(ARGS)

notebooks: $(STAMP) ## run the notebooks, with their outputs, into outputs/notebooks
	@mkdir -p outputs/notebooks
	for name in quickstart attention_maps compare_runs; do \
		$(BIN)/jupyter execute --output=../outputs/notebooks/$$name notebooks/$$name.ipynb || exit 1; done

peers: ## install mmsegmentation and cityscapesScripts into .venv-peers, to compare with in tests and benchmarks
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet --disable-pip-version-check torch==2.14.1 torchvision==0.29.1 mmsegmentation==1.2.2 mmengine==0.10.7 mmcv-lite==2.1.0 ftfy regex cityscapesscripts==2.3.0

test-peers: $(STAMP) ## compare with what `make peers` has installed: logits, protocols, scores, samples, training steps; some twenty minutes
	$(BIN)/python -m pytest -m peers $(ARGS)

test-browser: $(VENV)/.more ## click through the pages of compare and demo in headless Chromium; installs Debian's where there is none
	@command -v chromedriver >/dev/null || apt-get install -y chromium chromium-driver
	$(BIN)/python -m pytest -m browser $(ARGS)

test-slurm: $(STAMP) ## train on a Slurm of this machine, installed by apt if absent (root); some five minutes
	tests/slurm/run.sh $(BIN)/python -m pytest -m slurm tests/sweep/test_slurm.py $(ARGS)

test-stress: $(STAMP) ## the tests of reliability, search, sweeps and attention, as often and as long as it takes; half an hour
	ISASEG_STRESS=1 $(BIN)/python -m pytest -n 2 tests/reliability tests/sweep/test_search.py tests/sweep/test_sweep.py tests/models/test_fast_ways.py tests/models/test_any_size.py tests/models/test_families.py tests/training/test_step_profile.py $(ARGS)

test-lock: $(STAMP) ## ask the package index whether the lock installs on Linux (x86-64, arm64) and macOS (needs uv); a minute
	$(BIN)/python -m pytest -m lock tests/test_lock.py $(ARGS)

# one lock for every system; what docs and demo need beside the rest is in a file of its own
COMPILE = uv pip compile pyproject.toml --quiet --universal --python-version 3.11.4 --no-python-downloads --generate-hashes --no-header --no-annotate
INSTALLED = onnx sweep report tensorboard mlflow dashboard notebooks browser dev
docs: $(VENV)/.more ## build the pages of docs/ as a site into site/; a dead link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build $(ARGS)

lock: ## remake constraints.txt and constraints-more.txt from pyproject.toml (needs uv); pins that still fit stay
	$(COMPILE) $(addprefix --extra ,$(INSTALLED)) -o constraints.txt $(ARGS)
	$(COMPILE) --all-extras -c constraints.txt $$(sed -nE 's/^([a-z0-9.-]+)==[^ ]+ \\$$/--no-emit-package \1/p' constraints.txt) -o constraints-more.txt $(ARGS)

clean: ## remove caches
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

clean-all: clean ## remove caches, .venv and every result in outputs
	rm -rf $(VENV) .venv-peers outputs
