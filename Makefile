# make lab    set up the environment and open JupyterLab on the first notebook
# make test   set up the environment and check everything: module, main.py, notebooks
#
# The environment is made once, in .venv, and again only when a requirements file has changed.
# Another Python: make PYTHON=python3.12 lab

PYTHON ?= python3
BIN := .venv/bin
LAB_OPTIONS ?= $(if $(filter 0,$(shell id -u)),--allow-root) # as in containers, where there is only root

.DEFAULT_GOAL := help
.PHONY: help lab test test-module test-notebooks test-twice notebooks lint clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile
	@echo "make notebooks, make test-twice, make lint, make clean: see the Makefile"

lab: .venv/lab.done
	@echo "Opening JupyterLab on notebooks/00_start_here.ipynb; stop it with Ctrl-C."
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb $(LAB_OPTIONS)

test: test-module test-notebooks

test-module: .venv/test.done
	@echo "Checking the module, main.py and the saved notebooks ..."
	$(BIN)/python -m pytest tests

# The notebooks run on the built-in shapes: the same images on every machine, and no download.
test-notebooks: .venv/test.done
	@echo "Executing every notebook in a fresh kernel and comparing its outputs with the saved ones ..."
	DDPM_DATA=shapes $(BIN)/python -m pytest --nbval --nbval-current-env --nbval-cell-timeout=600 notebooks

# Run All, and Run All again in the same kernel, as readers do: nothing may fail or print something else.
test-twice: .venv/test.done
	DDPM_DATA=shapes $(BIN)/python tools/notebooks.py twice

# Execute all notebooks in order and save them clean: saving twice gives no difference.
notebooks: .venv/lab.done
	$(BIN)/python tools/notebooks.py run

lint: .venv/test.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

.venv/lab.done: requirements.txt pyproject.toml
	@test -x $(BIN)/python || { echo "Making the environment in .venv ..."; $(PYTHON) -m venv .venv; }
	@echo "Installing requirements.txt (several GB with PyTorch: minutes the first time) ..."
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt
	@touch $@

.venv/test.done: .venv/lab.done requirements-test.txt
	@echo "Installing requirements-test.txt ..."
	$(BIN)/python -m pip install --quiet -r requirements-test.txt
	@touch $@

clean:
	rm -rf .venv build *.egg-info
