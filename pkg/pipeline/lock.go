// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// BusyError says that another run is at work on the same disk and target.
type BusyError struct {
	Path string // of its journal
	PID  int    // its process, 0 if not known
	Host string // its machine, "" if not known or this one
	// Lost means that the other run has taken over what this one had begun, since this one didn't get through to
	// the bucket for as long as its lease.
	Lost bool
}

func (e *BusyError) Error() string {
	if e.Lost {
		return "this run didn't get through to its journal for too long, so that another one may have taken it over: " + e.Path
	}
	who := "another run"
	switch {
	case e.PID > 0 && e.Host != "":
		who += fmt.Sprintf(" (process %d on %s)", e.PID, e.Host)
	case e.PID > 0:
		who += fmt.Sprintf(" (process %d)", e.PID)
	}
	return who + " is sending this disk to the same place"
}

// Hint says what to do.
func (e *BusyError) Hint() string {
	if e.Lost {
		return "Nothing was removed: the other run goes on with what is there; or run the same command again."
	}
	return "Wait until it has ended; or give each a --key of its own."
}

// errNoLocks is a system or a file system that has no locks.
var errNoLocks = errors.New("files can't be locked here")

// lock is an advisory lock on a file: the system gives it up when the process ends, however that
// happens.
type lock struct {
	f    *os.File
	path string
}

// acquire takes the lock, or fails with a [*BusyError] when another process has it.
func acquire(path string) (*lock, error) {
	for range 10 {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		got, err := lockFile(f)
		if err != nil {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		if !got {
			busy := &BusyError{Path: path, PID: readPID(f)}
			_ = f.Close()
			return nil, busy
		}
		// The one who had it may have removed the file just before: then this is a lock on nothing.
		mine, err := f.Stat()
		named, nerr := os.Stat(path)
		if err == nil && nerr == nil && os.SameFile(mine, named) {
			l := &lock{f, path}
			if err = f.Truncate(0); err == nil {
				// For whoever comes second and for people; nothing depends on it.
				_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
			}
			if err != nil {
				l.release()
				return nil, err
			}
			return l, nil
		}
		_ = f.Close()
	}
	return nil, fmt.Errorf("lock %s: it comes and goes", path)
}

// Lock takes a lock on a file, which is made if need be, for this process alone; the system gives it up
// when the process ends, however that happens. It fails with a [*BusyError] when another has it.
func Lock(path string) (release func(), err error) {
	l, err := acquirePatiently(path)
	if err != nil {
		return nil, err
	}
	return sync.OnceFunc(l.release), nil
}

// Locked tells whether some process has the lock on a file. One that isn't there is locked by nobody.
func Locked(path string) (bool, error) {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	l, err := acquire(path)
	var busy *BusyError
	switch {
	case errors.As(err, &busy):
		return true, nil
	case err != nil:
		return false, err
	}
	l.release()
	return false, nil
}

// acquirePatiently gives somebody who only looks at a lock the time to do so.
func acquirePatiently(path string) (l *lock, err error) {
	l, err = acquire(path)
	var busy *BusyError
	for n := 0; n < busyTries && errors.As(err, &busy); n++ {
		time.Sleep(busyPause)
		l, err = acquire(path)
	}
	return l, err
}

func readPID(f *os.File) int {
	b, err := io.ReadAll(io.NewSectionReader(f, 0, 32))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid < 0 {
		return 0
	}
	return pid
}

// release gives the lock up and removes the file where that is possible without a gap.
func (l *lock) release() {
	if removeLocked {
		_ = os.Remove(l.path)
	}
	_ = l.f.Close()
}
