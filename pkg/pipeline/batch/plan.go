// SPDX-License-Identifier: Apache-2.0

package batch

import (
	"time"
)

// Version is of the plan file; a file of another version is refused.
const Version = 1

// Limits of a batch.
const (
	// MaxJobs is how many import jobs the service takes at the same time from one account.
	MaxJobs = 40
	// MaxImagesAtOnce bounds uploads at the same time: more only share the same line.
	MaxImagesAtOnce = 64
	// MaxImages bounds the entries of a plan.
	MaxImages = 10_000
	// MinMemory is the least memory of one upload, in bytes: two parts of 8 MiB.
	MinMemory = 16 << 20

	DefaultImagesAtOnce = 4
	DefaultMemory       = 1 << 30
	DefaultJobs         = 20
	DefaultAttempts     = 5
)

// Plan is a plan file: which disks become which images, and within which limits. [Load] makes one; the
// tags say how its fields are written, and what the published schema says of them.
type Plan struct {
	Version  int      `yaml:"version" doc:"Version of the plan file: 1." required:"true" min:"1" max:"1"`
	Name     string   `yaml:"name" doc:"Name of the batch. What became of its images is remembered under it. Default: made from the path of the plan file."`
	Limits   Limits   `yaml:"limits" doc:"What the whole run may use."`
	Defaults Defaults `yaml:"defaults" doc:"What holds for every image that doesn't say otherwise."`
	Images   []Image  `yaml:"images" doc:"The disks, one image each." required:"true"`

	// File is the path of the plan file, Dir the folder that relative paths in it start from.
	File string `yaml:"-"`
	Dir  string `yaml:"-"`
}

// Limits are what a run may use. [Load] fills in what isn't said.
type Limits struct {
	Images   int  `yaml:"images" doc:"Disks that are uploaded at the same time." min:"1" max:"64" default:"4"`
	Memory   Size `yaml:"memory" doc:"Memory for the buffers of all uploads together; each gets its share." default:"1GiB"`
	Rate     Rate `yaml:"rate" doc:"Bytes a second that all uploads together may send. Default: no limit."`
	Jobs     int  `yaml:"jobs" doc:"Import jobs at the service at the same time; it takes 40 from one account." min:"1" max:"40" default:"20"`
	Attempts int  `yaml:"attempts" doc:"How often an image is tried in one run when trouble that may pass gets in the way." min:"1" max:"100" default:"5"`
}

// Defaults are the settings of images that don't say otherwise.
type Defaults struct {
	Settings `yaml:",inline"`
}

// Image is one entry: a disk and the image to be made of it.
type Image struct {
	Name        string `yaml:"name" doc:"The image's name: 1 to 128 characters, once in a plan." required:"true"`
	Source      string `yaml:"source" doc:"The disk: a file, or a block device. A relative path starts from the plan file's folder." required:"true"`
	OVADisk     string `yaml:"ova_disk" doc:"The file to take from an OVA, OVF or archive that has several disks."`
	Machine     string `yaml:"machine" doc:"The machine that the disk belongs to. Its images get the tag imsprep-machine, and the report shows them together."`
	Key         string `yaml:"key" doc:"The object's key. The ending of its format is added if it has none. Default: made from the source's name and the run, so that no other has it."`
	MinDisk     int    `yaml:"min_disk" doc:"Smallest disk for servers made from the image, in GB. Default: the smallest that fits." min:"1" max:"1024"`
	VirtualSize Size   `yaml:"virtual_size" doc:"Size of the disk when the plan was made. The run tells when it has changed."`
	DataSize    Size   `yaml:"data_size" doc:"How much of the disk held data when the plan was made, as far as its tables told."`
	Refused     string `yaml:"refused" doc:"Why the disk would be refused. The run leaves such an image out and reports it; remove the line when that is mended."`
	Skip        bool   `yaml:"skip" doc:"Leave the image out on purpose."`

	Settings `yaml:",inline"`

	// Line and Column are where the entry begins in the plan file, from 1.
	Line   int `yaml:"-"`
	Column int `yaml:"-"`
}

