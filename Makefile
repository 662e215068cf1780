# `make help` lists the targets. Tools are pinned here and live in .tools/, outside go.mod.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

TOOLS   := $(CURDIR)/.tools
BIN     := $(TOOLS)/bin
export PATH := $(BIN):$(TOOLS)/npm/node_modules/.bin:$(PATH)
export GOFLAGS := -mod=readonly -buildvcs=false
export CGO_ENABLED ?= 0
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -buildid= -X main.version=$(VERSION)

GOLANGCI       := v2.15.0
GOFUMPT        := v0.12.0
PROTOC_GEN_GO  := v1.36.12
CONNECT_GEN_GO := v1.21.1
BUF            := 1.75.0
GRPCURL        := v1.9.3

# FRACTION scales the heavy counts: 1 is the full N of the issues, `make test` runs a tenth.
FRACTION ?= 0.1
PKGS := ./...

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

.PHONY: build
build: ## build bin/shoal, stripped and reproducible
	go build -trimpath -ldflags '$(LDFLAGS)' -o bin/shoal ./cmd/shoal

.PHONY: check
check: fmt-check vet lint cross gen-check ## the quick loop: format, vet, lint, layers, generated files, unit tests with -race
	CGO_ENABLED=1 go test -race -short -timeout 5m $(PKGS)

.PHONY: test
test: fmt-check vet lint cross gen-check deps-e2e build ## everything: installs what it needs, then runs it all
	CGO_ENABLED=1 go test -race -timeout 10m $(PKGS)
	SHOAL_FRACTION=$(FRACTION) SHOAL_BIN=$(CURDIR)/bin/shoal go test -count=1 -tags e2e -timeout 20m ./test/...
	cd bench && go vet ./... && SHOAL_BIN=$(CURDIR)/bin/shoal go run . -quick

.PHONY: soak
soak: deps-e2e build ## the heavy counts in full
	SHOAL_FRACTION=1 SHOAL_BIN=$(CURDIR)/bin/shoal go test -count=1 -tags e2e -v -timeout 120m ./test/...

.PHONY: bench
bench: build ## each figure beside its floor, measured in the same run
	cd bench && SHOAL_BIN=$(CURDIR)/bin/shoal go run .

.PHONY: bench-json
bench-json: build ## the same, one JSON object a line
	@cd bench && SHOAL_BIN=$(CURDIR)/bin/shoal go run . -json

.PHONY: fuzz
fuzz: ## each fuzz target for 20 s
	@for p in $$(go list ./...); do for f in $$(go test -list '^Fuzz' $$p | grep '^Fuzz' || true); do \
		echo "$$p $$f"; go test -run '^$$' -fuzz "^$$f$$" -fuzztime 20s $$p; done; done

.PHONY: gen
gen: tools-proto ## generate code from proto/
	cd proto && buf generate --path shoal

.PHONY: gen-check
gen-check: tools-proto ## fail if generated code is stale
	cd proto && buf lint
	@tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	mkdir -p $$tmp/repo && cp -r proto $$tmp/repo/ && cd $$tmp/repo/proto && buf generate --path shoal && \
	diff -r $$tmp/repo/gen $(CURDIR)/gen && diff -r $$tmp/repo/internal/gen $(CURDIR)/internal/gen || \
	{ echo "generated code is stale: run make gen"; exit 1; }

.PHONY: fmt
fmt: tools-go ## format
	gofumpt -w $$(git ls-files -co --exclude-standard '*.go' | grep -v '/gen/\|^gen/')

.PHONY: fmt-check
fmt-check: tools-go
	@bad=$$(gofumpt -l $$(git ls-files -co --exclude-standard '*.go' | grep -v '/gen/\|^gen/')); \
	if [ -n "$$bad" ]; then echo "not formatted (make fmt):"; echo "$$bad"; exit 1; fi

.PHONY: vet
vet:
	go mod verify >/dev/null
	go vet $(PKGS)

.PHONY: lint
lint: tools-go
	golangci-lint run --timeout 10m

.PHONY: cross
cross: ## it also builds for macOS and Windows
	GOOS=darwin go build -o /dev/null ./cmd/shoal
	GOOS=windows go build -o /dev/null ./cmd/shoal

# Installing a tool leaves a stamp with its version, so a new version is installed anew.
.PHONY: tools-go tools-proto deps-e2e
tools-go: $(BIN)/.golangci-$(GOLANGCI) $(BIN)/.gofumpt-$(GOFUMPT)
tools-proto: $(BIN)/.pgg-$(PROTOC_GEN_GO) $(BIN)/.pgc-$(CONNECT_GEN_GO) $(TOOLS)/npm/.buf-$(BUF)
deps-e2e: $(BIN)/.grpcurl-$(GRPCURL) $(TOOLS)/python/.ready

$(BIN)/.golangci-$(GOLANGCI):
	GOFLAGS= GOBIN=$(BIN) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI) && touch $@
$(BIN)/.gofumpt-$(GOFUMPT):
	GOFLAGS= GOBIN=$(BIN) go install mvdan.cc/gofumpt@$(GOFUMPT) && touch $@
$(BIN)/.pgg-$(PROTOC_GEN_GO):
	GOFLAGS= GOBIN=$(BIN) go install google.golang.org/protobuf/cmd/protoc-gen-go@$(PROTOC_GEN_GO) && touch $@
$(BIN)/.pgc-$(CONNECT_GEN_GO):
	GOFLAGS= GOBIN=$(BIN) go install connectrpc.com/connect/cmd/protoc-gen-connect-go@$(CONNECT_GEN_GO) && touch $@
$(BIN)/.grpcurl-$(GRPCURL):
	GOFLAGS= GOBIN=$(BIN) go install github.com/fullstorydev/grpcurl/cmd/grpcurl@$(GRPCURL) && touch $@
$(TOOLS)/npm/.buf-$(BUF):
	mkdir -p $(TOOLS)/npm && cd $(TOOLS)/npm && npm install --no-save --no-audit --no-fund --prefix . @bufbuild/buf@$(BUF) && touch $@
$(TOOLS)/python/.ready: test/interop/requirements.txt
	python3 -m venv $(TOOLS)/python && $(TOOLS)/python/bin/pip install -q -r test/interop/requirements.txt && touch $@
