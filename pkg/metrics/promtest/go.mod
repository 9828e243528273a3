module github.com/imsprep/imsprep/pkg/metrics/promtest

go 1.26.0

require (
	github.com/imsprep/imsprep v0.0.0
	github.com/prometheus/client_model v0.6.3
	github.com/prometheus/common v0.74.0
	pgregory.net/rapid v1.3.0
)

require (
	github.com/munnerz/goautoneg v0.0.0-20191010083416-a7dc8b61c822 // indirect
	github.com/pandatix/go-abnf v0.5.5 // indirect
	google.golang.org/protobuf v1.36.12 // indirect
)

replace github.com/imsprep/imsprep => ../../..
