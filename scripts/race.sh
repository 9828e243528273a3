#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Run the tests of the module in this folder with the race detector. Under it they take four to eight times
# as long, and a property that holds for 100 random cases without it needs fewer with it: what is looked for is a
# race, not a wrong byte. GO is the go command.
set -euo pipefail
GO=${GO:-go}
checks=20
export CGO_ENABLED=1
# Collecting garbage is most expensive under it: a fifth of the time of convert's tests.
export GOGC=400

list=$($GO list -f '{{.ImportPath}} {{join .TestImports " "}} {{join .XTestImports " "}}' ./...)
properties=$(awk '/ pgregory\.net\/rapid( |$)/ { print $1 }' <<<"$list")
others=$(awk '!/ pgregory\.net\/rapid( |$)/ { print $1 }' <<<"$list")

# shellcheck disable=SC2086 # lists of words
[ -z "$others" ] || $GO test -vet=off -race -timeout 30m $others
# shellcheck disable=SC2086
[ -z "$properties" ] || $GO test -vet=off -race -timeout 30m $properties -args -rapid.checks=$checks
