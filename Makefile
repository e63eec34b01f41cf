# Debian 12 or newer with Go; `scripts/setup` installs the rest. Lab and tests make namespaces and so need root: started by anybody else, these
# parts run under sudo.
SHELL := /bin/bash
export PATH := $(PATH):/usr/local/go/bin
GO ?= go
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
COMMIT := $(shell git rev-parse --short=12 HEAD 2>/dev/null)
BUILT := $(shell date -u +%Y-%m-%dT%H:%M:%SZ)
# gin without MessagePack, which nobody speaks here: a sixth less to compile, and in the program. And without what a debugger needs: another.
export GOFLAGS := $(GOFLAGS) -tags=nomsgpack -pgo=off -gcflags=all=-dwarf=false -ldflags=-w
# What is shipped is compiled for what a profile of accepts finds hot, and without this machine's paths. That is every package once more, so
# .ci/run has the flags of the tests here.
PROFILE := cmd/parry/default.pgo
RELEASE ?= -trimpath '-pgo=$(CURDIR)/$(PROFILE)' -gcflags=all=
# The packages whose tests `make test` runs, and further flags: make test PKG=./internal/store TESTFLAGS='-run Put -v'
# The longest first, so that none of them is left alone at the end.
ALL := ./playbooks ./internal/app ./internal/store ./internal/reconcile ./internal/cli ./internal/testenv ./...
PKG ?= $(ALL)
TESTFLAGS ?=
BENCH ?= .
# The race detector watches all but SQLite's C and its malloc, which a machine has translated to Go: there it finds nothing of ours and makes
# it four times as slow.
RACE := -race $(foreach p,sqlite/lib libc memory,'-gcflags=modernc.org/$(p)=-race=false -dwarf=false')
ifeq ($(PKG)$(TESTFLAGS),$(ALL))
SEQUENCES := sequences
endif
AS_ROOT := $(if $(filter-out 0,$(shell id -u)),-exec 'sudo -E -H')

.PHONY: build mailcatcher demo test tests sequences bench profile lint generate check-generated clean help

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | column -t -s "$$(printf '\t')"

build: ## bin/parry
	@scripts/setup build
	$(GO) build $(RELEASE) -buildvcs=false -ldflags '-X main.version=$(VERSION) -X main.commit=$(COMMIT) -X main.built=$(BUILT)' -o bin/parry ./cmd/parry

mailcatcher: # for the demo
	$(GO) build $(RELEASE) -buildvcs=false -o bin/mailcatcher ./internal/testenv/cmd/mailcatcher

demo: ## a minute's tour on a lab firewall; KEEP=1 leaves it up
	@KEEP=$(KEEP) lab/demo/run

test: ## all tests, with the race detector, on SQLite and PostgreSQL
	@scripts/setup test
	@$(MAKE) --no-print-directory -j2 tests $(SEQUENCES)

tests:
	CI=1 $(GO) test -vet=off $(RACE) $(AS_ROOT) -timeout 40m $(TESTFLAGS) $(PKG)

sequences: # 10,000, for which the race detector is too slow; they wait for the disk, so that others can run beside them
	CI=1 PARRY_SEQUENCES=100 $(GO) test -vet=off $(AS_ROOT) -run TestDerivedStates_anySequence ./internal/store

bench: ## the figures: latency against bare Ansible, durable accepts, storm; BENCH= picks one
	@scripts/setup test
	@scripts/bench '$(BENCH)'

profile: ## the profile that the compiler goes by, anew; worth it when the way of a request has changed
	@scripts/setup test
	cd internal/httpapi && GOGC=200 $(GO) test $(RELEASE) -run '^$$' -bench CreateBlock/sqlite/clients=64 -benchtime 100000x -o ../../bin/httpapi.test -cpuprofile ../../$(PROFILE)

lint: bin/golangci-lint ## gofmt, golangci-lint (vet and layers too), shellcheck, php -l, ansible-lint, yamllint
	@scripts/setup test
	GOFLAGS="$(GOFLAGS) $(RACE)" scripts/lint # it loads what the tests are linked of

bin/golangci-lint: tools/go.mod tools/go.sum
	$(GO) build -modfile=tools/go.mod -buildvcs=false -o $@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint

generate: ## code that is made from other files
	$(GO) generate ./...

check-generated: ## fails when `make generate` would change something
	scripts/check-generated

clean:
	rm -rf bin
