#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Runs every fuzz target of all modules for a while. Targets are found by asking
# the test binaries, so that a new one needs no entry here.
#
# usage: scripts/fuzz.sh [TIME]      TIME for each target (default: 10s)
set -euo pipefail
cd "$(dirname "$0")/.."
time=${1:-10s}
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# fuzz PACKAGE TARGET
fuzz() {
	go test -run '^$' -fuzz "^$2\$" -fuzztime "$time" -fuzzminimizetime 5s "$1" >"$log" 2>&1
}

count=0
for module in . cmd/localcloud pkg/ims/sdktest; do
	cd "$module"
	# "go test -list" prints the names of a package's targets, then a line about the package.
	go test -list '^Fuzz' ./... >"$log" || { cat "$log" >&2; exit 1; }
	targets=$(awk '/^Fuzz/ { names[++n] = $1 } /^ok/ { for (i = 1; i <= n; i++) print $2, names[i]; n = 0 }' "$log")
	while read -r package target; do
		[ -n "$target" ] || continue
		count=$((count + 1))
		printf 'fuzz %s %s: ' "$package" "$target"
		# A worker that is stopped at the deadline may be reported as a failure without
		# an input; such a run says nothing, so it is made once more.
		if ! fuzz "$package" "$target" && ! { grep -q 'context deadline exceeded' "$log" &&
			! grep -q 'Failing input written' "$log" && fuzz "$package" "$target"; }; then
			echo FAILED
			cat "$log" >&2
			exit 1
		fi
		awk '/execs:/ { line = $0 } END { sub(/^fuzz: /, "", line); print line }' "$log"
	done <<<"$targets"
	cd "$OLDPWD"
done
if [ "$count" = 0 ]; then
	echo "fuzz: no target was found" >&2
	exit 1
fi
