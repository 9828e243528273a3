// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/http"
	"strings"

	"github.com/gofiber/fiber/v3"

	"github.com/imsprep/imsprep/pkg/ims/imstest"
)

// likeOBS makes the S3 server behave like Huawei Cloud's OBS where that
// matters to a client: a bucket tells its default storage class, and the
// checksums and trailers of newer S3 clients are refused, with the error that
// OBS has for them.
func likeOBS(c fiber.Ctx) error {
	for name := range c.GetReqHeaders() {
		name = strings.ToLower(name)
		if strings.HasPrefix(name, "x-amz-checksum-") || name == "x-amz-trailer" || name == "x-amz-sdk-checksum-algorithm" {
			return refuseChecksum(c)
		}
	}
	if strings.HasSuffix(c.Get("X-Amz-Content-Sha256"), "-TRAILER") {
		return refuseChecksum(c)
	}
	if err := c.Next(); err != nil {
		return err
	}
	bucketOnly := !strings.Contains(strings.Trim(c.Path(), "/"), "/")
	if c.Method() == http.MethodHead && bucketOnly && c.Response().StatusCode() == http.StatusOK {
		c.Set("X-Default-Storage-Class", imstest.StorageStandard)
	}
	return nil
}

func refuseChecksum(c fiber.Ctx) error {
	c.Set("Content-Type", "application/xml")
	c.Set("Connection", "close") // the body was not read
	return c.Status(http.StatusBadRequest).SendString(`<?xml version="1.0" encoding="UTF-8"?>` +
		`<Error><Code>XAmzContentSHA256Mismatch</Code>` +
		`<Message>The provided 'x-amz-content-sha256' header does not match what was computed.</Message></Error>`)
}
