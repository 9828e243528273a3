#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Makes the packages twice, the second time from a copy of the sources in another folder, with a build cache, time zone
# and umask of its own, and compares every file.
#
# usage: scripts/check-reproducible.sh [OS/ARCH...]       default: linux/amd64; every system takes a whole build
set -euo pipefail
cd "$(dirname "$0")/.."
targets=("$@")
((${#targets[@]})) || targets=(linux/amd64)
version=$(git describe --always --tags 2>/dev/null || echo unknown)
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
export SOURCE_DATE_EPOCH
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
mkdir "$tmp/a longer path"
git ls-files -z --cached --others --exclude-standard | tar --null -T - -cf - | tar -C "$tmp/a longer path" -xf -

[ -n "${NFPM:-}" ] || GOBIN=$tmp/bin go install github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.44.1
export NFPM=${NFPM:-$tmp/bin/nfpm} # it only packs; the program is what may not come from a cache
scripts/package.sh "$version" "$tmp/first" "${targets[@]}" >/dev/null
(
	umask 077
	export TZ=Asia/Tokyo
	cd "$tmp/a longer path"
	GOCACHE=$tmp/cache scripts/package.sh "$version" "$tmp/second" "${targets[@]}" >/dev/null
)
diff -r "$tmp/first" "$tmp/second" || { echo "reproducible: the two differ" >&2; exit 1; }
echo "reproducible: $(wc -l <"$tmp/first/SHA256SUMS") files are equal"
