#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Uploads over shaped lines (a rate of each connection, one of all together, a latency; in this process, to a server on
# the loopback interface) with 1, 4 and 16 parts at the same time and with as many as are found, and prints for each line
# the medians in MB/s and how they compare with auto's. The lines are in BenchmarkConcurrency.
#
# usage: scripts/bench-concurrency.sh [ROUNDS]     (default: 3, some minutes)
set -euo pipefail
cd "$(dirname "$0")/.."

rounds=${1:-3}
go test ./pkg/obs -run '^$' -bench '^BenchmarkConcurrency$' -benchtime 1x -count "$rounds" -timeout 60m |
	tee /dev/stderr |
	awk '
	/^BenchmarkConcurrency\// {
		split($1, name, "/")
		line = name[2]
		how = name[3]
		sub(/-[0-9]+$/, "", how)
		for (i = 3; i < NF; i += 2) {
			if ($(i + 1) == "MB/s") rate = $i
			if ($(i + 1) == "last") last = $i
			if ($(i + 1) == "slowed") slowed = $i
		}
		if (!(line in seen)) { seen[line]; order[++lines] = line }
		n = ++count[line, how]
		for (k = n; k > 1 && value[line, how, k - 1] > rate; k--) value[line, how, k] = value[line, how, k - 1]
		value[line, how, k] = rate
		if (how == "auto") { lasts[line] = lasts[line] " " last; cuts[line] = cuts[line] " " slowed }
	}
	function median(line, how) { return value[line, how, int((count[line, how] + 1) / 2)] }
	END {
		print "| line | 1 | 4 | 16 | auto | auto / 1 | auto / 4 | auto / 16 | number at the end | slowed |"
		print "|---|---|---|---|---|---|---|---|---|---|"
		for (l = 1; l <= lines; l++) {
			line = order[l]
			a = median(line, "auto")
			printf "| %s | %.1f | %.1f | %.1f | %.1f | %.2f | %.2f | %.2f |%s |%s |\n", line, median(line, "1"), median(line, "4"),
				median(line, "16"), a, a / median(line, "1"), a / median(line, "4"), a / median(line, "16"), lasts[line], cuts[line]
		}
	}'
