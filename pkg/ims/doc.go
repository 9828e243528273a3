// SPDX-License-Identifier: Apache-2.0

// Package ims is a client for the Image Management Service (IMS) of Huawei Cloud and of the clouds
// that run the same software, and for the few calls of Identity and Access Management (IAM) that
// importing an image needs.
//
// A disk becomes an image in three steps: an object in OBS, one request that starts a job
// ([Client.QuickImport]), and polling that job ([Client.WaitJob]). Nothing that creates is
// idempotent in IMS, so the client's main concern is never to create a second image: a request
// whose answer was lost is not sent again, the image is looked for instead, see
// [Client.QuickImport].
//
// Requests are authenticated with an access key ([AKSK], signature SDK-HMAC-SHA256) or with an IAM
// token ([PasswordToken], [StaticToken]).
//
// The service's answers are read leniently, because its generations and operators differ: numbers
// come as strings, errors in half a dozen shapes, fields are absent. What is sent is strict.
//
// The package prints nothing, reads no environment and keeps no state outside a [Client].
package ims
