PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help quickstart test lint page site lock release clean

help:
	@echo "make quickstart   dump triplets with the mini teacher, train the bundled student on them, stylise: outputs/quickstart/"
	@echo "make test         lint and tests"
	@echo "make page         bring ONNX Runtime for browsers to the demo page; needs Node.js"
	@echo "make site         build the documentation site: site/"
	@echo "make lock         write requirements.lock, the tested versions with their hashes"
	@echo "make release      build and check a release in dist/"
	@echo "make clean        remove the environment, the quickstart's output and the site"

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

Q := outputs/quickstart
SAMPLES := triplets/bundled/samples

# One photo and two paintings of the samples are kept for validation, and the evaluation uses nothing
# else. Small batches and features of small crops keep it within minutes on an older processor. Each
# command continues or keeps what an earlier run left.
quickstart: $(VENV)/installed
	$(BIN)/style-distil dump --content $(SAMPLES)/content --style $(SAMPLES)/style \
	    --style-crop 256 --steps 10 --out $(Q)/triplets
	$(BIN)/style-distil train modulated --data $(Q)/triplets --workdir $(Q)/student --resume \
	    --init-from modulated --validation-fraction 0.2 --features-crop 64 \
	    --steps 40 --warmup-steps 4 --learning-rate 1e-4 --checkpoint-every 20
	$(BIN)/style-distil evaluate --checkpoint $(Q)/student --no-structure --out $(Q)
	$(BIN)/style-distil stylize --checkpoint $(Q)/student --out $(Q)/stylised \
	    --content $(SAMPLES)/content/eilean_donan_castle.jpg --style $(SAMPLES)/style
	@echo "The pictures are in $(Q)/stylised, teacher and student side by side in $(Q)/comparison.png."

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

# One thread a worker: JAX and torch would otherwise fight over the cores.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4

page:
	npm ci --ignore-scripts --prefix web
	npm run build --prefix web

# Material's notice says that it ends in May 2027 (CONTRIBUTING).
site: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# With PyTorch's own index of CPU builds among the package indices.
lock: $(VENV)/installed
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --generate-hashes --no-header --no-annotate --python-version 3.11 \
	    --extra dev --constraint constraints.txt pyproject.toml --output-file requirements.lock

release: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable ".[release]"
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python scripts/release.py

clean:
	rm -rf $(VENV) outputs/quickstart site
