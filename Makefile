# The common tasks of rpmemfs. `make help` lists them.

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:

GO      ?= go
CC      ?= gcc
BIN     ?= bin
DESTDIR ?=
PREFIX  ?= /usr/local
SEED    ?= 1

# Every C file is compiled with warnings as errors.
CSTD   := -std=c11 -O2 -g -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror
CFLAGS ?=

# have tells whether a library's header is there.
HASH := \#
have = $(shell printf '$(HASH)include <$(1)>\n' | $(CC) -E - >/dev/null 2>&1 && echo yes)

# The verbs transport is built where rdma-core is (package libibverbs-dev, librdmacm-dev), and
# with FLUSH where its headers have it (version 56). Everything that runs go sees the tags:
# tests build programs, too. They are looked for anew by each recipe, as install-deps may just
# have brought them.
TAGS = $(shell pkg-config --exists libibverbs librdmacm 2>/dev/null && echo rdma$(RDMA_FLUSH))
RDMA_FLUSH = $(shell printf '$(HASH)include <infiniband/verbs.h>\nint op = IBV_WR_FLUSH;\n' | \
	$(CC) -fsyntax-only -x c - 2>/dev/null && echo ,rdmaflush)
OWN_GOFLAGS := $(GOFLAGS)
export GOFLAGS = $(strip $(OWN_GOFLAGS) $(addprefix -tags=,$(TAGS)))

