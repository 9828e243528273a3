#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The quick part of checking the packaging: `make install` into an empty folder; every command has its page, pages
# and completions can be read, the program runs, its bill of materials names what is linked into it.
# scripts/check-reproducible.sh makes whole packages, which takes minutes.
#
# usage: scripts/check-install.sh
set -euo pipefail
cd "$(dirname "$0")/.."
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
fail() { echo "check-install: $*" >&2; exit 1; }

make install DESTDIR="$tmp" PREFIX=/usr >/dev/null
program=$tmp/usr/bin/imsprep share=$tmp/usr/share
"$program" version >/dev/null
bash -n "$share/bash-completion/completions/imsprep"
for command in $("$program" __complete '' 2>/dev/null | awk -F '\t' '/^[a-z]/ { print $1 }'); do
	[ "$command" = help ] || [ -s "$share/man/man1/imsprep-$command.1" ] || fail "no page of imsprep $command"
done
for page in "$share"/man/man1/*.1; do
	grep -q '^\.SH NAME' "$page" || fail "$page has no name"
	! grep -Fq '[=false]' "$page" || fail "$page: a switch looks as if it took a value"
	if command -v man >/dev/null && command -v nroff >/dev/null; then
		warnings=$(LC_ALL=C.UTF-8 man --warnings -l "$page" 2>&1 >/dev/null)
		[ -z "$warnings" ] || fail "$page: $warnings"
	fi
done
(cd packaging/sbom && SOURCE_DATE_EPOCH=0 go run . "$program" imsprep 1) >"$tmp/sbom.json"
for module in $(go version -m "$program" | awk '$1 == "dep" { print $2 }'); do
	grep -Fq "\"pkg:golang/$module@" "$tmp/sbom.json" || fail "the bill of materials lacks $module"
done
echo "check-install: $(ls "$share/man/man1" | wc -l | tr -d ' ') pages, $(grep -c '"type": "library"' "$tmp/sbom.json") libraries"
