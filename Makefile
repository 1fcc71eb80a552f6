# Two commands do everything on a machine with Python >= 3.11 and pip: `make demo` and `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN ?= runs/demo

# a process that cannot keep what it has compiled of the libraries compiles it anew: seconds for each command
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-slow test-lowest test-third-party check docs check-site notebooks package format clean

# the main job: train on 1,797 real digits, sample, evaluate
demo: $(VENV)/installed
	$(BIN)/python scripts/demo.py --out $(RUN)

# lint, types, import contracts, then every test
test: check
	$(BIN)/python -m pytest -n 2 --dist loadfile

# what takes long: variants of the networks, and twenty training steps of the larger ones, in both frameworks
test-slow: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

# every test with the oldest dependencies that pyproject.toml allows, in an environment of their own; they need Python 3.11
LOWEST ?= build/lowest
test-lowest: $(LOWEST)/installed
	$(LOWEST)/bin/python -m pytest -n 2 --dist loadfile

$(LOWEST)/installed: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/pip install --quiet --no-compile --constraint constraints-lowest.txt --editable ".[test]"
	touch $@

# real pairs of transformers, diffusers, bonsai, equinox and haiku, in an environment of their own: the last versions that hold Flax
# models; bonsai has no release with its models, so its source is fetched, and its pairs are skipped where it cannot be had
THIRD_PARTY ?= build/third-party
BONSAI ?= https://github.com/jax-ml/bonsai
BONSAI_COMMIT := 36284254cf738d99c1c5d1e3a292d27656a0a365
test-third-party: $(THIRD_PARTY)/installed
	PYTHONPATH=$(THIRD_PARTY)/bonsai $(THIRD_PARTY)/bin/python -m pytest -n 2 -m slow parity_tests/third_party

$(THIRD_PARTY)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(THIRD_PARTY)
	$(THIRD_PARTY)/bin/pip install --quiet --no-compile --constraint constraints.txt --editable ".[torch]" \
		"beartype>=0.19" "pytest>=8" "pytest-xdist>=3.6" "transformers==4.46.*" "diffusers==0.32.*" equinox dm-haiku
	rm -rf $(THIRD_PARTY)/bonsai
	git clone --quiet $(BONSAI) $(THIRD_PARTY)/bonsai && git -C $(THIRD_PARTY)/bonsai checkout --quiet $(BONSAI_COMMIT) || \
		echo "$(BONSAI) cannot be had: its pairs are skipped"
	touch $@

check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# the documentation site, without a warning, into site/; npm fetches what it carries of others, so that readers fetch it nowhere
docs: $(VENV)/installed-docs node_modules/.package-lock.json
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

node_modules/.package-lock.json: package.json package-lock.json .npmrc
	@command -v npm >/dev/null || { echo "The documentation needs npm, which comes with Node.js (https://nodejs.org; Debian: apt install npm): it is not on the path." >&2; exit 1; }
	npm ci
	touch $@

# every page of the site in a headless browser, wide and narrow, and the digits that one draws: minutes; Chromium or Chrome is needed
check-site: docs $(VENV)/installed-site
	$(BIN)/python scripts/check_site.py
	$(BIN)/python scripts/check_play.py

# wheel and sdist, each tried in an environment of its own: it starts without PyTorch, TensorFlow and scikit-learn, draws with the
# network that comes with it, and its types are there for a user's program
package: $(VENV)/bin/python
	rm -rf dist build/package
	$(BIN)/python -m pip install --quiet build twine
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*
	for archive in dist/*.whl dist/*.tar.gz; do \
		there=build/package/$${archive##*.} && \
		$(PYTHON) -m venv $$there && \
		$$there/bin/pip install --quiet --no-compile $$archive "mypy>=1.15" && \
		(cd $$there && bin/ddpm --version && bin/ddpm sample pretrained:digits --num 20 && test -s digits/samples/samples.png && \
		bin/python -c 'import sys, ddpm_jax; sys.exit(bool(sys.modules.keys() & {"torch", "tensorflow", "sklearn"}))' && \
		bin/mypy --strict --ignore-missing-imports --config-file /dev/null $(CURDIR)/tests/typed_user.py) || exit 1; \
	done

# some of the examples as notebooks with their pictures: minutes of training
notebooks: $(VENV)/installed-docs
	$(BIN)/python scripts/make_notebooks.py

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; this is " + sys.version.split()[0] + ". Pass one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --no-compile --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable ".[dev]"
	touch $@ $(VENV)/installed

$(VENV)/installed-docs: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable ".[docs]"
	touch $@ $(VENV)/installed

$(VENV)/installed-site: $(VENV)/installed-docs
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable ".[docs,site]"
	touch $@

clean:
	rm -rf $(VENV) runs site node_modules build/play .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
