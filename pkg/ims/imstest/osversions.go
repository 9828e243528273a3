// SPDX-License-Identifier: Apache-2.0

package imstest

import (
	"net/http"
	"slices"
	"strings"
)

// OSVersion is an entry of the region's list of operating systems.
type OSVersion struct {
	Platform string `json:"platform"`
	Key      string `json:"os_version_key"` // what a request sends
	Version  string `json:"os_version"`
	Bit      int    `json:"os_bit"`
	OSType   string `json:"os_type"` // Linux, Windows or Other
	arm      bool   // also for arm
	uefi     bool   // also with UEFI on x86
}

// listOSVersions is GET /v1/cloudimages/os_version. Its tag parameter may be
// repeated or hold several values with commas between them; every one of them
// must fit.
func (s *Server) listOSVersions(w http.ResponseWriter, r *http.Request) error {
	var tags []string
	for _, v := range r.URL.Query()["tag"] {
		tags = append(tags, strings.Split(v, ",")...)
	}
	type platform struct {
		Platform string      `json:"platform"`
		Versions []OSVersion `json:"version_list"`
	}
	list := []platform{}
	for _, v := range s.opt.OSVersions {
		if !v.fits(tags) {
			continue
		}
		i := slices.IndexFunc(list, func(p platform) bool { return p.Platform == v.Platform })
		if i < 0 {
			i, list = len(list), append(list, platform{Platform: v.Platform})
		}
		list[i].Versions = append(list[i].Versions, v)
	}
	return writeJSON(w, http.StatusOK, list)
}

func (v OSVersion) fits(tags []string) bool {
	for _, t := range tags {
		switch t {
		case "arm":
			if !v.arm {
				return false
			}
		case "uefi":
			if !v.uefi {
				return false
			}
		}
	}
	return true
}

