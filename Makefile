# `make demo`, `make studio` and `make test` do everything on a machine with Python >= 3.11, make and git.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo studio test test-gpu check clean

demo: .venv/installed
	$(BIN)/python -m mini.demo

studio: .venv/installed  # the page, on a copy of the example pair
	test -d output/studio || (mkdir -p output && cp -R dataset/category/robot_and_teddy output/studio)
	$(BIN)/python -m mudi.studio output/studio --segmenter foreground

test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

test-gpu: .venv/installed-dev  # what a machine without a GPU skips
	$(BIN)/python -m pytest -m gpu -rs

check: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

.venv/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@

clean:
	rm -rf .venv output .pytest_cache .mypy_cache .ruff_cache
