// SPDX-License-Identifier: Apache-2.0

package batch

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/imsprep/imsprep/pkg/pipeline"
)

// maxState bounds a state that is read; real ones have a few KiB.
const maxState = 4 << 20

// Store keeps the states of a plan's images between runs, processes and perhaps machines. Its methods may
// be called by several goroutines.
type Store interface {
	// Lock gives this process alone the right to work on an image and to save its state, until unlock is
	// called or the process ends. It fails at once, with a *[BusyError], when another one has it. ctx
	// given back is to be used while the lock is needed: it ends when the lock is lost.
	Lock(ctx context.Context, name string) (held context.Context, unlock func(), err error)
	// Load returns the state of an image, nil if there is none yet.
	Load(ctx context.Context, name string) (*State, error)
	// Save replaces the state of an image, whole or not at all.
	Save(ctx context.Context, s *State) error
	// Held tells whether some process, perhaps this one, has the lock.
	Held(ctx context.Context, name string) (bool, error)
}

// BusyError says that another process is at work on an image.
type BusyError struct {
	Name   string
	Worker string // who, "" if not known
}

func (e *BusyError) Error() string {
	if e.Worker != "" {
		return fmt.Sprintf("image %q: %s is at work on it", e.Name, e.Worker)
	}
	return fmt.Sprintf("image %q: another process is at work on it", e.Name)
}

// StateError is a state that can't be read or written.
type StateError struct {
	Name string
	Err  error
}

func (e *StateError) Error() string { return fmt.Sprintf("the state of image %q: %v", e.Name, e.Err) }
func (e *StateError) Unwrap() error { return e.Err }

// FileStore keeps states as files in a folder of this machine.
type FileStore struct{ dir string }

// NewFileStore keeps the states of a batch below a folder of journals, see [pipeline.Request].StateDir.
func NewFileStore(stateDir, batch string) *FileStore {
	return &FileStore{filepath.Join(stateDir, "batch", batch)}
}

// Dir is the folder of the states.
func (s *FileStore) Dir() string { return s.dir }

// Key is the plan's name, or one made from its path: what its states are kept under.
func (p *Plan) Key() string {
	if p.Name != "" {
		return p.Name
	}
	path := p.File
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	sum := sha256.Sum256([]byte(path))
	return "plan-" + hex.EncodeToString(sum[:8])
}

// StateName is the name of a file, or the end of a key, for an image: readable, and never that of another
// one.
func StateName(name string) string {
	sum := sha256.Sum256([]byte(name))
	plain := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' {
			return r
		}
		return '-'
	}, name)
	return plain[:min(len(plain), 64)] + "-" + hex.EncodeToString(sum[:8])
}

func (s *FileStore) path(name, ext string) string { return filepath.Join(s.dir, StateName(name)+ext) }

// Lock implements [Store]. A lock of this machine isn't lost before the process ends.
func (s *FileStore) Lock(ctx context.Context, name string) (context.Context, func(), error) {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, nil, &StateError{name, err}
	}
	unlock, err := pipeline.Lock(s.path(name, ".lock"))
	var busy *pipeline.BusyError
	switch {
	case errors.As(err, &busy):
		worker := ""
		if busy.PID > 0 {
			worker = fmt.Sprintf("process %d", busy.PID)
		}
		return nil, nil, &BusyError{name, worker}
	case err != nil:
		return nil, nil, &StateError{name, err}
	}
	return ctx, unlock, nil
}

// Held implements [Store].
func (s *FileStore) Held(_ context.Context, name string) (bool, error) {
	held, err := pipeline.Locked(s.path(name, ".lock"))
	if err != nil {
		return false, &StateError{name, err}
	}
	return held, nil
}

// Load implements [Store].
func (s *FileStore) Load(_ context.Context, name string) (*State, error) {
	f, err := os.Open(s.path(name, ".json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, &StateError{name, err}
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxState+1))
	if err != nil {
		return nil, &StateError{name, err}
	}
	return DecodeState(name, b)
}

// Save implements [Store].
func (s *FileStore) Save(_ context.Context, st *State) error {
	b, err := EncodeState(st)
	if err == nil {
		err = pipeline.ReplaceFile(s.path(st.Name, ".json"), b)
	}
	if err != nil {
		return &StateError{st.Name, err}
	}
	return nil
}

// EncodeState is how a state is kept.
func EncodeState(s *State) ([]byte, error) {
	s.Version, s.Updated = stateVersion, time.Now().UTC()
	b, err := json.MarshalIndent(s, "", " ")
	return append(b, '\n'), err
}

// DecodeState reads what [EncodeState] wrote.
func DecodeState(name string, b []byte) (*State, error) {
	var s State
	switch err := json.Unmarshal(b, &s); {
	case len(b) > maxState:
		return nil, &StateError{name, fmt.Errorf("it has more than %d bytes", maxState)}
	case err != nil:
		return nil, &StateError{name, errors.New("it is damaged or cut off")}
	case s.Version != stateVersion:
		return nil, &StateError{name, fmt.Errorf("it is of version %d, this program writes version %d", s.Version, stateVersion)}
	case s.Name != name:
		return nil, &StateError{name, fmt.Errorf("it is that of image %q", s.Name)}
	}
	return &s, nil
}
