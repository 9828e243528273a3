# SPDX-License-Identifier: Apache-2.0
#
# Every target does its own set-up. `make help` lists them.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

GO ?= go
FUZZTIME ?= 10s
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

# Modules of their own, for what they need has no place in the product: `./...` in the root does not
# reach them.
MODULES := . cmd/localcloud cmd/ociimage cmd/packer-plugin-imsprep packaging/sbom pkg/ims/sdktest pkg/metrics/promtest pkg/pipeline/batch/kubetest scripts/bench

# Those in which several goroutines of ours run. The others build or check files, and bring what is slow to compile.
RACE_MODULES := . cmd/localcloud cmd/packer-plugin-imsprep pkg/ims/sdktest

# mkfs.ext4 and sfdisk are outside the path of ordinary users on Debian.
export PATH := $(PATH):/usr/sbin:/sbin

# On a CI machine nothing may be skipped.
ifneq (,$(filter true 1,$(CI)))
export IMSPREP_CI := 1
endif

# Go's own stamp needs a git that trusts the folder; without one the build goes on without it.
VCS := $(shell git rev-parse -q --verify HEAD >/dev/null 2>&1 && echo true || echo false)
VERSION ?= $(shell git describe --always --dirty --tags 2>/dev/null || echo unknown)
BUILD := -trimpath -buildvcs=$(VCS) -ldflags '-s -w -X main.version=$(VERSION)'

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: build ## take a real QCOW2 disk to an image id on a cloud on this machine, and compare the content
	@scripts/demo.sh

.PHONY: demo-batch
demo-batch: setup build ## import twelve mixed disks as a batch into a cloud on this machine, with a run that is killed
	@scripts/demo-batch.sh

.PHONY: build
build: ## build bin/imsprep and bin/localcloud
	CGO_ENABLED=0 $(GO) build $(BUILD) -o bin/ ./cmd/imsprep
	cd cmd/localcloud && CGO_ENABLED=0 $(GO) build $(BUILD) -o ../../bin/ .

.PHONY: setup
setup: ## install the tools that tests use (qemu-utils, e2fsprogs, fdisk), where possible
	@scripts/setup.sh

.PHONY: test
test: setup ## run the tests of all modules
	@for m in $(MODULES); do echo "go test ./... in $$m"; (cd $$m && $(GO) test -vet=off -timeout 20m ./...) || exit 1; done

.PHONY: race
race: ## run the tests of all modules in which goroutines of ours run with the race detector
	@scripts/setup.sh race
	@for m in $(RACE_MODULES); do echo "go test -race ./... in $$m"; (cd $$m && GO="$(GO)" $(CURDIR)/scripts/race.sh) || exit 1; done

.PHONY: lint
lint: ## gofmt, go vet and staticcheck on all modules
	@unformatted=$$(find . -name '*.go' -not -path './.git/*' -exec gofmt -l {} +); \
	if [ -n "$$unformatted" ]; then echo "gofmt would change:"; echo "$$unformatted"; exit 1; fi
	@for m in $(MODULES); do echo "go vet and staticcheck in $$m"; \
		(cd $$m && $(GO) vet ./... && $(GO) run $(STATICCHECK) ./...) || exit 1; done

.PHONY: fuzz
fuzz: setup ## run every fuzz target for FUZZTIME (10s)
	@scripts/fuzz.sh $(FUZZTIME)

.PHONY: cross
cross: ## build imsprep for linux, darwin and windows, amd64 and arm64, into bin/cross
	@scripts/cross.sh $(BUILD)

.PHONY: image
image: ## build container images for linux, amd64 and arm64, into bin/image, without a daemon
	@VERSION='$(VERSION)' scripts/image.sh $(BUILD)

.PHONY: package
package: ## make archives, deb and rpm packages, bills of materials and checksums, in dist
	@scripts/setup.sh package
	@scripts/package.sh $(VERSION) dist $(TARGETS)

.PHONY: check-package
check-package: ## make the packages of linux/amd64 twice, and compare them
	@scripts/setup.sh package
	@scripts/check-reproducible.sh

PREFIX ?= /usr/local
SHARE = $(DESTDIR)$(PREFIX)/share

.PHONY: install
install: ## install program, manual pages and completions below PREFIX (/usr/local), with DESTDIR before it
	CGO_ENABLED=0 $(GO) build $(BUILD) -o bin/ ./cmd/imsprep
	rm -rf bin/man && CGO_ENABLED=0 $(GO) run $(BUILD) -tags man ./cmd/imsprep man bin/man
	install -D -m 755 bin/imsprep $(DESTDIR)$(PREFIX)/bin/imsprep
	install -d $(SHARE)/man/man1 && install -m 644 bin/man/*.1 $(SHARE)/man/man1
	install -d $(SHARE)/bash-completion/completions $(SHARE)/zsh/site-functions $(SHARE)/fish/vendor_completions.d
	bin/imsprep completion bash >$(SHARE)/bash-completion/completions/imsprep
	bin/imsprep completion zsh >$(SHARE)/zsh/site-functions/_imsprep
	bin/imsprep completion fish >$(SHARE)/fish/vendor_completions.d/imsprep.fish

.PHONY: bench
bench: build ## measure against qemu-img, nbdcopy, go-qcow2reader, s3cmd, rclone, zstd (BENCH_QUICK=1: a look)
	@scripts/setup.sh bench
	cd scripts/bench && $(GO) build -trimpath -o ../../bin/peers .
	bin/peers

.PHONY: gobench
gobench: setup ## run the Go benchmarks (scripts/benchstat.sh compares two commits)
	$(GO) test -run '^$$' -bench . -benchmem ./...

.PHONY: testdata
testdata: setup ## make the sample disks of testdata again
	@scripts/make-testdata.sh

.PHONY: clean
clean: ## remove what was built
	rm -rf bin dist
