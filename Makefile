# SPDX-License-Identifier: GPL-2.0-or-later
#
#   make linux    boot Debian's kernel to a shell in this terminal
#   make test     every test, and the linter
#   make docs     the documents as a static site, in build/site
#   make clean    remove what the two made here
#
# Both make .venv and install Ring1 there: Debian's own Python takes no packages outside a virtual
# environment. What building needs and the machine lacks is installed with apt-get by root; anyone
# else is told its name.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Every file that an installed package is made of. If one is newer, it is installed again.
SOURCES := pyproject.toml setup.py LICENSE $(shell find bt translator guests -type f \
	-not -name '*.so' -not -name '*.c' -not -name '*.pyc')

.PHONY: linux test docs clean
.DELETE_ON_ERROR:

linux: $(VENV)/ring1
	$(BIN)/bt run linux

test: $(VENV)/ring1-test
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -n auto --dist loadfile $(PYTEST_ARGS)

docs: $(VENV)/ring1-test
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/site
	@echo "build/site/index.html"

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find bt translator guests tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
	find bt translator -name '*.so' -delete -o -name '*.c' -delete

$(VENV)/ring1: $(SOURCES) $(BIN)/python
	rm -rf build/lib.* build/bdist.*
	$(BIN)/python -m pip install --quiet .
	touch $@

# In place, so that the tests find the package from wherever they start a process.
# tests/test_package.py is about the installed one. Bytecode is made as pip makes it for that one:
# where PYTHONDONTWRITEBYTECODE is set, each start would compile all of it again.
$(VENV)/ring1-test: $(SOURCES) $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	$(BIN)/python -m compileall -q bt guests translator
	touch $(VENV)/ring1 $@

# Three things to ask of the machine: a compiler, Python's headers and Python's venv with its pip.
define LACKING
have() { command -v "$$1" >/dev/null 2>&1; }; \
lacking=; \
have $(PYTHON) || lacking="$$lacking python3"; \
$(PYTHON) -c 'import ensurepip, venv' >/dev/null 2>&1 || lacking="$$lacking python3-venv"; \
$(PYTHON) -c 'import os, sys, sysconfig; \
sys.exit(not os.path.exists(sysconfig.get_paths()["include"] + "/Python.h"))' \
	>/dev/null 2>&1 || lacking="$$lacking python3-dev"; \
echo 'int main(void) { return !EOF; }' | gcc -include stdio.h -x c -o /dev/null - \
	>/dev/null 2>&1 || lacking="$$lacking gcc libc6-dev"
endef

$(BIN)/python:
	@$(LACKING); \
	if [ -n "$$lacking" ] && [ "$$(id -u)" = 0 ] && have apt-get; then \
		echo "installing$$lacking"; \
		apt-get update -q && DEBIAN_FRONTEND=noninteractive \
			apt-get install -q -y --no-install-recommends $$lacking || exit 1; \
	elif [ -n "$$lacking" ]; then \
		echo "Ring1 needs$$lacking: please install them (Debian: apt-get install$$lacking)" >&2; \
		exit 1; \
	fi
	$(PYTHON) -m venv $(VENV)
