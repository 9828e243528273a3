// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imsprep/imsprep/pkg/obs"
)

func testRecord() record {
	return record{
		Path: "/disks/web.qcow2", Target: target{Endpoint: "https://obs", Bucket: "b", Key: "k-run.raw", Generated: true},
		Plan: planned{Format: FormatRAW}, RunID: "run",
		Upload: &obs.State{Bucket: "b", Key: "k-run.raw", UploadID: "u", RunID: "run", Parts: []obs.PartState{{Number: 1, Size: 5, ETag: "e", Note: []byte{1, 2}}}},
		Import: &imported{Request: "r", Asked: time.Unix(1_700_000_000, 0).UTC(), JobID: "j"},
	}
}

func TestJournalSurvives(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	j, found, broken, err := openJournal(dir, "x")
	if err != nil || found != nil || broken != nil {
		t.Fatal(found, broken, err)
	}
	var failed error
	if !j.begin(testRecord(), func(err error) { failed = err }) || failed != nil || !j.knows("u") || j.knows("v") {
		t.Fatalf("it isn't there: %v", failed)
	}
	// What comes soon after waits, and is there when it is closed.
	j.note(false, func(r *record) { r.Upload.Apply(obs.Delta{Part: &obs.PartState{Number: 2}}) })
	if r, err := readRecord(j.where()); err != nil || len(r.Upload.Parts) != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	list, err := Journals(dir)
	if err != nil || len(list) != 1 || !list[0].Busy || list[0].JobID != "j" || list[0].Done != 5 || list[0].Key != "k-run.raw" {
		t.Fatalf("%+v, %v", list, err)
	}
	var busy *BusyError
	if err := RemoveJournal(j.where()); !errors.As(err, &busy) {
		t.Fatal(err)
	}
	j.close()
	j.close()
	j.note(true, func(r *record) { r.RunID = "later" })
	j, found, broken, err = openJournal(dir, "x")
	if err != nil || broken != nil || len(found.Upload.Parts) != 2 || found.RunID != "run" || !found.Import.open() {
		t.Fatal(found, broken, err)
	}
	j.close()
	if err := RemoveJournal(j.where()); err != nil {
		t.Fatal(err)
	}
	if list, err := Journals(dir); err != nil || len(list) != 0 {
		t.Fatalf("%+v, %v", list, err)
	}
}

// TestLockEndsWithItsProcess: nothing that a killed process leaves looks like a lock that is held.
func TestLockEndsWithItsProcess(t *testing.T) {
	if path := os.Getenv("TEST_LOCK"); path != "" { // the process that is killed
		if _, err := acquire(path); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stdout.WriteString("locked\n"); err != nil {
			t.Fatal(err)
		}
		select {}
	}
	path := filepath.Join(t.TempDir(), "x.lock")
	cmd := exec.Command(os.Args[0], "-test.run=^TestLockEndsWithItsProcess$")
	cmd.Env = append(os.Environ(), "TEST_LOCK="+path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 64)); err != nil {
		t.Fatal(err)
	}
	var busy *BusyError
	if _, err := acquire(path); !errors.As(err, &busy) || busy.PID != cmd.Process.Pid {
		t.Errorf("error %v, want that process %d has it", err, cmd.Process.Pid)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("it left no file, so that this shows nothing: %v", err)
	}
	l, err := acquire(path)
	if err != nil {
		t.Fatal(err)
	}
	l.release()
	if _, err := os.Stat(path); removeLocked && !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// TestReplacedFileIsWhole: remains of a killed process, and a link in the way, change nothing.
func TestReplacedFileIsWhole(t *testing.T) {
	dir := t.TempDir()
	path, other := filepath.Join(dir, "x.json"), filepath.Join(dir, "other")
	for _, p := range []string{path + tempExt, other} {
		if err := os.WriteFile(p, []byte("remains"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(replaceFile(path, []byte("one")), os.Symlink(other, path+tempExt), replaceFile(path, []byte("two"))); err != nil {
		t.Fatal(err)
	}
	a, aerr := os.ReadFile(path)
	b, berr := os.ReadFile(other)
	if string(a) != "two" || string(b) != "remains" || aerr != nil || berr != nil {
		t.Fatalf("%q, %q, %v, %v", a, b, aerr, berr)
	}
	if _, err := os.Lstat(path + tempExt); !errors.Is(err, os.ErrNotExist) {
		t.Error("the temporary file is still there")
	}
}

func TestJournalNames(t *testing.T) {
	base := target{Endpoint: "e", Bucket: "b", Key: "k"}
	names := map[string]string{}
	for what, n := range map[string]string{
		"base": journalName("s", base), "source": journalName("s2", base),
		"endpoint":  journalName("s", target{Endpoint: "e2", Bucket: "b", Key: "k"}),
		"bucket":    journalName("s", target{Endpoint: "e", Bucket: "b2", Key: "k"}),
		"key":       journalName("s", target{Endpoint: "e", Bucket: "b", Key: "k2"}),
		"moved":     journalName("se", target{Endpoint: "", Bucket: "b", Key: "k"}),
		"generated": journalName("s", target{Endpoint: "e", Bucket: "b", Key: "k", Generated: true}),
	} {
		if other, taken := names[n]; taken {
			t.Errorf("%s and %s have one name", what, other)
		}
		names[n] = what
	}
	if journalName("s", target{Key: "a", Generated: true}) != journalName("s", target{Key: "b", Generated: true}) {
		t.Error("a generated key is in the name: nobody could find the journal again")
	}
}

// FuzzDecodeRecord: whatever a file holds, reading it gives an error or a journal that can be written and
// read again.
func FuzzDecodeRecord(f *testing.F) {
	r := testRecord()
	good, err := encodeRecord(&r)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add(bytes.Replace(good, []byte(`"run"`), []byte(`"ruN"`), 1))
	f.Add([]byte(`{"imsprep_journal":1,"sha256":"44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","state":{}}`))
	f.Add([]byte(`{"imsprep_journal":2}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRecord(b)
		if err != nil {
			return
		}
		again, err := encodeRecord(r)
		if err != nil {
			if strings.Contains(err.Error(), "year outside") {
				return // a time that can be read and not written
			}
			t.Fatal(err)
		}
		r2, err := decodeRecord(again)
		if err != nil {
			t.Fatal(err)
		}
		x, xerr := json.Marshal(r)
		y, yerr := json.Marshal(r2)
		if !bytes.Equal(x, y) || xerr != nil || yerr != nil {
			t.Fatalf("%s became %s", x, y)
		}
	})
}
