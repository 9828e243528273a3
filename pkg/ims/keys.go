// SPDX-License-Identifier: Apache-2.0

package ims

import (
	"context"
	"time"
)

// KeySource supplies keys that may change during a run. It is safe for concurrent use.
type KeySource interface {
	// Credentials are the keys of the next request; see [CredentialsFunc].
	Credentials(ctx context.Context) (Credentials, error)
	// Refused is told of keys that a service did not accept, although they may have been good once.
	// The next call of Credentials brings others, if there are any.
	Refused(c Credentials)
}

// AKSKFrom authenticates with keys that may change: keys that were refused are asked for anew, once a
// request.
func AKSKFrom(s KeySource) Auth { return &keyAuth{s.Credentials, s.Refused} }

// TemporaryKeys is a [KeySource] of keys that expire. They are kept, and asked for again when less than
// 30 minutes, or half, of their life remain; while they can't be had, those at hand are used to their
// end.
type TemporaryKeys struct {
	ask func(ctx context.Context) (Credentials, time.Duration, error)
	now func() time.Time

	lock             lock // held while asking, so that keys are asked for once
	cred             Credentials
	renewAt, expires time.Time
}

// newTemporaryKeys makes a source of the keys that ask gets; ask also tells how long they live.
func newTemporaryKeys(ask func(ctx context.Context) (Credentials, time.Duration, error), now func() time.Time) *TemporaryKeys {
	return &TemporaryKeys{ask: ask, now: now, lock: newLock()}
}

// Credentials implements [KeySource].
func (k *TemporaryKeys) Credentials(ctx context.Context) (Credentials, error) {
	if err := k.lock.acquire(ctx); err != nil {
		return Credentials{}, err
	}
	defer k.lock.release()
	now := k.now()
	if k.cred.AccessKey != "" && now.Before(k.renewAt) {
		return k.cred, nil
	}
	next, life, err := k.ask(ctx)
	if err != nil {
		if k.cred.AccessKey != "" && now.Before(k.expires) && ctx.Err() == nil {
			return k.cred, nil
		}
		return Credentials{}, err
	}
	// Only the length of the keys' life is taken from the answer: this machine's clock may be wrong.
	k.cred, k.expires = next, now.Add(life)
	k.renewAt = now.Add(life - min(tokenMargin, life/2))
	return k.cred, nil
}

// Refused implements [KeySource].
func (k *TemporaryKeys) Refused(c Credentials) {
	if k.lock.acquire(context.Background()) != nil {
		return
	}
	defer k.lock.release()
	if k.cred == c { // others may have been fetched since
		k.renewAt = time.Time{}
	}
}

// Expires is when the keys at hand end, by this machine's clock; zero while there are none.
func (k *TemporaryKeys) Expires() time.Time {
	if k.lock.acquire(context.Background()) != nil {
		return time.Time{}
	}
	defer k.lock.release()
	return k.expires
}
