#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Builds container images of imsprep for linux/amd64 and linux/arm64 into bin/image, without a daemon: one
# tarball of an OCI layout with both, and one for each as `docker load` takes it.
#
# usage: VERSION=V scripts/image.sh [go build flags]
# environment: IMAGE_TAG (default imsprep:VERSION), CA_BUNDLE (default Debian's, where it is),
# SOURCE_DATE_EPOCH (default: the commit's time)
set -euo pipefail
cd "$(dirname "$0")/.."
export CGO_ENABLED=0
version=${VERSION:-unknown}
revision=$(git rev-parse HEAD 2>/dev/null || true)
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
certs=${CA_BUNDLE-/etc/ssl/certs/ca-certificates.crt}
if [ -n "$certs" ] && [ ! -r "$certs" ]; then
	echo "image: $certs isn't there (Debian: apt-get install ca-certificates)" >&2
	certs=
elif [ -n "$certs" ]; then
	echo "image: CA certificates are those of this machine, $certs" >&2
fi
binaries=()
for arch in amd64 arm64; do
	GOOS=linux GOARCH=$arch go build -trimpath "$@" -o "bin/image/linux-$arch/imsprep" ./cmd/imsprep
	binaries+=(--binary "linux/$arch=$PWD/bin/image/linux-$arch/imsprep")
done
cd cmd/ociimage
go run . "${binaries[@]}" --certs "$certs" --license ../../LICENSE --version "$version" --revision "$revision" \
	--epoch "$epoch" --tag "${IMAGE_TAG:-imsprep:$(tr -c 'A-Za-z0-9_.\n-' - <<<"$version")}" --out ../../bin/image >/dev/null
cd ../..
rm -rf bin/image/linux-amd64 bin/image/linux-arm64
for f in bin/image/*.tar; do
	printf '%s\t%s bytes\tsha256:%s\n' "$f" "$(wc -c <"$f" | tr -d ' ')" "$(sha256sum "$f" | cut -d' ' -f1)"
done
