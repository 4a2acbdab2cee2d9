# What people and CI call; the work is in demo/ and scripts/, which need no make.
.PHONY: help bound-memory setup demo test lint types check bench bench-ostree bench-update conformance credential-chains fault-proxy bad-inputs fsck misbehaviour vm vm-health vm-kill fuzz fuzz-diff ostree-versions live-host model clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST)
setup: ## install what developing needs: Debian packages, .venv
	scripts/setup.sh test
demo: ## switch, upgrade and roll back a host in a directory, from a real registry
	demo/run.sh
test: ## set up, lint, types, import contracts, tests
	scripts/test.sh
lint: ## style and import contracts
	scripts/check.sh lint
types: ## mypy
	scripts/check.sh types
check: ## lint and types
	scripts/check.sh
bench: ## pull and import 1 GB against podman and ostree (root; the first time builds the image)
	scripts/setup.sh bench
	python3 benchmarks/bench.py .cache/bench
bench-ostree: ## the ostree backend against the ostree program, on the same image (root)
	scripts/setup.sh bench
	python3 benchmarks/bench_ostree.py .cache/bench
bench-update: ## bytes on the wire for an update of 30 packages, by file and by layer, against podman (root)
	scripts/setup.sh bench
	python3 benchmarks/bench_update.py .cache/bench
conformance: ## images of podman, buildah, skopeo and umoci from registries of every kind, all pairs (root)
	BOOTC_CONFORMANCE=all .venv/bin/python -m pytest -q -s tests/scenarios/test_conformance.py
credential-chains: ## 10,000 chains of redirects and token servers: no secret goes where it does not belong
	BOOTC_CREDENTIAL_CHAINS=10000 .venv/bin/python -m pytest -q -s tests/scenarios/test_credential_chains.py
fault-proxy: ## 100 pulls of some 40 MB through a proxy that breaks one request in three, and 30 killed ones
	BOOTC_FAULT_PULLS=100 .venv/bin/python -m pytest -q -s tests/scenarios/test_fault_proxy.py
bad-inputs: ## every point of every row of the catalogue of bad inputs (root)
	BOOTC_BAD_INPUTS=all .venv/bin/python -m pytest -q -s tests/scenarios/bad_inputs tests/architecture/test_catalogue.py
fsck: ## damage every kind of thing in every way, and see bootc fsck name it and put it back
	BOOTC_FSCK=all .venv/bin/python -m pytest -q tests/scenarios/test_fsck.py tests/plugins/ostree/test_fsck.py
misbehaviour: ## eight kinds of misbehaving plugins in every hook of a child process, both policies
	BOOTC_MISBEHAVIOUR=all .venv/bin/python -m pytest -q tests/core/containment
vm: ## install, boot, upgrade, reboot and roll back virtual machines, each backend and bootloader (root)
	scripts/setup.sh vm
	.venv/bin/python vm/cycle.py $(VM)
vm-health: ## updates that hang at boot or are not healthy are taken back by the machine itself (root)
	scripts/setup.sh vm
	.venv/bin/python vm/health.py
vm-kill: ## pull the plug of a virtual machine at random moments of upgrades; it always boots (root)
	scripts/setup.sh vm
	.venv/bin/python vm/kill.py $(VM)
fuzz: ## fuzz every parser for TIME seconds each (default 300), guided by coverage (atheris)
	-.venv/bin/pip install -q atheris
	for target in $$(.venv/bin/python -c 'import sys; sys.path[:0] = ["tests/fuzz", "tests"]; import targets; print(*targets.TARGETS)'); do .venv/bin/python tests/fuzz/fuzz.py $$target $${TIME:-300} || exit 1; done
fuzz-diff: ## compare the tar reader with tarfile, GNU tar and bsdtar on EXAMPLES generated archives (default 100000)
	BOOTC_FUZZ_EXAMPLES=$${EXAMPLES:-100000} .venv/bin/python -m pytest -q tests/fuzz -k "tar"
ostree-versions: ## the ostree backend's tests with the libostree of Debian 13 and of unstable, in chroots (root)
	python3 scripts/ostree_versions.py .cache/ostree
live-host: ## all that commands do on a running host, in mount namespaces (root)
	.venv/bin/python -m pytest -q tests/system/test_live_host.py tests/system/live_host_more.py
bound-memory: ## measure the memory of all processes on hostile and large inputs: below 256 MiB
	BOOTC_MEMORY=all .venv/bin/python -m pytest -q -s tests/scenarios/test_memory.py
model: ## explore the model of a transaction (Spin) and drive the real engine by it; seeded defects have to be found
	python3 docs/model/run.py
	BOOTC_MODEL=all .venv/bin/python -m pytest -q tests/model
.PHONY: chaos chaos-kill chaos-errno chaos-medium chaos-power chaos-flushes chaos-parallel
chaos: chaos-kill chaos-errno chaos-medium chaos-power chaos-flushes chaos-parallel ## all of the following (root; hours)
CHAOS = .venv/bin/python -m bootc_core.testing.chaos
OURS = --subject tests/chaos/composefs_subject.py --subject tests/chaos/ostree_subject.py
SUBJECTS = $(OURS) --subject examples/plain_storage/chaos.py
chaos-kill: ## SIGKILL before every system call on the sysroot, then before every durable step
	$(CHAOS) kill $(SUBJECTS) --json .cache/chaos/kill.json $(CHAOS_OPTIONS)
	BOOTC_KILL_EVERY=1 .venv/bin/python -m pytest -q -s tests/scenarios/test_killed.py
chaos-errno: ## ENOSPC, EIO, EROFS, EDQUOT, ENOMEM and EMFILE at each of them, and disks that are nearly full
	$(CHAOS) errno fill $(SUBJECTS) --json .cache/chaos/errno.json $(CHAOS_OPTIONS)
chaos-medium: ## writes that are lost, cut short or changed
	$(CHAOS) medium $(OURS) --json .cache/chaos/medium.json $(CHAOS_OPTIONS)
chaos-power: ## 50,000 power cuts: all prefixes, reordered and torn writes, on ext4, XFS, btrfs and FAT
	$(CHAOS) power --states 17000 $(SUBJECTS) --json .cache/chaos/power.json $(CHAOS_OPTIONS)
chaos-flushes: ## one flush after the other taken away: each has to be missed
	$(CHAOS) flushes $(SUBJECTS) --json .cache/chaos/flushes.json $(CHAOS_OPTIONS)
chaos-parallel: ## 64 updaters, 64 readers and a collector at once, 100 times
	$(CHAOS) parallel --rounds 100 --updaters 64 --readers 64 $(SUBJECTS) --json .cache/chaos/parallel.json $(CHAOS_OPTIONS)
clean: ## remove caches and the environment
	rm -rf .cache .venv
