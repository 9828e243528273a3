// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/http"
	"os"
	"strings"

	"github.com/imsprep/imsprep/pkg/obs"
	"github.com/imsprep/imsprep/pkg/settings"
)

// usageError is a command line, or a value on it, that can't be carried out as it stands.
type usageError = settings.UsageError

// sources are where this run's settings come from.
func (a *app) sources() *settings.Sources {
	return &settings.Sources{
		Options:       a.flags.cloud,
		OptionName:    func(option string) string { return "--" + strings.ReplaceAll(option, "_", "-") },
		Lookup:        a.lookup,
		ConfigDir:     os.UserConfigDir,
		CacheDir:      os.UserCacheDir,
		Proxy:         http.ProxyFromEnvironment,
		UserAgent:     userAgent(),
		Logger:        a.log,
		OnRetry:       a.retrying,
		OnSecret:      a.secrets.add,
		OnObjectRetry: func(e obs.RetryEvent) { a.metrics.retried("obs", e.Delay) },
		LookFor:       a.lookFor,
		Store:         a.limitStore,
	}
}

// settings reads what is known about the cloud and who we are there.
func (a *app) settings() (*settings.Settings, error) {
	s, err := a.sources().Settings()
	if s != nil {
		a.fixedKeys = s.Credentials.Fixed()
	}
	return s, err
}

// getenv is the value of the first of names that is set and not empty.
func (a *app) getenv(names ...string) string { return a.sources().Getenv(names...) }

// first is the first value that isn't empty.
func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

func userAgent() string { return "imsprep/" + version }
