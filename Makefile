# The interpreter to work with: make test PYTHON=python3.13
PYTHON = python3
# What pytest is given: make test T="tests/unit -k foo"
T =

UV = uv==0.13.9

# "3.13", or nothing where there is no such interpreter or it is too old. Every version has environments of its own.
VERSION := $(shell $(PYTHON) -I -c 'import sys; sys.version_info >= (3, 11) and print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
DEV := .venv/$(VERSION)
DEMO := .venv/$(VERSION)-demo

# The stamp of an environment is named for all that it was made from: what changes any of it makes it anew.
key = $(shell { $(PYTHON) -I -VV; pwd; cat $(1); } 2>/dev/null | cksum | cut -d ' ' -f 1)
DEV_STAMP := $(DEV)/installed-$(call key,requirements/dev.txt)
DEMO_STAMP := $(DEMO)/installed-$(call key,requirements/demo.txt)

# Tests wait a lot, so three processes do not need three cores.
IN_PARALLEL := --numprocesses 3 --dist worksteal

# What the tests run besides Python and databases; the packages of Debian and Ubuntu are named like the commands.
COMMANDS := bash chromium fish memcached redis-server zsh

PIP_INSTALL = -m pip install --quiet --disable-pip-version-check --no-input

# What a caller's shell may hold for other projects and would change what runs here
unexport DJANGO_SETTINGS_MODULE PYTEST_ADDOPTS PYTEST_PLUGINS PYTHONHOME PYTHONOPTIMIZE PYTHONPATH PYTHONSAFEPATH
unexport PYTHONSTARTUP PYTHONWARNINGS VIRTUAL_ENV MYPYPATH PIP_PREFIX PIP_TARGET PIP_USER

.PHONY: help test lint format bench demo screens lock clean python commands
.DEFAULT_GOAL := help

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

test: lint commands ## Check style and types, then run the tests; T="tests/unit -k foo" chooses, PYTHON=python3.13 is the interpreter
	$(DEV)/bin/python -m pytest $(or $(T),$(IN_PARALLEL))

lint: $(DEV)/project ## Check style and types
	$(DEV)/bin/python -m ruff check
	$(DEV)/bin/python -m ruff format --check
	$(DEV)/bin/python -m mypy

format: $(DEV)/project ## Format the code and repair what can be repaired
	$(DEV)/bin/python -m ruff check --fix-only
	$(DEV)/bin/python -m ruff format

bench: $(DEV)/project ## Run the benchmarks
	$(DEV)/bin/python -m benchmarks

demo: $(DEMO_STAMP) ## Run the demo until Ctrl-C
	@exec $(DEMO)/bin/python -m example_project.demo

screens: $(DEV)/project ## Take the pictures of the README, which needs Chromium
	$(DEV)/bin/python -m example_project.screens

lock: | python ## Pin the newest versions of what requirements/*.in name
	$(PYTHON) -m venv --clear .venv/lock
	.venv/lock/bin/python $(PIP_INSTALL) '$(UV)'
	for name in dev demo; do \
	    .venv/lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	        --custom-compile-command 'make lock' --output-file requirements/$$name.txt requirements/$$name.in \
	        >/dev/null || exit; \
	done

clean: ## Remove the environments and all that was generated
	rm -rf .venv .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(DEV)/project: pyproject.toml $(DEV_STAMP)
	$(DEV)/bin/python $(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

$(DEV_STAMP): | python
	$(PYTHON) -m venv --clear $(DEV)
	$(DEV)/bin/python $(PIP_INSTALL) --require-hashes -r requirements/dev.txt
	@touch $@

# The demo needs no build tools: a .pth file puts the project on the path.
$(DEMO_STAMP): | python
	$(PYTHON) -m venv --clear $(DEMO)
	$(DEMO)/bin/python $(PIP_INSTALL) --require-hashes -r requirements/demo.txt
	@for packages in $(DEMO)/lib/python*/site-packages; do pwd > "$$packages/resty_upstream.pth"; done
	@touch $@

commands:
	@missing() { \
	    for name in $(COMMANDS); do command -v $$name >/dev/null || echo $$name; done; \
	    { command -v mariadbd || command -v /usr/sbin/mariadbd; } >/dev/null || echo mariadb-server; \
	    command -v promtool >/dev/null || echo prometheus; \
	    command -v systemd-analyze >/dev/null || echo systemd; \
	    { command -v nginx || command -v /usr/sbin/nginx; } >/dev/null || echo nginx-light; \
	    { command -v postgres || ls /usr/lib/postgresql/*/bin/postgres; } >/dev/null 2>&1 || echo postgresql; \
	}; \
	names=$$(missing); \
	test -z "$$names" || { \
	    $(call apt_install,$$names); \
	    names=$$(missing); \
	    test -z "$$names" || { \
	        echo "The tests need" $$names: "install it, on Debian and Ubuntu with: apt-get install" $$names; exit 1; }; \
	} >&2

# Debian and Ubuntu keep the venv module in a package of its own.
python:
	@test -n '$(VERSION)' || { \
	    echo 'Python 3.11 or newer is needed, but $(PYTHON) is:' "$$($(PYTHON) --version 2>&1)"; \
	    echo 'Name another interpreter: make test PYTHON=python3.13'; exit 1; } >&2
	@$(PYTHON) -I -c 'import ensurepip, venv' 2>/dev/null || { \
	    $(call apt_install,python$(VERSION)-venv); \
	    $(PYTHON) -I -c 'import ensurepip, venv' 2>/dev/null || { \
	        echo '$(PYTHON) has no venv module. Install it,' \
	            'on Debian and Ubuntu with: apt-get install python$(VERSION)-venv'; exit 1; }; } >&2

# Install packages of the system, where that can be done without asking.
apt_install = if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo 'Installing' $(1); \
	    DEBIAN_FRONTEND=noninteractive apt-get update -qq && \
	    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $(1) >/dev/null; \
	fi
