// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/imsprep/imsprep/pkg/obs"
	"github.com/imsprep/imsprep/pkg/pipeline/batch"
)

// concurrencyAuto as a concurrency is what the line turns out to carry, within the usual bounds.
const concurrencyAuto = "auto"

// lineFlags are the flags that say how much of the line is used.
type lineFlags struct {
	concurrency, limitRate string
}

// add adds the flags; what are things of which several are under way at the same time.
func (l *lineFlags) add(cmd *cobra.Command, what string) {
	f := cmd.Flags()
	f.StringVar(&l.concurrency, "concurrency", "", what+" at the same time: N, MIN-MAX, or auto, by what the line carries (environment: IMSPREP_CONCURRENCY; default: auto, 1 to "+
		strconv.Itoa(obs.DefaultWorkers)+")")
	f.StringVar(&l.limitRate, "limit-rate", "", "bytes a second at most, such as 50MiB, of all requests together (environment: IMSPREP_LIMIT_RATE; default: no limit)")
	_ = cmd.RegisterFlagCompletionFunc("concurrency", cobra.FixedCompletions([]string{concurrencyAuto}, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("limit-rate", cobra.NoFileCompletions)
}

// lineBounds are how much of the line is used.
type lineBounds struct {
	low, high int   // requests at the same time; 0 is the usual bound
	rate      int64 // bytes a second, 0 for no limit
}

// line reads the flags, or what the environment or the configuration says instead, and makes the rate that of
// the clients to come.
func (a *app) line(f *lineFlags) (l lineBounds, err error) {
	c, err := a.sources().Config()
	if err != nil {
		return l, err
	}
	value, where := a.given(f.concurrency, "concurrency", c.Concurrency)
	if l.low, l.high, err = parseConcurrency(value); err != nil {
		return l, usagef("%s: %w", where, err)
	}
	value, where = a.given(f.limitRate, "limit-rate", c.LimitRate)
	if l.rate, err = parseLimitRate(value); err != nil {
		return l, usagef("%s: %w", where, err)
	}
	a.limitRate = l.rate
	return l, nil
}

// given is the value of a flag, of the variable IMSPREP_FLAG, or of the configuration, whichever comes first, and
// where it is from.
func (a *app) given(flag, name, config string) (value, where string) {
	variable := "IMSPREP_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
	switch env := a.getenv(variable); {
	case flag != "":
		return flag, "--" + name
	case env != "":
		return env, variable
	}
	return config, "the configuration's " + strings.ReplaceAll(name, "-", "_")
}

// parseConcurrency reads N, MIN-MAX or auto. 0 are bounds that are not given.
func parseConcurrency(s string) (low, high int, err error) {
	if s == "" || s == concurrencyAuto {
		return 0, 0, nil
	}
	from, to, ranged := strings.Cut(s, "-")
	if !ranged {
		to = from
	}
	low, err1 := strconv.Atoi(from)
	high, err2 := strconv.Atoi(to)
	if err1 != nil || err2 != nil || strings.ContainsAny(s, "+ ") {
		return 0, 0, fmt.Errorf("%q is neither a number, nor MIN-MAX, nor auto", s)
	}
	if low < 1 || high > obs.MaxWorkers || low > high {
		return 0, 0, fmt.Errorf("%q: from 1 to %d are possible, the smaller number first", s, obs.MaxWorkers)
	}
	return low, high, nil
}

// parseLimitRate reads bytes a second; 0 and "" are no limit.
func parseLimitRate(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	n, err := batch.ParseRate(s)
	if err != nil {
		return 0, err
	}
	if n != 0 && n < obs.MinLimitRate {
		return 0, fmt.Errorf("%q is too slow: %v is the least", s, batch.Rate(obs.MinLimitRate))
	}
	return int64(n), nil
}

// usage tells how much of the line was used, "" if nothing was sent.
func usage(c *obs.ConcurrencyResult) string {
	if c == nil || c.Reached == 0 {
		return ""
	}
	s := ", up to 1 request at a time"
	if c.Reached > 1 {
		s = fmt.Sprintf(", up to %d requests at a time", c.Reached)
	}
	switch c.Slowed {
	case 0:
	case 1:
		s += "; the server asked to slow down once"
	default:
		s += fmt.Sprintf("; the server asked to slow down %d times", c.Slowed)
	}
	return s
}

// limitStore gives a store's options the rate of this run.
func (a *app) limitStore(o *obs.Options) {
	o.LimitRate = a.limitRate
	if a.store != nil {
		a.store(o)
	}
}