// Settings are what may stand among the defaults and at an image. The names are those of the flags of
// `imsprep import`.
type Settings struct {
	Bucket     string `yaml:"bucket" doc:"Bucket that the disk goes through, in the image service's region, of class Standard."`
	Type       string `yaml:"type" doc:"What the disk is: the system disk of a machine, or a data disk." enum:"system,data" default:"system"`
	OSVersion  string `yaml:"os_version" doc:"Operating system of a system disk, exactly as the region lists it (imsprep image os-versions)." of:"system"`
	OSType     string `yaml:"os_type" doc:"Of a data disk: the kind of system that it is for." of:"data" enum:"Linux,Windows,Other"`
	ImageType  string `yaml:"image_type" doc:"Of a system disk: for virtual servers, for bare metal, or an installation medium." of:"system" enum:"ECS,BMS,IsoImage"`
	Format     string `yaml:"format" doc:"What the object is: auto is raw where its bitmap's layout is confirmed for the cloud, else zvhd2." enum:"auto,raw,zvhd2" default:"auto"`
	ImportPath string `yaml:"import_path" doc:"The service's call." enum:"auto,quick,common,data,native" default:"auto"`

	Architecture      string            `yaml:"architecture" doc:"Of a system disk." of:"system" enum:"x86,arm"`
	Firmware          string            `yaml:"firmware" doc:"Of a system disk." of:"system" enum:"bios,uefi"`
	License           string            `yaml:"license" doc:"Of a Windows system." of:"system" enum:"platform,byol"`
	Description       string            `yaml:"description" doc:"The image's description."`
	EnterpriseProject string            `yaml:"enterprise_project" doc:"Enterprise project id."`
	Tags              map[string]string `yaml:"tags" doc:"Tags of the image. Those of the defaults and of the image are put together; on the same key the image's counts."`
	KMSKey            string            `yaml:"kms_key" doc:"Encrypt the image with this key."`
	InjectDrivers     *bool             `yaml:"inject_drivers" doc:"Let the service add drivers and change settings of the disk." of:"system"`
	MinRAM            int               `yaml:"min_ram" doc:"Least memory of servers made of it, in MB." of:"system" min:"0"`
	MaxRAM            int               `yaml:"max_ram" doc:"Most memory of servers made of it, in MB." of:"system" min:"0"`

	FormatIn     string   `yaml:"format_in" doc:"The disk's format; told by its content if absent."`
	AllowBacking *bool    `yaml:"allow_backing" doc:"Follow backing files and parent disks."`
	BackingDirs  []string `yaml:"backing_dirs" doc:"More folders in which those may lie."`
	Force        *bool    `yaml:"force" doc:"Read a disk that is marked damaged but can be read."`
	Scratch      string   `yaml:"scratch" doc:"Folder to unpack compressed disks to, once, instead of as often as they are read."`
	OriginalSize *bool    `yaml:"original_size" doc:"Of ZVHD and ZVHD2: the size of the disk that it was made from, not whole GiB."`
	VHDSize      string   `yaml:"vhd_size" doc:"Which size of a VHD counts where its two differ." enum:"current_size,chs"`

	BitmapLayout            string `yaml:"bitmap_layout" doc:"Layout of the bitmap file of RAW."`
	AcceptUnconfirmedBitmap *bool  `yaml:"accept_unconfirmed_bitmap" doc:"Use a bitmap layout that isn't confirmed for this cloud."`
	CompressionLevel        int    `yaml:"compression_level" doc:"Of ZVHD2: 1 (fast) to 22 (small)." min:"1" max:"22"`
	ZeroCopy                string `yaml:"zero_copy" doc:"Make zero parts by copying on the server." enum:"auto,on,off"`
	PartSize                Size   `yaml:"part_size" doc:"Size of a part of RAW."`
	Verify                  *bool  `yaml:"verify" doc:"Read the object back and compare, before the import."`
	SHA256                  *bool  `yaml:"sha256" doc:"Compute the plain SHA-256 of the disk, too."`
	Overwrite               *bool  `yaml:"overwrite" doc:"Replace an object of the same key."`
	KeepObject              *bool  `yaml:"keep_object" doc:"Keep the object and its bitmap after the import."`
	AllowDuplicateName      *bool  `yaml:"allow_duplicate_name" doc:"Import although an image of that name exists in the cloud."`

	Timeout Duration `yaml:"timeout" doc:"Longest wait for the import job." default:"2h"`
	Poll    Duration `yaml:"poll" doc:"Interval between questions after the job; it grows to three times that." default:"10s"`
}

// Values of [Settings.Type].
const (
	TypeSystem = "system"
	TypeData   = "data"
)

// Defaults of the waiting for a job.
const (
	DefaultTimeout = 2 * time.Hour
	DefaultPoll    = 10 * time.Second
)

// MachineTag is the key of the tag that images of one machine have in common.
const MachineTag = "imsprep-machine"
