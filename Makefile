# `make demo` and `make test` are all that a fresh machine needs: Python 3.11 or newer, and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test stress versions locks release-check tutorials docs bench bench-quick clean

demo: $(VENV)/.installed
	$(BIN)/python tutorials/demo.py

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist worksteal

# What takes minutes, such as all examples of the site; before a release.
stress: $(VENV)/.installed
	$(BIN)/python -m pytest -m stress -n 2 --dist worksteal

# The suite on the oldest and the newest versions that pyproject.toml admits, each in an environment of its lock file;
# `make locks` writes these anew. LEGS="oldest-3.11 newest-3.12" takes some of them.
versions: .versions/.installed
	.versions/tools/bin/python scripts/versions.py test $(LEGS) $(if $(OPTIONS),-- $(OPTIONS))

locks: .versions/.installed
	.versions/tools/bin/python scripts/versions.py lock $(LEGS)

# The sdist and the wheel, in dist/, each installed and used where one language alone is: docs/release.md.
release-check: .versions/.installed
	.versions/tools/bin/python scripts/release.py

.versions/.installed: constraints.txt
	$(PYTHON) -m venv .versions/tools
	.versions/tools/bin/python -m pip install --quiet --constraint constraints.txt uv twine "readme_renderer[md]"
	touch $@

# All notebooks in full, one after the other, stored with their outputs.
tutorials: $(VENV)/.installed
	$(BIN)/python tutorials/execute.py

docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

# flowppl beside its peers, into benchmarks/README.md: half an hour on two quiet cores, bench-quick five minutes.
# OPTIONS="--clock cpu" counts the seconds of the process, for a machine that others use too.
bench bench-quick: $(VENV)/.bench
	$(if $(shell command -v taskset),taskset -c 0) $(BIN)/python benchmarks/bench.py $(if $(filter %-quick,$@),--quick) \
		--write benchmarks/README.md $(OPTIONS)

$(VENV)/.bench: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[bench]"
	touch $@

# torch comes first and pinned: without the pin pip takes the newest, which brings several GB of CUDA.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) .versions dist .pytest_cache .mypy_cache .ruff_cache .hypothesis docs/_build docs/api/generated
