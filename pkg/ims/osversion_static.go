// SPDX-License-Identifier: Apache-2.0

package ims

import "strings"

// StaticOSVersions are names that the documentation of Huawei Cloud and Open Telekom Cloud lists,
// the newer ones in the spelling that requests use. They serve to suggest something where a
// region's own list ([Client.OSVersions]) cannot be had; a region may know more, fewer, or spell
// them otherwise.
func StaticOSVersions() []OSVersion {
	var list []OSVersion
	for _, p := range staticOSVersions {
		for name := range strings.Lines(p.names) {
			name = strings.TrimSpace(name)
			if name == "" {
				continue
			}
			o := OSVersion{Platform: p.platform, Key: name, Version: name, OSType: "Linux", Bits: 64}
			switch p.platform {
			case "Windows", "Other":
				o.OSType = p.platform
			case "FreeBSD":
				o.OSType = "Other"
			}
			if strings.Contains(name, "32bit") || strings.Contains(name, "32 bit") {
				o.Bits = 32
			}
			list = append(list, o)
		}
	}
	return list
}

var staticOSVersions = [...]struct{ platform, names string }{
	{"Windows", `
Windows 10 64bit
Windows Server 2016 Standard 64bit
Windows Server 2016 Datacenter 64bit
Windows Server 2012 R2 Standard 64bit
Windows Server 2012 Essentials R2 64bit
Windows Server 2012 R2 Datacenter 64bit
Windows Server 2012 Datacenter 64bit
Windows Server 2012 Standard 64bit
Windows Server 2008 R2 WEB 64bit
Windows Server 2008 R2 Standard 64bit
Windows Server 2008 R2 Enterprise 64bit
Windows Server 2008 R2 Datacenter 64bit
Windows Server 2019 Standard 64bit
Windows Server 2019 Datacenter 64bit
Windows 7 Enterprise 64bit
Windows 7 Professional 64bit
Windows 7 Professional 32bit
Windows Server 2022 Standard 64bit
Windows Server 2022 Datacenter 64bit
Windows Server 2012 R2 Essentials 64bit
Windows Server 2008 WEB R2 64bit
`},
	{"SUSE", `
SUSE Linux Enterprise Server 15 SP1 64bit
SUSE Linux Enterprise Server 15 64bit
SUSE Linux Enterprise Server 12 SP5 64bit
SUSE Linux Enterprise Server 12 SP4 64bit
SUSE Linux Enterprise Server 12 SP3 64bit
SUSE Linux Enterprise Server 12 SP2 64bit
SUSE Linux Enterprise Server 12 SP1 64bit
SUSE Linux Enterprise Server 11 SP4 64bit
SUSE Linux Enterprise Server 11 SP3 64bit
SUSE Linux Enterprise Server 11 SP3 32bit
SUSE Linux Enterprise Server 12 64bit
SUSE Linux Enterprise Server 11 SP1 64bit
SUSE Linux Enterprise Server 15 SP5 64bit
SUSE Linux Enterprise Server 15 SP4 64bit
SUSE Linux Enterprise Server 15 SP3 64bit
SUSE Linux Enterprise Server 15 SP2 64bit
`},
	{"Oracle Linux", `
Oracle Linux Server release 7.6 64bit
Oracle Linux Server release 7.5 64bit
Oracle Linux Server release 7.4 64bit
Oracle Linux Server release 7.3 64bit
Oracle Linux Server release 7.2 64bit
Oracle Linux Server release 7.1 64bit
Oracle Linux Server release 7.0 64bit
Oracle Linux Server release 6.10 64bit
Oracle Linux Server release 6.9 64bit
Oracle Linux Server release 6.8 64bit
Oracle Linux Server release 6.7 64bit
Oracle Linux Server release 6.5 64bit
`},
	{"Red Hat", `
Redhat Linux Enterprise 8.0 64bit
Redhat Linux Enterprise 7.5 64bit
Redhat Linux Enterprise 7.4 64bit
Redhat Linux Enterprise 7.3 64bit
Redhat Linux Enterprise 7.2 64bit
Redhat Linux Enterprise 7.1 64bit
Redhat Linux Enterprise 7.0 64bit
Redhat Linux Enterprise 6.10 64bit
Redhat Linux Enterprise 6.9 64bit
Redhat Linux Enterprise 6.8 64bit
Redhat Linux Enterprise 6.7 64bit
Redhat Linux Enterprise 6.6 64bit
Redhat Linux Enterprise 6.6 32bit
Redhat Linux Enterprise 6.5 64bit
Redhat Linux Enterprise 6.4 64bit
Redhat Linux Enterprise 6.4 32bit
Redhat Linux Enterprise 7.6 64bit
Redhat 7.6 64bit
Redhat Linux Enterprise 9.1 64bit
Redhat Linux Enterprise 9.0 64bit
Redhat Linux Enterprise 8.7 64bit
Redhat Linux Enterprise 8.6 64bit
Redhat Linux Enterprise 8.5 64bit
Redhat Linux Enterprise 8.4 64bit
Redhat Linux Enterprise 8.3 64bit
Redhat Linux Enterprise 8.2 64bit
Redhat Linux Enterprise 8.1 64bit
`},
	{"Ubuntu", `
Ubuntu 19.04 server 64bit
Ubuntu 18.04 server 64bit
Ubuntu 16.04 server 64bit
Ubuntu 14.04.5 server 64bit
Ubuntu 14.04.4 server 64bit
Ubuntu 14.04.4 server 32bit
Ubuntu 14.04.3 server 64bit
Ubuntu 14.04.3 server 32bit
Ubuntu 14.04.1 server 64bit
Ubuntu 14.04.1 server 32bit
Ubuntu 14.04 server 64bit
Ubuntu 14.04 server 32bit
Ubuntu 18.04.2 server 64bit
Ubuntu 18.04.1 server 64bit
Ubuntu 16.04.6 server 64bit
Ubuntu 16.04.5 server 64bit
Ubuntu 16.04.4 server 64bit
Ubuntu 16.04.3 server 64bit
Ubuntu 16.04.2 server 64bit
Ubuntu 22.04 server 64bit
Ubuntu 20.04 server 64bit
Ubuntu 24.04 server 64bit
`},
	{"openSUSE", `
openSUSE 42.3 64bit
openSUSE 42.2 64bit
openSUSE 42.1 64bit
openSUSE 15.0 64bit
openSUSE 13.2 64bit
openSUSE 11.3 64bit
openSUSE 15.1 64bit
openSUSE 15.5 64bit
openSUSE 15.4 64bit
openSUSE 15.3 64bit
openSUSE 15.2 64bit
`},
	{"CentOS", `
CentOS 8.0 64bit
CentOS 7.7 64bit
CentOS 7.6 64bit
CentOS 7.5 64bit
CentOS 7.4 64bit
CentOS 7.3 64bit
CentOS 7.2 64bit
CentOS 7.1 64bit
CentOS 7.0 64bit
CentOS 7.0 32bit
CentOS 6.10 64bit
CentOS 6.10 32bit
CentOS 6.9 64bit
CentOS 6.8 64bit
CentOS 6.7 64bit
CentOS 6.7 32bit
CentOS 6.6 64bit
CentOS 6.6 32bit
CentOS 6.5 64bit
CentOS 6.5 32bit
CentOS 6.4 64bit
CentOS 6.4 32bit
CentOS 6.3 64bit
CentOS 6.3 32bit
CentOS 6.9 32bit
CentOS 8.5 64bit
CentOS 8.4 64bit
CentOS 8.3 64bit
CentOS 8.2 64bit
CentOS 8.1 64bit
CentOS 7.9 64bit
CentOS 7.8 64bit
`},
	{"Debian", `
Debian GNU/Linux 10.0.0 64bit
Debian GNU/Linux 9.3.0 64bit
Debian GNU/Linux 9.0.0 64bit
Debian GNU/Linux 8.10.0 64bit
Debian GNU/Linux 8.8.0 64bit
Debian GNU/Linux 8.7.0 64bit
Debian GNU/Linux 8.6.0 64bit
Debian GNU/Linux 8.5.0 64bit
Debian GNU/Linux 8.4.0 64bit
Debian GNU/Linux 8.2.0 64bit
Debian GNU/Linux 8.1.0 64bit
Debian GNU/Linux 12.0.0 64bit
Debian GNU/Linux 11.7.0 64bit
Debian GNU/Linux 11.6.0 64bit
Debian GNU/Linux 11.5.0 64bit
Debian GNU/Linux 11.4.0 64bit
Debian GNU/Linux 11.3.0 64bit
Debian GNU/Linux 11.2.0 64bit
Debian GNU/Linux 11.1.0 64bit
Debian GNU/Linux 11.0.0 64bit
Debian GNU/Linux 10.13.0 64bit
Debian GNU/Linux 10.12.0 64bit
Debian GNU/Linux 10.11.0 64bit
Debian GNU/Linux 10.10.0 64bit
Debian GNU/Linux 10.9.0 64bit
Debian GNU/Linux 10.8.0 64bit
Debian GNU/Linux 10.7.0 64bit
Debian GNU/Linux 10.6.0 64bit
Debian GNU/Linux 10.5.0 64bit
Debian GNU/Linux 10.4.0 64bit
Debian GNU/Linux 10.3.0 64bit
Debian GNU/Linux 10.2.0 64bit
Debian GNU/Linux 10.1.0 64bit
`},
	{"Fedora", `
Fedora 30 64bit
Fedora 29 64bit
Fedora 28 64bit
Fedora 27 64bit
Fedora 26 64bit
Fedora 25 64bit
Fedora 24 64bit
Fedora 23 64bit
Fedora 22 64bit
Fedora 39 64bit
Fedora 38 64bit
Fedora 37 64bit
Fedora 36 64bit
Fedora 35 64bit
Fedora 34 64bit
Fedora 33 64bit
Fedora 32 64bit
Fedora 31 64bit
`},
	{"EulerOS", `
EulerOS 2.9 64bit
EulerOS 2.5 64bit
EulerOS 2.3 64bit
EulerOS 2.2 64bit
EulerOS 2.1 64bit
EulerOS 2.12 64bit
EulerOS 2.11 64bit
EulerOS 2.10 64bit
EulerOS 2.8 64bit
EulerOS 2.7 64bit
`},
	{"openEuler", `
openEuler 20.03 64bit
openEuler 22.03 SP1 64bit
openEuler 22.03 64bit
openEuler 20.03 SP3 64bit
openEuler 20.03 SP2 64bit
openEuler 20.03 SP1 64bit
`},
	{"NeoKylin", `
NeoKylin 7.4 64bit
NeoKylin Server release 5.0 U2 64bit
NeoKylin Linux Advanced Server release 7.0 U5 64bit
`},
	{"CoreOS", `
CoreOS 1068.10.0
CoreOS 1010.5.0
CoreOS 1298.6.0
`},
	{"CentOS Stream", `
CentOS Stream 9.6 64bit
CentOS Stream 8.6 64bit
`},
	{"Rocky Linux", `
Rocky Linux 9.2 64bit
Rocky Linux 9.1 64bit
Rocky Linux 9.0 64bit
Rocky Linux 8.8 64bit
Rocky Linux 8.7 64bit
Rocky Linux 8.6 64bit
Rocky Linux 8.5 64bit
Rocky Linux 8.4 64bit
Rocky Linux 8.3 64bit
`},
	{"FreeBSD", `
FreeBSD 13.2 64bit
FreeBSD 13.1 64bit
FreeBSD 13.0 64bit
FreeBSD 12.4 64bit
FreeBSD 12.3 64bit
FreeBSD 12.2 64bit
FreeBSD 12.1 64bit
FreeBSD 12.0 64bit
FreeBSD 11.4 64bit
FreeBSD 11.3 64bit
FreeBSD 11.2 64bit
FreeBSD 11.1 64bit
FreeBSD 11.0 64bit
`},
	{"Other", `
Other(64 bit)
Other(32 bit)
`},
}
