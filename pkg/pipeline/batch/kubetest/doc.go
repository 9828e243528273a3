// SPDX-License-Identifier: Apache-2.0

// Package kubetest holds the manifests that package batch writes against the types of the Kubernetes API. It is a
// module of its own, tests only, so that the product doesn't depend on them.
package kubetest
