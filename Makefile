# Every target sets up what it needs: a virtual environment in .venv, refreshed when
# pyproject.toml or constraints.txt change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup demo demo-long serve test test-slow lint format bench clean

help:
	@echo "make demo       a 5-second video from a picture and a prompt: outputs/demo.mp4, outputs/demo.png"
	@echo "make demo-long  a minute from a picture, and a story of three scenes: outputs/demo-long.mp4, outputs/story.mp4"
	@echo "make serve      a page in the browser and an API; options in ARGS, such as ARGS='--port 8000'"
	@echo "make test       linters, types and the fast tests"
	@echo "make test-slow  the tests that take minutes"
	@echo "make lint       linters and types alone"
	@echo "make format     rewrite the code in house style"
	@echo "make bench      the benchmarks; prints tables"

setup: $(STAMP)

# torch goes first and alone, so that no other package can pull in a different build of it.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet torch==2.13.0 -c constraints.txt
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -e '.[dev]' -c constraints.txt
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/framepack generate --image examples/demo.png --prompt "$$(cat examples/demo.txt)" --seconds 5 \
		--out outputs/demo.mp4 --sheet outputs/demo.png

demo-long: $(STAMP)
	$(BIN)/framepack generate --image examples/demo.png --prompt "$$(cat examples/demo-long.txt)" --seconds 60 \
		--out outputs/demo-long.mp4 --sheet outputs/demo-long.png
	$(BIN)/framepack generate --storyboard examples/story.yaml \
		--out outputs/story.mp4 --sheet outputs/story.png

serve: $(STAMP)
	$(BIN)/framepack serve $(ARGS)

# One thread each: the models of tests are tiny, and gain nothing from a second. VizDoom's engine has crashed in
# a process that had much else in it, and has one of its own.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --ignore tests/test_vizdoom.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_vizdoom.py

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) outputs build dist .pytest_cache .mypy_cache .ruff_cache
