#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Runs every fuzz target of all modules for a while, as many at a time as there are
# processors. Targets are found by asking the test binaries, so that a new one needs no
# entry here.
#
# usage: scripts/fuzz.sh [TIME]      TIME for each target (default: 10s)
set -euo pipefail
cd "$(dirname "$0")/.."
export FUZZ_TIME=${1:-10s} FUZZ_LOGS
FUZZ_LOGS=$(mktemp -d)
trap 'rm -rf "$FUZZ_LOGS"' EXIT

for module in . cmd/localcloud pkg/ims/sdktest; do
	# "go test -list" prints the names of a package's targets, then a line about the package.
	(cd "$module" && go test -list '^Fuzz' ./...) >"$FUZZ_LOGS/list" || { cat "$FUZZ_LOGS/list" >&2; exit 1; }
	awk -v module="$module" '/^Fuzz/ { names[++n] = $1 } /^ok/ { for (i = 1; i <= n; i++) print module, $2, names[i]; n = 0 }' "$FUZZ_LOGS/list"
done >"$FUZZ_LOGS/targets"
if ! [ -s "$FUZZ_LOGS/targets" ]; then
	echo "fuzz: no target was found" >&2
	exit 1
fi

# fuzz LOG PACKAGE TARGET
fuzz() {
	go test -run '^$' -fuzz "^$3\$" -fuzztime "$FUZZ_TIME" -fuzzminimizetime 5s -parallel 1 "$2" >"$1" 2>&1
}

# target MODULE PACKAGE TARGET
target() {
	local log="$FUZZ_LOGS/${2//\//_}.$3"
	cd "$1"
	# A worker that is stopped at the deadline may be reported as a failure without
	# an input; such a run says nothing, so it is made once more.
	if ! fuzz "$log" "$2" "$3" && ! { grep -q 'context deadline exceeded' "$log" &&
		! grep -q 'Failing input written' "$log" && fuzz "$log" "$2" "$3"; }; then
		printf 'fuzz %s %s: FAILED\n' "$2" "$3"
		cat "$log" >&2
		exit 255 # xargs begins no other
	fi
	printf 'fuzz %s %s: %s\n' "$2" "$3" "$(awk '/execs:/ { line = $0 } END { sub(/^fuzz: /, "", line); print line }' "$log")"
}
export -f fuzz target
xargs -P "$(nproc)" -L 1 bash -euo pipefail -c 'target "$@"' target <"$FUZZ_LOGS/targets"
