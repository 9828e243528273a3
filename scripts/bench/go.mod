module github.com/imsprep/imsprep/scripts/bench

go 1.26.0

require (
	github.com/klauspost/compress v1.20.3
	github.com/lima-vm/go-qcow2reader v0.7.1
	golang.org/x/sys v0.49.0
)
