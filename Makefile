# `make demo`, `make test`: each sets up .venv once, from pyproject.toml and constraints.txt.
PYTHON ?= python3
CPU ?= 0
BIN := .venv/bin
READY := .venv/.ready
SITE_READY := .venv/.site-ready
PRESET ?= tiny-imagenet-vit-micro
PARAMETERS ?= {}
OUT := $(or $(UMAE_OUTPUTS),outputs)
PAPERMILL := $(BIN)/papermill --no-progress-bar

.DEFAULT_GOAL := help
.PHONY: help demo notebooks lab test test-browser lint bench executed site study torture clean
help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-14s %s\n", $$1, $$2}'
	@echo "CPU=1 after the target installs PyTorch without CUDA, PYTHON=python3.12 takes another Python."

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) scripts/set_up.py --cpu $(CPU)

$(SITE_READY): $(READY)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[site,browser]'
	touch $@

demo: $(READY)  ## pretrain MAE and U-MAE on real images, look, probe; a few minutes on two cores
	mkdir -p $(OUT)/demo
	$(PAPERMILL) notebooks/01_masking.ipynb $(OUT)/demo/01_masking.ipynb
	$(PAPERMILL) --log-output notebooks/02_pretrain.ipynb $(OUT)/demo/02_pretrain.ipynb
	$(PAPERMILL) notebooks/03_linear_probe.ipynb $(OUT)/demo/03_linear_probe.ipynb
	@echo && cat "$$(ls -t $(OUT)/03_linear_probe/*/table.txt | head -n 1)"
	@echo && echo "The notebooks as they ran, with their pictures: $(OUT)/demo/"
	@echo "Figures and numbers: $(OUT)/01_masking/  $(OUT)/02_pretrain/  $(OUT)/03_linear_probe/"
	@echo "Weights, metrics and timm checkpoints: $(OUT)/runs/        Next: make lab"

notebooks: $(READY)  ## 01 to 08 on your images: DATA=folder or archive [PRESET=] [PARAMETERS='{epochs: 2}']
	$(BIN)/python -m scripts.run_notebooks $(if $(DATA),"$(DATA)") --preset $(PRESET) --parameters "$(PARAMETERS)"

lab: $(READY)  ## JupyterLab in this folder, open on notebooks/00_start.ipynb
	$(BIN)/jupyter lab notebooks/00_start.ipynb --ServerApp.root_dir=. \
		--LabApp.app_settings_dir=scripts/jupyterlab $(LAB)

test: $(READY)  ## the test suite, on two processes
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-browser: $(SITE_READY)  ## every notebook and page of the site in Chromium; QUICK=1: two notebooks
	$(BIN)/python -m pytest tests/browser -n 2 --dist loadfile \
		-m "browser $(if $(filter 1,$(QUICK)),and quick)" $(BROWSER)

lint: $(READY)  ## linters, formatters, the contracts of imports, the type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/nbstripout --keep-id --verify notebooks/*.ipynb

bench: $(READY)  ## speed against a plain reference on this machine
	$(BIN)/python -m benchmarks

executed: $(READY)  ## executes the notebooks whose copies in outputs/reference/ are out of date
	$(BIN)/python -m scripts.execute_notebooks
	$(BIN)/python -m study --report

site: $(SITE_READY)  ## docs, executed notebooks and API as HTML that needs no network
	$(BIN)/python scripts/build_site.py

study: $(READY)  ## trains what the study misses: make study ARGS="--data cifar10=PATH"
	$(BIN)/python -m study $(ARGS)

torture: $(READY)  ## kills runs at random moments and resumes them; long
	$(BIN)/python -m pytest -m torture -s

clean:  ## removes .venv and caches, never outputs/
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .import_linter_cache *.egg-info build
	find lib benchmarks scripts study solutions tests -name __pycache__ -prune -exec rm -rf {} +
