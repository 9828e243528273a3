// SPDX-License-Identifier: Apache-2.0

// Package promtest holds what pkg/metrics writes, and what a run of imsprep writes, against Prometheus' own
// parser. It is a module of its own, tests only, so that Prometheus' packages stay out of the product.
package promtest
