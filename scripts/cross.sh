#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Builds imsprep for every system that it is released for, into bin/cross.
#
# usage: scripts/cross.sh [go build flags]
set -euo pipefail
cd "$(dirname "$0")/.."
export CGO_ENABLED=0
for os in linux darwin windows; do
	for arch in amd64 arm64; do
		name=bin/cross/imsprep-$os-$arch
		[ "$os" != windows ] || name=$name.exe
		GOOS=$os GOARCH=$arch go build -trimpath "$@" -o "$name" ./cmd/imsprep
		printf '%s\t%s bytes\n' "$name" "$(wc -c <"$name" | tr -d ' ')"
	done
done
