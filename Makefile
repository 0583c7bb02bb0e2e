# Thin: each line is a command that one could type. `make help` lists the targets.
SHELL := /bin/bash
PYTHON_VERSION := 3.11
BIN := .venv/bin
UV := .venv-uv/bin/uv
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
# UV_INDEX=: from the main index only; a mirror beside it may lack files, and so hashes, that others need.
COMPILE := UV_INDEX= python3 -m lab.uv pip compile --quiet --no-header --generate-hashes --upgrade --python-version $(PYTHON_VERSION)
LAB := $(BIN)/python -m lab
PLAYBOOK := $(BIN)/ansible-playbook -i inventory/lab
PYTEST := $(BIN)/pytest
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Where it is set (as in many images of Python), each start of Ansible and of a worker would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' $(MAKEFILE_LIST) | expand -t 22
	@echo '  make $(VERBS)'
	@echo '                      playbooks/ by their short names: make watch JOB=demo INVENTORY=inventory/lab ARGS="-e interval=5"'

.PHONY: demo
demo: lab-up ## three throw-away nodes on this machine, from nothing to a finished training run
	$(PLAYBOOK) site.yml
	$(PLAYBOOK) train.yml -e nnodes=3
	@printf '%s\n' '' 'The three nodes are up. What to type next (after: source .venv/bin/activate):' \
	  '  python -m lab ssh node1                                       log in' \
	  '  ansible-playbook -i inventory/lab playbooks/status.yml        all jobs' \
	  '  ansible-playbook -i inventory/lab train.yml -e nnodes=2 -e job=two -e steps=50' \
	  '  make nodes                                                    check what every role promised' \
	  '  make lab-down                                                 remove every trace of the nodes'

.PHONY: lab-up lab-down
lab-up: venv ## boot the throw-away nodes
	$(LAB) up
lab-down: ## remove every trace of them
	@if [ -x $(BIN)/python ]; then $(LAB) down; else python3 -m lab down; fi

.PHONY: test lint test-unit test-lab
test: lint test-unit test-lab ## everything that CI runs

lint: venv-dev ## style and static checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/yamllint .
	$(BIN)/ansible-config validate
	$(BIN)/ansible-lint

# One file more at a time than there are cores: many wait for a third of their time.
test-unit: venv-dev ## tests without nodes
	@command -v bindfs >/dev/null || { $(SUDO) apt-get -qq update && $(SUDO) apt-get -qq install --yes --no-install-recommends bindfs >/dev/null; } \
		|| echo "bindfs cannot be installed: the tests of a shared directory that hangs are skipped"
	@command -v chromium >/dev/null || { $(SUDO) apt-get -qq update && $(SUDO) apt-get -qq install --yes --no-install-recommends chromium >/dev/null; } \
		|| echo "chromium cannot be installed: TensorBoard is not looked at in a browser"
	$(PYTEST) tests/unit --numprocesses=$$(($$(nproc) + 1)) --dist=loadfile --no-loadscope-reorder --durations=12

# Two files at a time, each with a lab of its own: Ansible waits for its nodes most of the time. First the one that waits
# for timers: as the last one it would leave the machine with nothing to do.
test-lab: venv-dev ## tests with throw-away nodes (root or sudo)
	$(PYTEST) tests/lab/test_networkmanager.py tests/lab --numprocesses=2 --dist=loadfile --no-loadscope-reorder --durations=12

.PHONY: test-vm
test-vm: venv-dev ## tests with virtual machines, which have kernels of their own (root or sudo); not part of `make test`
	@command -v nmap >/dev/null && command -v nfs-ls >/dev/null || { $(SUDO) apt-get -qq update \
		&& $(SUDO) apt-get -qq install --yes --no-install-recommends nmap libnfs-utils >/dev/null; }
	$(PYTEST) tests/vm

.PHONY: test-driver
test-driver: venv-dev ## NVIDIA's driver for real, from Debian's non-free, module and all (root or sudo); not part of `make test`
	$(PYTEST) tests/driver

.PHONY: faults
faults: venv-dev ## break running jobs in twenty ways, most at three moments (tests/faults): make faults FAULTS=worker_killed MOMENTS=mid
	$(BIN)/python -m tests.faults $(if $(KIND),--kind=$(KIND)) --faults="$(FAULTS)" --moments="$(MOMENTS)"

.PHONY: cycles
cycles: venv-dev ## start, stop and resume a job twenty times and see what is left behind: make cycles CYCLES=5
	$(BIN)/python -m tests.faults.cycles $(if $(CYCLES),--cycles=$(CYCLES))

