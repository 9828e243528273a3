#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Compares Go benchmarks of another commit with those of the files as they are here: the test programs of
# both are built first and then run in turn, and benchstat tells which differences aren't chance.
#
# usage: scripts/benchstat.sh [COMMIT [PACKAGE [BENCHMARK [ROUNDS]]]]
#        (default: HEAD ./convert/inflate . 6)
set -euo pipefail
cd "$(dirname "$0")/.."
commit=${1:-HEAD} package=${2:-./convert/inflate} pattern=${3:-.} rounds=${4:-6}
benchstat=golang.org/x/perf/cmd/benchstat@v0.0.0-20260908200009-22c9c6c9d4da
dir=$(mktemp -d)
trap 'git worktree remove --force "$dir/tree" 2>/dev/null || true; rm -rf "$dir"' EXIT
git worktree add -q --detach "$dir/tree" "$commit"
(cd "$dir/tree" && go test -c -o "$dir/before.test" "$package")
go test -c -o "$dir/after.test" "$package"
for ((i = 0; i < rounds; i++)); do
	for side in before after; do
		# In the package's folder, where the tests' files are.
		(cd "$package" && "$dir/$side.test" -test.run '^$' -test.bench "$pattern" -test.benchmem -test.benchtime 200ms) >>"$dir/$side.txt"
	done
done
go run "$benchstat" "before=$dir/before.txt" "after=$dir/after.txt"
