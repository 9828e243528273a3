// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"cmp"
	"context"
	"encoding/xml"
	"io"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Package is what an OVA, an OVF descriptor or an archive of disks has in it.
type Package struct {
	Kind string // "OVA", "OVF" or "tar"
	// Files are the names of all files that belong to it: members of an archive, files beside a descriptor.
	Files []string
	// Disks are those that [OpenOptions].ArchiveDisk can name, those of one system together and in the
	// order in which the system has them.
	Disks []PackageDisk
}

// PackageDisk is a disk of a [Package]. Texts are the descriptor's author's.
type PackageDisk struct {
	Name     string // of its file
	System   string // name or id of the virtual system that it belongs to, "" if none is told
	OS       string // what the descriptor says of the system's operating system
	Capacity int64  // bytes, 0 if not told
}

// ovfSystems is what a descriptor says of virtual systems (DSP0243, 7.2 and 8.1): what runs on them, and
// which disk is where.
type ovfSystems struct {
	Systems    []ovfSystem `xml:"VirtualSystem"`
	Collection []struct {
		Systems []ovfSystem `xml:"VirtualSystem"`
	} `xml:"VirtualSystemCollection"`
}

type ovfSystem struct {
	ID   string `xml:"id,attr"`
	Name string `xml:"Name"`
	OS   struct {
		Description string `xml:"Description"`
		VMwareType  string `xml:"osType,attr"`
	} `xml:"OperatingSystemSection"`
	Items []ovfItem `xml:"VirtualHardwareSection>Item"`
	// Version 2 has elements of its own for disks (DSP0243 2.1, 8.1).
	StorageItems []ovfItem `xml:"VirtualHardwareSection>StorageItem"`
}

// ovfItem is a virtual device, in the terms of CIM's resource allocation setting data.
type ovfItem struct {
	InstanceID      string   `xml:"InstanceID"`
	ResourceType    string   `xml:"ResourceType"`
	Parent          string   `xml:"Parent"`
	AddressOnParent string   `xml:"AddressOnParent"`
	HostResource    []string `xml:"HostResource"`
}

// maxPackageText bounds a text of a descriptor that is passed on.
const maxPackageText = 200

// ReadPackage tells what an archive or an OVF descriptor has in it. It opens no other file. nil without an
// error is a file of another kind; one that is compressed as a whole counts as such.
func ReadPackage(ctx context.Context, path string) (*Package, error) {
	f, err := openSource(path)
	if err != nil {
		return nil, err
	}
	defer f.file.Close()
	in := f.input()
	w, err := wrapperOf(in, "")
	if err != nil || w == nil || w.name != "tar" && w.name != "OVF" {
		return nil, err
	}
	if w.name == "OVF" {
		return readDescriptor(in, in, &Package{Kind: "OVF"})
	}
	members, err := readTar(ctx, in)
	if err != nil {
		return nil, err
	}
	p := &Package{Kind: "tar"}
	var descriptor *input
	for _, m := range members {
		p.Files = append(p.Files, m.name)
		if strings.EqualFold(filepath.Ext(m.name), ".ovf") {
			if descriptor != nil {
				return nil, in.bad("", "it is an archive with several OVF descriptors, which is not allowed")
			}
			descriptor = m
		}
	}
	if descriptor != nil {
		p.Kind = "OVA"
		return readDescriptor(in, descriptor, p)
	}
	for _, name := range p.Files {
		p.Disks = append(p.Disks, PackageDisk{Name: name})
	}
	return p, nil
}

// readDescriptor fills in what a descriptor tells.
func readDescriptor(in, desc *input, p *Package) (*Package, error) {
	if desc.size > maxOVFBytes {
		return nil, in.bad("", "its OVF descriptor has %d bytes, more than %d", desc.size, maxOVFBytes)
	}
	text, err := io.ReadAll(io.NewSectionReader(desc.r, 0, desc.size))
	if err != nil {
		return nil, err
	}
	var content ovf
	var systems ovfSystems
	for _, v := range []any{&content, &systems} {
		if err := xml.Unmarshal(text, v); err != nil {
			return nil, in.bad("", "its OVF descriptor is damaged: %v", err)
		}
	}
	if p.Kind == "OVF" {
		p.Files = append(p.Files, strings.TrimSuffix(desc.name, filepath.Ext(desc.name))+".mf")
		for _, f := range content.Files {
			p.Files = append(p.Files, f.Href)
		}
	}
	var disks []PackageDisk
	byID := map[string]int{}
	for _, d := range content.Disks {
		at := slices.IndexFunc(content.Files, func(f ovfFile) bool { return f.ID == d.FileRef })
		if d.FileRef == "" || at < 0 {
			continue // an empty disk, or one that opening refuses
		}
		capacity, _ := d.capacity()
		byID[d.ID] = len(disks)
		disks = append(disks, PackageDisk{Name: content.Files[at].Href, Capacity: capacity})
	}
	list := systems.Systems
	for _, c := range systems.Collection {
		list = append(list, c.Systems...)
	}
	taken := map[int]bool{}
	for _, s := range list {
		for _, id := range s.disks() {
			at, ok := byID[id]
			if !ok || taken[at] {
				continue
			}
			taken[at] = true
			d := disks[at]
			d.System = shortText(cmp.Or(s.Name, s.ID))
			d.OS = shortText(cmp.Or(s.OS.Description, s.OS.VMwareType))
			p.Disks = append(p.Disks, d)
		}
	}
	for at, d := range disks {
		if !taken[at] {
			p.Disks = append(p.Disks, d)
		}
	}
	return p, nil
}

func shortText(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if r := []rune(s); len(r) > maxPackageText {
		s = string(r[:maxPackageText])
	}
	return s
}

// diskDrive is the resource type of a hard disk (DMTF CIM_ResourceAllocationSettingData).
const diskDrive = "17"

// disks lists the ids of a system's disks by controller and address: the first is the one that it starts
// from, unless its firmware is told otherwise, which no descriptor says.
func (s ovfSystem) disks() []string {
	type place struct {
		id                  string
		controller, address int
	}
	items := slices.Concat(s.Items, s.StorageItems)
	var places []place
	for _, item := range items {
		if strings.TrimSpace(item.ResourceType) != diskDrive || len(item.HostResource) == 0 {
			continue
		}
		host := strings.TrimSpace(item.HostResource[0])
		at := strings.LastIndex(host, "/disk/") // ovf:/disk/ID, and what tools make of it
		if at < 0 {
			continue
		}
		p := place{id: host[at+len("/disk/"):]}
		p.controller = slices.IndexFunc(items, func(c ovfItem) bool { return c.InstanceID == item.Parent })
		if n, err := strconv.Atoi(strings.TrimSpace(item.AddressOnParent)); err == nil {
			p.address = n
		}
		places = append(places, p)
	}
	slices.SortStableFunc(places, func(a, b place) int {
		return cmp.Or(cmp.Compare(a.controller, b.controller), cmp.Compare(a.address, b.address))
	})
	ids := make([]string, len(places))
	for n, p := range places {
		ids[n] = p.id
	}
	return ids
}
