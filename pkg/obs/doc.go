// SPDX-License-Identifier: Apache-2.0

// Package obs uploads sparse disks to a bucket of OBS (Huawei Cloud's Object Storage Service) or of
// another S3-compatible store: in parallel, in bounded memory, with every part verified.
//
// A disk of which most is zeros need not be sent whole. [NewPlan] divides the object into the parts
// of one multipart upload before the first byte moves: runs of data become parts that are sent,
// runs of zeros become parts that the server copies from a small object of zeros
// (UploadPartCopy), and where only a little is data, parts are composed of both on the server.
// [Client.Upload] carries the plan out. The object is byte-identical whichever
// way its zeros travelled. [Client.UploadStream] uploads what is made on the way and whose length
// nobody knows beforehand.
//
// Either can be interrupted and resumed, by another process too: what a Checkpoint function hears,
// put together into a [State], is what the next run needs. It is believed as far as the server
// confirms it.
//
// The package speaks the S3 dialect with signature V4 through minio-go's Core, restricted to what
// OBS documents: bodies are plain, with Content-MD5 and without aws-chunked encoding, trailers or
// x-amz-checksum headers, and the region is given, never asked for.
package obs
