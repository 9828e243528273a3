// SPDX-License-Identifier: Apache-2.0

package batch

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// maxVMX bounds the configuration of a VMware machine that is read.
const maxVMX = 1 << 20

// vmxDisk is a disk as a VMware machine's configuration has it.
type vmxDisk struct {
	machine string
	os      string
	number  int // in the order of controllers and addresses; 0 is the one that the machine starts from
	of      int // disks of the machine
}

var (
	vmxLine = regexp.MustCompile(`^\s*([A-Za-z0-9_.:]+)\s*=\s*"(.*)"\s*$`)
	vmxFile = regexp.MustCompile(`^(ide|nvme|sata|scsi)(\d+):(\d+)\.filename$`)
)

// parseVMX reads which files are the disks of a machine, in the machine's order, and what it is called.
func parseVMX(r io.Reader) (name, guest string, disks []string) {
	type place struct {
		bus, file           string
		controller, address int
	}
	values := map[string]string{}
	lines := bufio.NewScanner(io.LimitReader(r, maxVMX))
	lines.Buffer(nil, maxVMX)
	for lines.Scan() {
		if m := vmxLine.FindStringSubmatch(lines.Text()); m != nil {
			values[strings.ToLower(m[1])] = m[2]
		}
	}
	var places []place
	for key, value := range values {
		m := vmxFile.FindStringSubmatch(key)
		device := strings.TrimSuffix(key, ".filename")
		kind := strings.ToLower(values[device+".devicetype"])
		if m == nil || strings.EqualFold(values[device+".present"], "false") || strings.Contains(kind, "cdrom") ||
			!strings.EqualFold(filepath.Ext(value), ".vmdk") {
			continue
		}
		p := place{bus: m[1], file: value}
		if _, err := fmt.Sscan(m[2], &p.controller); err != nil {
			continue
		}
		if _, err := fmt.Sscan(m[3], &p.address); err != nil {
			continue
		}
		places = append(places, p)
	}
	slices.SortFunc(places, func(a, b place) int {
		return cmp.Or(cmp.Compare(a.bus, b.bus), cmp.Compare(a.controller, b.controller), cmp.Compare(a.address, b.address))
	})
	for _, p := range places {
		disks = append(disks, p.file)
	}
	return values["displayname"], values["guestos"], disks
}

// readVMX notes which disks are a machine's. Only files beside the configuration count: elsewhere nobody
// has said to look. given is a configuration that was named, whose disks are meant by it.
func (p *proposer) readVMX(path string, given bool) error {
	f, err := os.Open(path)
	if err != nil {
		if given {
			return err
		}
		p.ignore(path, "it can't be read: %v", err)
		return nil
	}
	defer f.Close()
	name, guest, disks := parseVMX(f)
	name = cmp.Or(name, strings.TrimSuffix(filepath.Base(path), filepath.Ext(path)))
	var own []string
	for _, file := range disks {
		if file == filepath.Base(file) && !strings.ContainsAny(file, `/\:`) {
			own = append(own, filepath.Join(filepath.Dir(path), file))
		} else {
			p.ignore(path, "it names the disk %q, which doesn't lie beside it", file)
		}
	}
	for n, file := range own {
		p.machines[filepath.Clean(file)] = vmxDisk{machine: name, os: guest, number: n, of: len(own)}
		if given {
			p.add(file, true)
		}
	}
	return nil
}
