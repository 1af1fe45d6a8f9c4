# make lab    set up the environment and open JupyterLab on the first notebook
# make test   set up the environment and check everything: module, main.py, notebooks
# make book   the series as web pages, build/book/index.html, that need no network
#
# The environment is made once, in .venv, and again only when a requirements file has changed.
# Another Python: make PYTHON=python3.12 lab

PYTHON ?= python3
BIN := .venv/bin
# One process per core with one thread each: together faster than one process that has all cores.
PARALLEL := -n auto --dist loadfile
LAB_OPTIONS ?= $(if $(filter 0,$(shell id -u)),--allow-root) # as in containers, where there is only root

.DEFAULT_GOAL := help
.PHONY: help lab test test-module test-notebooks test-twice test-browser test-book bench notebooks book lint clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile
	@echo "make notebooks, make test-twice, make test-browser, make test-book, make bench, make lint, make clean: see the Makefile"

lab: .venv/lab.done
	@echo "Opening JupyterLab on notebooks/00_start_here.ipynb; stop it with Ctrl-C."
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb $(LAB_OPTIONS)

test: test-module test-notebooks

test-module: .venv/test.done
	@echo "Checking the module, main.py and the saved notebooks ..."
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL) tests

# The notebooks run on the built-in shapes: the same images on every machine, and no download.
test-notebooks: .venv/test.done
	@echo "Executing every notebook in a fresh kernel and comparing its outputs with the saved ones ..."
	OMP_NUM_THREADS=1 DDPM_DATA=shapes $(BIN)/python -m pytest $(PARALLEL) --nbval --nbval-current-env --nbval-cell-timeout=600 notebooks

# Run All, and Run All again in the same kernel, as readers do: nothing may fail or print something else.
test-twice: .venv/test.done
	DDPM_DATA=shapes $(BIN)/python tools/notebooks.py twice

# JupyterLab in Chromium, which must be installed: Run All, every slider, the Stop button, both themes; the book.
# Two at a time, and notebooks run in one of them only, so that the answer times of sliders mean something.
# Pictures to look at:  make test-browser BROWSER_OPTIONS="--screenshots build/screenshots"
# Exact answer times:   make test-browser BROWSER_OPTIONS="-n 0 --write-latency"
test-browser: .venv/test.done .venv/book.done
	@echo "Opening every notebook in a browser ..."
	$(BIN)/python -m pytest -n 2 --dist loadfile tests/browser --durations=10 $(BROWSER_OPTIONS)

# How fast, beside other libraries: measure, store, and put the table into the README. On an otherwise idle machine.
# Some rows only, or a GPU:  make bench BENCH_OPTIONS="--rows start,batches"
bench: .venv/bench.done
	$(BIN)/python tests/benchmarks/bench.py $(BENCH_OPTIONS)
	$(BIN)/python tests/benchmarks/bench.py --write README.md

# Of the tests in the browser, those of the book: every page, with no network.
test-book: .venv/test.done .venv/book.done
	$(BIN)/python -m pytest tests/browser/test_book.py $(BROWSER_OPTIONS)

# Only notebooks that have changed are executed, up to their last slider, for its frames: minutes the first time.
book: .venv/book.done
	DDPM_DATA=shapes $(BIN)/python tools/book.py record
	$(BIN)/python tools/book.py build
	@echo "Open build/book/index.html"

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

.venv/bench.done: .venv/test.done requirements-bench.txt
	@echo "Installing requirements-bench.txt ..."
	$(BIN)/python -m pip install --quiet -r requirements-bench.txt
	@touch $@

.venv/book.done: .venv/lab.done requirements-book.txt
	@echo "Installing requirements-book.txt ..."
	$(BIN)/python -m pip install --quiet -r requirements-book.txt
	@touch $@

clean:
	rm -rf .venv build *.egg-info
