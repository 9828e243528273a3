// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"errors"

	"github.com/versity/versitygw/auth"

	"github.com/imsprep/imsprep/pkg/ims/imstest"
)

// accounts makes the object storage accept the access keys that the simulated
// IAM knows, the temporary ones with their security token.
type accounts struct {
	iam *imstest.Server
}

var (
	_ auth.IAMService         = accounts{}
	_ auth.SigningKeyProvider = accounts{}
)

var errReadOnly = errors.New("accounts are made by the simulated IAM")

// DeriveSigningKey returns the key of signature version 4 for an access key.
func (a accounts) DeriveSigningKey(access, token, date, region, service string) ([]byte, auth.Account, error) {
	acc, ok := a.iam.Account(access)
	if !ok {
		return nil, auth.Account{}, auth.ErrNoSuchUser
	}
	if subtle.ConstantTimeCompare([]byte(acc.SecurityToken), []byte(token)) != 1 {
		return nil, auth.Account{}, auth.ErrInvalidSessionToken
	}
	key := []byte("AWS4" + acc.SecretKey)
	for _, part := range []string{date, region, service, "aws4_request"} {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(part))
		key = mac.Sum(nil)
	}
	return key, auth.Account{Access: access, Role: auth.RoleAdmin}, nil
}

func (a accounts) GetUserAccount(access string) (auth.Account, error) {
	if _, ok := a.iam.Account(access); !ok {
		return auth.Account{}, auth.ErrNoSuchUser
	}
	return auth.Account{Access: access, Role: auth.RoleAdmin}, nil
}

// ResolveAccounts returns the access keys that are not known.
func (a accounts) ResolveAccounts(keys []string) (unknown []string, err error) {
	for _, k := range keys {
		if _, ok := a.iam.Account(k); !ok {
			unknown = append(unknown, k)
		}
	}
	return unknown, nil
}

func (accounts) ListUserAccounts() ([]auth.Account, error)         { return nil, nil }
func (accounts) CreateAccount(auth.Account) error                  { return errReadOnly }
func (accounts) UpdateUserAccount(string, auth.MutableProps) error { return errReadOnly }
func (accounts) DeleteUserAccount(string) error                    { return errReadOnly }
func (accounts) Shutdown() error                                   { return nil }
