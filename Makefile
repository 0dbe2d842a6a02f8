# `make demo`, `make test`: each sets up .venv once, from pyproject.toml and constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
OUT := $(or $(UMAE_OUTPUTS),outputs)

.PHONY: demo test lint torture bench lab clean help
help:
	@echo "make demo      pretrain MAE and U-MAE on real images, look, probe; a few minutes on two cores"
	@echo "make test      the test suite"
	@echo "make lint      formatters, linters and the type checker"
	@echo "make torture   kills runs at random moments and resumes them; long"
	@echo "make bench     measures speed against a plain reference on this machine"
	@echo "make lab       JupyterLab in notebooks/"
	@echo "make clean     removes .venv and caches, never outputs/"

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(READY)
	mkdir -p $(OUT)/demo
	$(BIN)/papermill --no-progress-bar notebooks/01_masking.ipynb $(OUT)/demo/01_masking.ipynb
	$(BIN)/papermill --no-progress-bar --log-output notebooks/02_pretrain.ipynb $(OUT)/demo/02_pretrain_mae.ipynb -p lam 0
	$(BIN)/papermill --no-progress-bar --log-output notebooks/02_pretrain.ipynb $(OUT)/demo/02_pretrain_umae.ipynb -p lam 0.001
	$(BIN)/papermill --no-progress-bar notebooks/03_linear_probe.ipynb $(OUT)/demo/03_linear_probe.ipynb
	@echo && cat "$$(ls -t $(OUT)/03_linear_probe/*/table.txt | head -n 1)"
	@echo && echo "The notebooks as they ran, with their pictures: $(OUT)/demo/"
	@echo "Figures and numbers: $(OUT)/01_masking/  $(OUT)/02_pretrain/  $(OUT)/03_linear_probe/"
	@echo "Weights, metrics and timm checkpoints: $(OUT)/runs/        Next: make lab"

test: $(READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/nbstripout --keep-id --verify notebooks/*.ipynb

torture: $(READY)
	$(BIN)/python -m pytest -m torture -s

bench: $(READY)
	$(BIN)/python -m lib.bench

lab: $(READY)
	$(BIN)/jupyter lab notebooks

clean:
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache *.egg-info lib/__pycache__ tests/__pycache__
