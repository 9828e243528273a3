#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Makes what is released, in a folder: archives with program, manual pages and completions for each system, deb and
# rpm packages, bills of materials, and SHA256SUMS. The same commit gives the same files, wherever it is built.
#
# usage: scripts/package.sh VERSION OUT [OS/ARCH...]      default: all systems; NFPM names an nfpm that is there
set -euo pipefail
umask 022
cd "$(dirname "$0")/.."
version=$1 out=$2
shift 2
targets=("$@")
((${#targets[@]})) || targets=({linux,darwin,windows}/{amd64,arm64})
nfpm=github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.44.1

for tool in gzip tar zip sha256sum; do
	command -v "$tool" >/dev/null || { echo "package: $tool is missing; scripts/setup.sh package installs it" >&2; exit 1; }
done
# All times are the commit's, in files and packages alike.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
export SOURCE_DATE_EPOCH TZ=UTC LC_ALL=C
# What a package's version may look like is stricter: digits first.
case $version in
v[0-9]*) PACKAGE_VERSION=${version#v} ;;
[0-9]*.*) PACKAGE_VERSION=$version ;;
*) PACKAGE_VERSION=0.0.0~git$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y%m%d%H%M%S).$version ;;
esac
PACKAGE_VERSION=${PACKAGE_VERSION//-/+}
export PACKAGE_VERSION

rm -rf "$out"
mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
build=(-trimpath -buildvcs=false -ldflags "-s -w -buildid= -X main.version=$version")

# The pages and completions are those of the program, so it makes them itself.
CGO_ENABLED=0 go build "${build[@]}" -tags man -o "$work/imsprep-man" ./cmd/imsprep
"$work/imsprep-man" man "$work/man"
mkdir "$work/completions"
go run "${build[@]}" ./cmd/imsprep completion bash >"$work/completions/imsprep.bash"
go run "${build[@]}" ./cmd/imsprep completion zsh >"$work/completions/_imsprep"
go run "${build[@]}" ./cmd/imsprep completion fish >"$work/completions/imsprep.fish"
go run "${build[@]}" ./cmd/imsprep completion powershell >"$work/completions/imsprep.ps1"
[ -n "${NFPM:-}" ] || GOBIN=$work/bin go install "$nfpm"
NFPM=${NFPM:-$work/bin/nfpm}
(cd packaging/sbom && CGO_ENABLED=0 go build -o "$work/sbom" .)

for target in "${targets[@]}"; do
	os=${target%/*} arch=${target#*/}
	name=imsprep_${version}_${os}_$arch
	stage=$work/$name
	mkdir "$stage"
	program=$stage/imsprep
	[ "$os" != windows ] || program+=.exe
	CGO_ENABLED=0 GOOS=$os GOARCH=$arch go build "${build[@]}" -o "$program" ./cmd/imsprep
	"$work/sbom" "$program" imsprep "$version" >"$out/$name.cdx.json"
	cp LICENSE README.md CHANGELOG.md "$stage"
	cp -R docs "$work/completions" "$stage"
	if [ "$os" = windows ]; then
		find "$stage" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
		(cd "$work" && find "$name" | sort | zip -X -q "$out/$name.zip" -@)
	else
		cp -R "$work/man" "$stage"
		tar -C "$work" --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --mode=go=rX,u+rw,a-s \
			-cf - "$name" | gzip -9n >"$out/$name.tar.gz"
	fi
	if [ "$os" = linux ]; then
		gzip -9nr "$stage/man"
		for packager in deb rpm; do
			STAGE=$stage ARCH=$arch "$NFPM" package -f packaging/nfpm.yaml -p "$packager" -t "$out" >/dev/null
		done
	fi
	rm -r "$stage"
done
(cd "$out" && sha256sum -- * >SHA256SUMS)
(cd "$out" && wc -c -- *)