// DefaultOSVersions is a list as a region of Huawei Cloud has it.
func DefaultOSVersions() []OSVersion {
	var list []OSVersion
	for _, p := range []struct {
		platform, osType string
		versions         []string
	}{
		{"Windows", "Windows", []string{
			"Windows 10 64bit",
			"Windows Server 2016 Standard 64bit",
			"Windows Server 2016 Datacenter 64bit",
			"Windows Server 2012 R2 Standard 64bit",
			"Windows Server 2012 Essentials R2 64bit",
			"Windows Server 2012 R2 Datacenter 64bit",
			"Windows Server 2012 Datacenter 64bit",
			"Windows Server 2012 Standard 64bit",
			"Windows Server 2008 R2 WEB 64bit",
			"Windows Server 2008 R2 Standard 64bit",
			"Windows Server 2008 R2 Enterprise 64bit",
			"Windows Server 2008 R2 Datacenter 64bit",
			"Windows Server 2019 Standard 64bit",
			"Windows Server 2019 Datacenter 64bit",
		}},
		{"SUSE", "Linux", []string{
			"SUSE Linux Enterprise Server 15 SP1 64bit",
			"SUSE Linux Enterprise Server 15 64bit",
			"SUSE Linux Enterprise Server 12 SP5 64bit",
			"SUSE Linux Enterprise Server 12 SP4 64bit",
			"SUSE Linux Enterprise Server 12 SP3 64bit",
			"SUSE Linux Enterprise Server 12 SP2 64bit",
			"SUSE Linux Enterprise Server 12 SP1 64bit",
			"SUSE Linux Enterprise Server 11 SP4 64bit",
			"SUSE Linux Enterprise Server 11 SP3 64bit",
			"SUSE Linux Enterprise Server 11 SP3 32bit",
		}},
		{"Oracle Linux", "Linux", []string{
			"Oracle Linux Server release 7.6 64bit",
			"Oracle Linux Server release 7.5 64bit",
			"Oracle Linux Server release 7.4 64bit",
			"Oracle Linux Server release 7.3 64bit",
			"Oracle Linux Server release 7.2 64bit",
			"Oracle Linux Server release 7.1 64bit",
			"Oracle Linux Server release 7.0 64bit",
			"Oracle Linux Server release 6.10 64bit",
			"Oracle Linux Server release 6.9 64bit",
			"Oracle Linux Server release 6.8 64bit",
			"Oracle Linux Server release 6.7 64bit",
			"Oracle Linux Server release 6.5 64bit",
		}},
		{"RedHat", "Linux", []string{
			"Redhat Linux Enterprise 8.0 64bit",
			"Redhat Linux Enterprise 7.5 64bit",
			"Redhat Linux Enterprise 7.4 64bit",
			"Redhat Linux Enterprise 7.3 64bit",
			"Redhat Linux Enterprise 7.2 64bit",
			"Redhat Linux Enterprise 7.1 64bit",
			"Redhat Linux Enterprise 7.0 64bit",
			"Redhat Linux Enterprise 6.10 64bit",
			"Redhat Linux Enterprise 6.9 64bit",
			"Redhat Linux Enterprise 6.8 64bit",
			"Redhat Linux Enterprise 6.7 64bit",
			"Redhat Linux Enterprise 6.6 64bit",
			"Redhat Linux Enterprise 6.6 32bit",
			"Redhat Linux Enterprise 6.5 64bit",
			"Redhat Linux Enterprise 6.4 64bit",
			"Redhat Linux Enterprise 6.4 32bit",
			"Redhat Linux Enterprise 7.6 64bit",
		}},
		{"Ubuntu", "Linux", []string{
			"Ubuntu 24.04 server 64bit",
			"Ubuntu 22.04 server 64bit",
			"Ubuntu 20.04 server 64bit",
			"Ubuntu 19.04 server 64bit",
			"Ubuntu 18.04 server 64bit",
			"Ubuntu 16.04 server 64bit",
			"Ubuntu 14.04.5 server 64bit",
			"Ubuntu 14.04.4 server 64bit",
			"Ubuntu 14.04.4 server 32bit",
			"Ubuntu 14.04.3 server 64bit",
			"Ubuntu 14.04.3 server 32bit",
			"Ubuntu 14.04.1 server 64bit",
			"Ubuntu 14.04.1 server 32bit",
			"Ubuntu 14.04 server 64bit",
			"Ubuntu 14.04 server 32bit",
			"Ubuntu 18.04.2 server 64bit",
			"Ubuntu 18.04.1 server 64bit",
			"Ubuntu 16.04.6 server 64bit",
			"Ubuntu 16.04.5 server 64bit",
			"Ubuntu 16.04.4 server 64bit",
			"Ubuntu 16.04.3 server 64bit",
			"Ubuntu 16.04.2 server 64bit",
		}},
		{"OpenSUSE", "Linux", []string{
			"openSUSE 42.3 64bit",
			"openSUSE 42.2 64bit",
			"openSUSE 42.1 64bit",
			"openSUSE 15.0 64bit",
			"openSUSE 13.2 64bit",
			"openSUSE 11.3 64bit",
		}},
		{"CentOS", "Linux", []string{
			"CentOS 7.9 64bit",
			"CentOS 8.0 64bit",
			"CentOS 7.7 64bit",
			"CentOS 7.6 64bit",
			"CentOS 7.5 64bit",
			"CentOS 7.4 64bit",
			"CentOS 7.3 64bit",
			"CentOS 7.2 64bit",
			"CentOS 7.1 64bit",
			"CentOS 7.0 64bit",
			"CentOS 7.0 32bit",
			"CentOS 6.10 64bit",
			"CentOS 6.10 32bit",
			"CentOS 6.9 64bit",
			"CentOS 6.8 64bit",
			"CentOS 6.7 64bit",
			"CentOS 6.7 32bit",
			"CentOS 6.6 64bit",
			"CentOS 6.6 32bit",
			"CentOS 6.5 64bit",
			"CentOS 6.5 32bit",
			"CentOS 6.4 64bit",
			"CentOS 6.4 32bit",
			"CentOS 6.3 64bit",
			"CentOS 6.3 32bit",
		}},
		{"Debian", "Linux", []string{
			"Debian GNU/Linux 10.0.0 64bit",
			"Debian GNU/Linux 9.3.0 64bit",
			"Debian GNU/Linux 9.0.0 64bit",
			"Debian GNU/Linux 8.10.0 64bit",
			"Debian GNU/Linux 8.8.0 64bit",
			"Debian GNU/Linux 8.7.0 64bit",
			"Debian GNU/Linux 8.6.0 64bit",
			"Debian GNU/Linux 8.5.0 64bit",
			"Debian GNU/Linux 8.4.0 64bit",
			"Debian GNU/Linux 8.2.0 64bit",
			"Debian GNU/Linux 8.1.0 64bit",
		}},
		{"Fedora", "Linux", []string{
			"Fedora 30 64bit",
			"Fedora 29 64bit",
			"Fedora 28 64bit",
			"Fedora 27 64bit",
			"Fedora 26 64bit",
			"Fedora 25 64bit",
			"Fedora 24 64bit",
			"Fedora 23 64bit",
			"Fedora 22 64bit",
		}},
		{"EulerOS", "Linux", []string{
			"EulerOS 2.9 64bit",
			"EulerOS 2.5 64bit",
			"EulerOS 2.3 64bit",
			"EulerOS 2.2 64bit",
			"EulerOS 2.1 64bit",
		}},
		{"openEuler", "Linux", []string{
			"openEuler 20.03 64bit",
		}},
		{"NeoKylin", "Linux", []string{
			"NeoKylin 7.4 64bit",
			"NeoKylin Server release 5.0 U2 64bit",
			"NeoKylin Linux Advanced Server release 7.0 U5 64bit",
		}},
		{"Other", "Other", []string{
			"Other(64 bit)",
			"Other(32 bit)",
		}},
	} {
		for _, name := range p.versions {
			bit := 64
			if strings.Contains(name, "32bit") || strings.Contains(name, "32 bit") {
				bit = 32
			}
			list = append(list, OSVersion{
				Platform: p.platform, Key: name, Version: name, Bit: bit, OSType: p.osType,
				arm:  bit == 64 && slices.Contains([]string{"Ubuntu", "CentOS", "Debian", "EulerOS", "openEuler"}, p.platform),
				uefi: bit == 64 && p.platform != "Other",
			})
		}
	}
	return list
}