C_SOURCES := $(wildcard examples/*/*.c tests/c/*.c)
ifneq ($(call have,lmdb.h),yes)
C_SOURCES := $(filter-out %/lmdb.c,$(C_SOURCES))
endif
ifneq ($(call have,libpmemobj.h),yes)
C_SOURCES := $(filter-out %_pmemobj.c,$(C_SOURCES))
endif
C_BINS    := $(patsubst %.c,$(BIN)/%,$(notdir $(C_SOURCES)))
C_LIB     := $(BIN)/librpmemfs/librpmemfs.a
vpath %.c $(sort $(dir $(C_SOURCES)))

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  %-10s %s\n", $$1, $$2}' Makefile

.PHONY: build
build: ## the daemon, the tool and the mount helper into bin/
	@mkdir -p $(BIN)
	$(GO) build -o $(BIN)/ ./cmd/...

.PHONY: lib
lib: ## the C library into bin/librpmemfs/
	$(MAKE) --no-print-directory -C librpmemfs B=$(abspath $(BIN))/librpmemfs

.PHONY: c
c: lib $(C_BINS) ## examples and test programs in C into bin/

$(C_LIB): lib ;

$(BIN)/lmdb: LDLIBS += -llmdb
$(BIN)/%_pmemobj: LDLIBS += -lpmemobj
$(BIN)/%: %.c $(C_LIB)
	@mkdir -p $(BIN)
	$(CC) $(CSTD) $(CFLAGS) -Ilibrpmemfs -o $@ $< $(C_LIB) $(LDLIBS) -lpthread -lm

.PHONY: demo
demo: ## banks that are killed twenty times, lose their machines, and never a coin
	@tests/install.sh fuse
	$(MAKE) --no-print-directory build c
	examples/demo.sh $(BIN)
	examples/demo_nodes.sh $(BIN)

.PHONY: install-deps
install-deps:
	@tests/install.sh all

.PHONY: test
test: install-deps testc ## everything this machine can run, in minutes
	$(GO) test -timeout 20m ./...
	@echo "== programs over a memory node"
	$(GO) test -timeout 20m ./tests -node -rounds 4 -skip '$(NOT_NODE_TESTS)'
	$(MAKE) --no-print-directory lab

# Emulated machines with RDMA and persistent memory; needs both processors. LABFLAGS are
# those of go test, such as '-run Crash'.
LABFLAGS ?=
.PHONY: lab
lab: ## RDMA between emulated machines that lose power; LABFLAGS='-run Crash' for one
	@echo "== lab"
	$(GO) test -v -count 1 -timeout 20m ./tests/lab -lab $(LABFLAGS)

# All others are run once more with a memory node in place of a pool of their own: these
# need the pool's files, have a memory node anyway, mount nothing, or bound the memory of a
# daemon that keeps no clean pages.
NOT_NODE_TESTS := OverlayBound|Background|MountHelper|Demo|BadPools|PoolIsLocked|Damaged|Node|Readers|Imports|HeapSameBytes|ExactModel

# The C library's own tests, and again under the sanitizers.
.PHONY: testc
testc:
	@for kind in plain address,undefined thread; do
		sanitize= check=check
		test $$kind = plain || sanitize=-fsanitize=$$kind
		test $$kind != thread || check=check-threads
		echo "== librpmemfs: $$kind"
		$(MAKE) --no-print-directory -s -C librpmemfs SEED=$(SEED) SANITIZE=$$sanitize \
			B=$(abspath $(BIN))/librpmemfs-$${kind%%,*} $$check
	done

.PHONY: race
race: install-deps ## all tests under the race detector, daemon included
	$(GO) test -race -timeout 40m ./...

# FUZZTIME is spent on each target.
FUZZTIME ?= 30s
.PHONY: fuzz
fuzz: ## every fuzz target, FUZZTIME (30s) each
	@$(GO) list -f '{{.ImportPath}} {{.Dir}}' ./... | while read -r pkg dir; do
		{ grep -hoE '^func Fuzz[A-Za-z0-9_]+' "$$dir"/*_test.go 2>/dev/null || true; } |
		while read -r _ name; do
			echo "== $$pkg $$name"
			$(GO) test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) "$$pkg"
		done
	done

# CUTS power cuts in simulation, ROUNDS kills of each kind of program, EXACT kills of
# programs with restart points (some ten epochs each).
CUTS   ?= 100000
ROUNDS ?= 500
EXACT  ?= 1000
.PHONY: crash
crash: install-deps ## many power cuts and kills; CUTS, ROUNDS and SEED replay one
	$(GO) test -timeout 120m -run PowerCuts ./memnode -cuts $(CUTS) -seed $(SEED)
	$(GO) test -timeout 120m -run 'Kill|SQLite|LMDB|Bolt|Damaged|Memcached|Threads' ./tests \
		-rounds $(ROUNDS) -seed $(SEED)
	$(GO) test -timeout 120m -run Exact ./tests -rounds $(EXACT) -seed $(SEED)
	$(GO) test -timeout 120m ./tests/sim -run Together -schedules 20000 -seed $(SEED)
	$(GO) test -timeout 120m ./tests/sim -run Schedules -schedules 3000 -seed $(SEED)

.PHONY: bench
bench: ## compare with go-fuse's loopback file system and others; prints one table
	@tests/install.sh all
	$(GO) run ./tests/bench $(BENCHFLAGS)

.PHONY: lint
lint: ## formatting, vet, staticcheck, go.mod, C warnings
	@out=$$(gofmt -l .); test -z "$$out" || { echo "gofmt: $$out"; exit 1; }
	$(GO) vet ./...
	GOFLAGS= $(GO) vet ./...
	$(GO) tool -modfile=tools.mod staticcheck ./...
	$(GO) mod tidy -diff
	@for f in $(C_SOURCES); do
		echo "cc $$f"
		$(CC) $(CSTD) -Ilibrpmemfs -fsyntax-only "$$f"
	done
	for f in $$($(GO) list -f '{{range .CFiles}}{{$$.Dir}}/{{.}} {{end}}' ./rdmacache/verbs); do
		echo "cc $$f"
		$(CC) $(CSTD) -fsyntax-only "$$f"
	done

.PHONY: install
install: build lib ## into DESTDIR PREFIX (/usr/local), mount helper into /sbin, systemd units
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)/sbin
	install -m 755 $(BIN)/rpmemfs $(BIN)/rpmemctl $(DESTDIR)$(PREFIX)/bin
	ln -sf $(PREFIX)/bin/rpmemfs $(DESTDIR)/sbin/mount.fuse.rpmemfs
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system $(DESTDIR)$(PREFIX)/lib/sysusers.d
	sed 's|/usr/local/bin|$(PREFIX)/bin|' dist/rpmemfs-serve.service |
		install -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/lib/systemd/system/rpmemfs-serve.service
	install -m 644 dist/rpmemfs.sysusers $(DESTDIR)$(PREFIX)/lib/sysusers.d/rpmemfs.conf
	$(MAKE) --no-print-directory -C librpmemfs B=$(abspath $(BIN))/librpmemfs install

.PHONY: clean
clean: ## what was built
	rm -rf $(BIN)
