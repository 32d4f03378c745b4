# Each target is also a plain command; `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
PIP_FLAGS ?=
WORKERS ?= 2
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# All packages, and those that a study needs; where all are installed, nothing is to be done for it
INSTALLED := $(VENV)/.installed
STUDY := $(or $(wildcard $(INSTALLED)),$(VENV)/.study)
# Bytecode, but for what a study hardly imports: 40 % of all
COMPILE := $(BIN)/python -m compileall -qq -x \
	'/(tests?|testing|_vendored|networkx|fontTools|lexers|physics|_inductor)/|transformers/models/[^ab]'
# A file's tests stay together, the longest files first: see tests/conftest.py
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder

.PHONY: reproduce test test-thorough campaign bench gpu-check report course slides docs lint lab lock clean help

reproduce: $(STUDY)  ## fetch, mine, train, evaluate, execute the notebooks: results/quick/
	$(BIN)/nvret run params/quick.yaml

test: $(INSTALLED)  ## unit tests, then the notebooks end to end on params/smoke.yaml
	$(PYTEST)

test-thorough: $(INSTALLED)  ## every test at full depth: all examples, all sizes
	$(PYTEST) -m "" --hypothesis-profile=thorough

campaign: $(INSTALLED)  ## kills, full disks, shared caches, a million mined cases: results/reliability/
	PYTHONPATH=tests $(BIN)/python -m campaign

bench: $(INSTALLED)  ## every speed target side by side, and the cost model: results/benchmarks/
	$(BIN)/python -m benchmarks
	$(BIN)/nvret run params/quick.yaml --only 11_cost

gpu-check: $(INSTALLED)  ## every path on a GPU beside the CPU's result, on small models: a table
	$(BIN)/python -m benchmarks.gpu_check

report: $(INSTALLED)  ## tables, ledger and README from the committed scores; then the book
	$(BIN)/nvret report params/quick.yaml
	$(MAKE) docs

# A5 is left as it is: its reader judges before anything is shown
course: $(INSTALLED)  ## execute the lessons for the book: results/course/
	$(BIN)/jupyter nbconvert --to notebook --execute --output-dir results/course \
		$(filter-out %/A5_be_the_judge.ipynb,$(wildcard notebooks/course/A*.ipynb))

# They load reveal.js, require.js and MathJax from the network when they are shown
slides: $(INSTALLED)  ## the executed lessons as slides for a lecture: docs/_build/slides/
	$(BIN)/jupyter nbconvert --to slides --output-dir docs/_build/slides \
		--SlidesExporter.reveal_width=1280 --SlidesExporter.reveal_height=800 \
		--SlidesExporter.reveal_scroll=True results/course/A*.ipynb

docs: $(INSTALLED)  ## the book: guide, executed notebooks, ledger, API: docs/_build/html/index.html
	$(BIN)/sphinx-build -W -q docs docs/_build/html

lint: $(INSTALLED)  ## ruff's rules and format
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

lab: $(INSTALLED)  ## open the notebooks
	$(BIN)/jupyter lab notebooks

# Every file's SHA-256, for every platform and Python of pyproject.toml. PyTorch differs by machine:
# requirements-torch.lock names its version alone, and its public wheel pins CUDA's packages itself
EXTRAS := packaged build notebook docs faiss bench crate int8 dev
CUDA := triton cuda-bindings cuda-pathfinder cuda-toolkit $(addprefix nvidia-,cublas cuda-cupti \
	cuda-nvrtc cuda-runtime cudnn-cu13 cufft cufile curand cusolver cusparse cusparselt-cu13 \
	nccl-cu13 nvjitlink nvshmem-cu13 nvtx)

UV := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	--custom-compile-command "make lock" --constraint requirements-torch.lock pyproject.toml \
	$(addprefix --no-emit-package ,torch openvino-telemetry $(CUDA))

lock:  ## both locks anew, after a change of pyproject.toml; needs uv
	$(UV) $(addprefix --extra ,$(EXTRAS)) --output-file requirements.lock
	$(UV) --extra packaged --extra build --constraint requirements.lock \
		--output-file requirements-study.lock

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

clean:  ## remove the environment; downloads and results stay
	rm -rf $(VENV)

# The stamp is written last: an installation that was cut off is done again
$(INSTALLED): LOCK := requirements.lock
$(VENV)/.study: LOCK := requirements-study.lock
$(INSTALLED) $(VENV)/.study: $(wildcard requirements*.lock) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "nvret needs Python 3.11 or later, found " + sys.version.split()[0] + "; name another one with: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	@awk '/^[^ #]/ { n++ } { print > ("$(VENV)/.half" n % 2 ".lock") }' $(LOCK)
	@$(MAKE) --no-print-directory --jobs 3 .torch .half0 .half1
	$(PIP) $(PIP_FLAGS) --no-compile -r requirements-torch.lock
	$(PIP) --no-deps --no-build-isolation --editable .
	@$(COMPILE) -j 0 $(VENV)/lib || true  # some files are templates
	@touch $@

# Its parts. pip takes one package after another, on one core: PyTorch and halves go side by side
.PHONY: .torch .half0 .half1
.torch:
	$(PIP) $(PIP_FLAGS) --no-compile --no-deps -r requirements-torch.lock
	@$(COMPILE) $(VENV)/lib/python*/site-packages/torch || true

.half0 .half1:
	$(PIP) $(PIP_FLAGS) --no-compile --require-hashes --no-deps -r $(VENV)/$@.lock