.PHONY: nodes
nodes: venv-dev ## check every node of an inventory: make nodes INVENTORY=inventory/hosts.yml
	$(PYTEST) tests/nodes --ansible-inventory=$(or $(INVENTORY),inventory/lab) --numprocesses=4

.PHONY: benchmarks
benchmarks: venv .venv-benchmarks/.done ## the training package beside its peers, on an idle machine: about half an hour
	$(BIN)/python -m training.demo_data --output build/demo-data
	.venv-benchmarks/bin/python -m benchmarks.training_speed plain
	.venv-benchmarks/bin/python -m benchmarks.training_speed ragged
	.venv-benchmarks/bin/python -m benchmarks.loss_memory
	.venv-benchmarks/bin/python -m benchmarks.checkpoint_stall

# No `make clean`: everybody expects that to remove what was built, and clean.yml removes checkpoints.
VERBS := status watch logs stop resume jobs export parity
.PHONY: $(VERBS)
$(VERBS): venv
	$(BIN)/ansible-playbook $(if $(INVENTORY),-i $(INVENTORY)) playbooks/$@.yml $(if $(JOB),-e job=$(JOB)) $(ARGS)

# --- what the control node needs -------------------------------------------------------------------------------
.PHONY: venv venv-dev lock
venv: .venv/.control ## Ansible, in .venv
venv-dev: .venv/.dev ## the same with torch and the test tools

.venv/.control: requirements-control.txt | $(UV)
	@python3 -m lab.uv venv --quiet --allow-existing --python $(PYTHON_VERSION) .venv || { echo "$(NO_PYTHON)" >&2; exit 1; }
	python3 -m lab.uv pip install --quiet --python .venv --require-hashes -r $<
	@touch $@

.venv/.dev: requirements-dev.txt .venv/.control
	python3 -m lab.uv pip install --quiet --python .venv --require-hashes -r $<
	@touch $@

.PHONY: openstack
openstack: .venv/.openstack ## what inventory/openstack needs besides
.venv/.openstack: requirements-openstack.txt .venv/.control
	python3 -m lab.uv pip install --quiet --python .venv --require-hashes -r $<
	@touch $@

.venv-benchmarks/.done: benchmarks/requirements.txt | $(UV)
	@python3 -m lab.uv venv --quiet --allow-existing --python $(PYTHON_VERSION) .venv-benchmarks
	python3 -m lab.uv pip install --quiet --python .venv-benchmarks --require-hashes -r $<
	@touch $@

# What this machine lacks, in one line. Its own python3 only starts the installer: 3.10, as on Ubuntu 22.04, will do.
OLD_PYTHON = This needs python3 3.10 or newer to begin with, and $$(python3 --version 2>&1) is what answers here: \
use Debian 12, Ubuntu 22.04 or newer on the machine that you type on.
NO_PYTHON = Ansible needs Python $(PYTHON_VERSION), which is not here ($$(python3 --version) is) and could not be fetched (see \
above). Ubuntu 22.04: sudo apt install python$(PYTHON_VERSION); elsewhere: let this machine reach github.com (https_proxy). \
Then type make again.

# The requirement comes from the role that puts the same installer on the nodes.
$(UV): roles/python_env/files/uv.txt
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { echo "$(OLD_PYTHON)" >&2; exit 1; }
	@python3 -c 'import ensurepip' 2>/dev/null || { \
		echo "Installing python3-venv with apt: Debian's and Ubuntu's python3 cannot make virtual environments without it."; \
		$(SUDO) apt-get -qq update && $(SUDO) apt-get -qq install --yes --no-install-recommends python3-venv >/dev/null; }
	python3 -m venv .venv-uv
	.venv-uv/bin/pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

lock: $(UV) ## pin the newest versions that pyproject.toml allows, with hashes
	$(COMPILE) roles/python_env/files/uv.in --universal -o roles/python_env/files/uv.txt
	$(COMPILE) pyproject.toml --group control --universal -o requirements-control.txt
	$(COMPILE) pyproject.toml --group openstack -c requirements-control.txt -o requirements-openstack.txt
	$(COMPILE) pyproject.toml --group training -c requirements-control.txt \
		-o training/requirements-cpu.txt
	UV_FIND_LINKS= $(COMPILE) pyproject.toml --group training-cuda -c requirements-control.txt \
		-o training/requirements-cuda.txt
	UV_FIND_LINKS= $(COMPILE) pyproject.toml --group training-unsloth -o training/requirements-unsloth.txt
	$(COMPILE) pyproject.toml --group dev -c requirements-control.txt \
		-c training/requirements-cpu.txt -c requirements-openstack.txt -o requirements-dev.txt
	$(COMPILE) pyproject.toml --group benchmarks -c requirements-control.txt \
		-c training/requirements-cpu.txt -o benchmarks/requirements.txt
