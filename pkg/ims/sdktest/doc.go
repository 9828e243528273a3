// SPDX-License-Identifier: Apache-2.0

// Package sdktest lets the vendor's Go SDK speak to the simulator of package imstest, and compares
// the requests that package ims sends with the SDK's. It holds nothing but tests, in a module of
// their own: the SDK weighs 250 MB and stays out of the product.
package sdktest
