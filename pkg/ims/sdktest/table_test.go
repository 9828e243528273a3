// SPDX-License-Identifier: Apache-2.0

package sdktest

import (
	"context"

	"github.com/imsprep/imsprep/pkg/ims"
	"github.com/imsprep/imsprep/pkg/ims/imstest"
)

// operation is one case: an operation of the SDK with its request, and our client's method for it.
type operation struct {
	name, variant string
	request       string   // JSON, with $IMAGE, $QUEUED, $JOB, $PROJECT, $PARTNER
	answer        []string // fields that must be there
	as            string   // who speaks; the owner's project if empty
	shared        bool     // the image is shared with the partner
	refused       string   // the documented error, where the simulator has not what it needs
	ours          func(*world) error
	// differs names fields of the body, and query: parameters, in which the clients are meant to
	// differ.
	differs []string
}

var ctx = context.Background()

func fails[T any](_ T, err error) error { return err }

const system = "Ubuntu 22.04 server 64bit"

func quickSystem(gen ims.Generation) func(*world) error {
	return func(w *world) error {
		return fails(w.ours.QuickImport(ctx, &ims.QuickImport{
			Name: "n", ImageURL: "bkt:disk.raw", MinDisk: 40, OSVersion: system, Type: ims.TypeECS, Architecture: "x86",
			FirmwareType: "uefi", Description: "d", EnterpriseProjectID: "0", Tags: []ims.Tag{{Key: "a", Value: "b"}},
		}, gen))
	}
}

const quickSystemBody = `{"body":{"name":"n","image_url":"bkt:disk.raw","min_disk":40,"os_version":"` + system + `","type":"ECS",
	"architecture":"x86","hw_firmware_type":"uefi","description":"d","enterprise_project_id":"0","image_tags":[{"key":"a","value":"b"}]}}`

func common(gen ims.Generation) func(*world) error {
	return func(w *world) error {
		return fails(w.ours.CommonImport(ctx, &ims.CommonImport{
			Name: "n", ImageURL: "bkt:disk.raw", MinDisk: 40, OSVersion: system, Configure: true, KMSKey: "key-1", Type: ims.TypeECS,
			Architecture: "x86", FirmwareType: "bios", MinRAM: 512, MaxRAM: 1024, QuickImport: true,
			Tags: []ims.Tag{{Key: "a", Value: "b"}},
		}, gen))
	}
}

const commonBody = `{"body":{"name":"n","image_url":"bkt:disk.raw","min_disk":40,"os_version":"` + system + `","is_config":true,
	"cmk_id":"key-1","type":"ECS","architecture":"x86","hw_firmware_type":"bios","min_ram":512,"max_ram":1024,"is_quick_import":true,
	"image_tags":[{"key":"a","value":"b"}]}}`

func dataDisk(gen ims.Generation) func(*world) error {
	return func(w *world) error {
		return fails(w.ours.ImportDataDisk(ctx, &ims.DataDiskImport{
			Name: "n", ImageURL: "bkt:disk.raw", MinDisk: 40, OSType: "Linux", KMSKey: "key-1", Description: "d",
			Tags: []ims.Tag{{Key: "a", Value: "b"}},
		}, gen))
	}
}

const dataDiskBody = `{"body":{"name":"n","image_url":"bkt:disk.raw","min_disk":40,"os_type":"Linux","cmk_id":"key-1","description":"d",
	"image_tags":[{"key":"a","value":"b"}]}}`

func export(gen ims.Generation) func(*world) error {
	return func(w *world) error {
		return fails(w.ours.ExportImage(ctx, w.image, ims.Export{BucketURL: "bkt:out.qcow2", Format: "qcow2"}, gen))
	}
}

func inRegion(gen ims.Generation) func(*world) error {
	return func(w *world) error {
		return fails(w.ours.CopyImage(ctx, w.image, ims.Copy{Name: "n", Description: "d", KMSKey: "key-1"}, gen))
	}
}

var yes = true

// everyFilter is one that the image passes. The SDK sends numbers and booleans as our client does.
var everyFilter = ims.ImageFilter{
	Name: "base", Status: "active", ImageType: "private", Visibility: "private", Owner: project, OSType: "Linux",
	Platform: "Other", OSBit: "64", DiskFormat: "zvhd2", ContainerFormat: "bare", MinDisk: 40, Tag: ims.Tag{Key: "k", Value: "v"},
	SortKey: "name", SortDir: "asc", CreatedAt: "gt:2026-01-02T03:04:05Z", UpdatedAt: "gte:2026-01-02T03:04:05Z", Limit: 10,
	Protected: new(bool), Registered: &yes, VirtualEnvType: "FusionCompute", Architecture: "x86", EnterpriseProjectID: "0",
}

const everyFilterQuery = `"name":"base","status":"active","__imagetype":"private","visibility":"private","owner":"` + project + `",
	"__os_type":"Linux","__platform":"Other","__os_bit":"64","disk_format":"zvhd2","container_format":"bare","min_disk":40,"tag":"k=v",
	"sort_key":"name","sort_dir":"asc","created_at":"gt:2026-01-02T03:04:05Z","updated_at":"gte:2026-01-02T03:04:05Z","limit":10,
	"protected":false`

var table = []operation{
	// Imports.
	{name: "ImportImageQuick", request: quickSystemBody, answer: []string{"job_id"}, ours: quickSystem(ims.GenOld)},
	{name: "ImportImageQuickInSafeMode", request: quickSystemBody, answer: []string{"job_id"}, ours: quickSystem(ims.GenNew)},
	{name: "ImportImageQuick", variant: "/data",
		request: `{"body":{"name":"n","image_url":"bkt:disk.raw","min_disk":40,"type":"DataImage","os_type":"Windows"}}`,
		// The SDK cannot leave the empty os_version out, and a data disk has none.
		differs: []string{"os_version"},
		ours: func(w *world) error {
			return fails(w.ours.QuickImport(ctx, &ims.QuickImport{
				Name: "n", ImageURL: "bkt:disk.raw", MinDisk: 40, Type: ims.TypeDataImage, OSType: "Windows",
			}, ims.GenOld))
		}},
	{name: "CreateImage", request: commonBody, answer: []string{"job_id"}, ours: common(ims.GenOld)},
	{name: "CreateImageInSafeMode", request: commonBody, answer: []string{"job_id"}, ours: common(ims.GenNew)},
	{name: "CreateImage", variant: "/server", request: `{"body":{"name":"n","instance_id":"i"}}`, refused: "IMG.0005"},
	{name: "CreateDataImage", request: dataDiskBody, answer: []string{"job_id"}, ours: dataDisk(ims.GenOld)},
	{name: "CreateDataImageInSafeMode", request: dataDiskBody, answer: []string{"job_id"}, ours: dataDisk(ims.GenNew)},
	{name: "CreateWholeImage", request: `{"body":{"name":"n","instance_id":"i"}}`, refused: "IMG.0005"},
	{name: "GlanceCreateImageMetadata", answer: []string{"id", "status"},
		request: `{"body":{"name":"n","__os_version":"` + system + `","disk_format":"raw","container_format":"bare","visibility":"private",
			"min_disk":40,"min_ram":512,"protected":true,"tags":["a=b"]}}`,
		ours: func(w *world) error {
			return fails(w.ours.CreateImage(ctx, &ims.ImageMetadata{
				Name: "n", OSVersion: system, DiskFormat: "raw", ContainerFormat: "bare", Visibility: "private", MinDisk: 40, MinRAM: 512,
				Protected: true, Tags: []ims.Tag{{Key: "a", Value: "b"}},
			}))
		}},
	{name: "RegisterImage", request: `{"image_id":"$QUEUED","body":{"image_url":"bkt:disk.raw"}}`, answer: []string{"job_id"},
		ours: func(w *world) error { return fails(w.ours.RegisterImage(ctx, w.queued, "bkt:disk.raw")) }},

	// Jobs, quota, systems, versions, schemas.
	{name: "ShowJobProgress", request: `{"job_id":"$JOB"}`, answer: []string{"status", "entities"},
		ours: func(w *world) error { return fails(w.ours.Job(ctx, w.job)) }},
	{name: "ShowJob", request: `{"job_id":"$JOB"}`, answer: []string{"status", "entities"},
		ours: func(w *world) error {
			// Our client asks in this way once it knows that there is no other.
			w.sim.SetFaults(imstest.Faults{NoProgressCall: true})
			if _, err := w.ours.Job(ctx, w.job); err != nil {
				return err
			}
			w.take()
			return fails(w.ours.Job(ctx, w.job))
		}},
	{name: "ShowImageQuota", request: `{}`, answer: []string{"quotas"},
		ours: func(w *world) error { _, _, err := w.ours.Quota(ctx); return err }},
	{name: "ListOsVersions", request: `{"tag":"arm"}`,
		ours: func(w *world) error { return fails(w.ours.OSVersions(ctx, "arm")) }},
	{name: "ListVersions", request: `{}`, answer: []string{"versions"},
		ours: func(w *world) error { return fails(w.ours.Versions(ctx)) }},
	{name: "ShowVersion", request: `{"version":"v2"}`, answer: []string{"versions"},
		ours: func(w *world) error { return fails(w.ours.Version(ctx, "v2")) }},
	{name: "GlanceShowImageSchemas", request: `{}`, answer: []string{"name", "properties"},
		ours: func(w *world) error { return fails(w.ours.Schema(ctx, "image")) }},
	{name: "GlanceListImageSchemas", request: `{}`, answer: []string{"name", "properties"},
		ours: func(w *world) error { return fails(w.ours.Schema(ctx, "images")) }},
	{name: "GlanceShowImageMemberSchemas", request: `{}`, answer: []string{"name", "properties"},
		ours: func(w *world) error { return fails(w.ours.Schema(ctx, "member")) }},
	{name: "GlanceListImageMemberSchemas", request: `{}`, answer: []string{"name", "properties"},
		ours: func(w *world) error { return fails(w.ours.Schema(ctx, "members")) }},

	// Images.
	{name: "ListImages", answer: []string{"images"},
		request: `{` + everyFilterQuery + `,"__isregistered":"true","virtual_env_type":"FusionCompute","architecture":"x86","enterprise_project_id":"0"}`,
		ours:    func(w *world) error { return fails(w.ours.ListImages(ctx, everyFilter)) }},
	{name: "ListImages", variant: "/id", request: `{"id":"$IMAGE"}`, answer: []string{"images"},
		differs: []string{"query:limit"}, // ours always pages
		ours:    func(w *world) error { return fails(w.ours.Image(ctx, w.image)) }},
	{name: "ListImages", variant: "/shared", request: `{"visibility":"shared","member_status":"pending"}`, as: partner,
		differs: []string{"query:limit"},
		ours: func(w *world) error {
			return fails(w.ours.ListImages(ctx, ims.ImageFilter{Visibility: "shared", MemberStatus: "pending"}))
		}},
	{name: "GlanceListImages", request: `{` + everyFilterQuery + `,"__isregistered":true}`, answer: []string{"images", "first"},
		ours: func(w *world) error { return fails(w.ours.NativeImages(ctx, everyFilter)) }},
	{name: "GlanceShowImage", request: `{"image_id":"$IMAGE"}`, answer: []string{"id", "status"},
		ours: func(w *world) error { return fails(w.ours.NativeImage(ctx, w.image)) }},
	{name: "UpdateImage", request: `{"image_id":"$IMAGE","body":[{"op":"replace","path":"/name","value":"new"}]}`, answer: []string{"id"},
		ours: func(w *world) error {
			return fails(w.ours.UpdateImage(ctx, w.image, ims.Change{Op: ims.ChangeReplace, Attribute: "name", Value: "new"}))
		}},
	{name: "GlanceUpdateImage", request: `{"image_id":"$IMAGE","body":[{"op":"replace","path":"/name","value":"new"}]}`, answer: []string{"id"},
		ours: func(w *world) error {
			return fails(w.ours.UpdateNativeImage(ctx, w.image, ims.Change{Op: ims.ChangeReplace, Attribute: "name", Value: "new"}))
		}},
	{name: "GlanceDeleteImage", request: `{"image_id":"$IMAGE"}`,
		ours: func(w *world) error { return w.ours.DeleteImage(ctx, w.image) }},
	{name: "GlanceDeleteImage", variant: "/backup", request: `{"image_id":"$IMAGE","body":{"delete_backup":true}}`,
		ours: func(w *world) error { return w.ours.DeleteWholeImage(ctx, w.image) }},
	{name: "ExportImage", request: `{"image_id":"$IMAGE","body":{"bucket_url":"bkt:out.qcow2","file_format":"qcow2"}}`,
		answer: []string{"job_id"}, ours: export(ims.GenOld)},
	{name: "ExportImageInSafeMode", request: `{"image_id":"$IMAGE","body":{"bucket_url":"bkt:out.qcow2","file_format":"qcow2"}}`,
		answer: []string{"job_id"}, ours: export(ims.GenNew)},
	{name: "ExportImage", variant: "/quick",
		request: `{"image_id":"$IMAGE","body":{"bucket_url":"bkt:out.zvhd2","file_format":"zvhd","is_quick_export":true}}`,
		answer:  []string{"job_id"},
		differs: []string{"file_format"}, // the SDK cannot leave it out, the documentation wants it left out
		ours: func(w *world) error {
			return fails(w.ours.ExportImage(ctx, w.image, ims.Export{BucketURL: "bkt:out.zvhd2", Quick: true}, ims.GenOld))
		}},
	{name: "CopyImageInRegion", request: `{"image_id":"$IMAGE","body":{"name":"n","description":"d","cmk_id":"key-1"}}`,
		answer: []string{"job_id"}, ours: inRegion(ims.GenOld)},
	{name: "CopyImageInRegionInSafeMode", request: `{"image_id":"$IMAGE","body":{"name":"n","description":"d","cmk_id":"key-1"}}`,
		answer: []string{"job_id"}, ours: inRegion(ims.GenNew)},
	{name: "CopyImageCrossRegion", answer: []string{"job_id"},
		request: `{"image_id":"$IMAGE","body":{"name":"n","description":"d","region":"local-2","project_name":"local-2","agency_name":"a"}}`,
		ours: func(w *world) error {
			return fails(w.ours.CopyImageToRegion(ctx, w.image, ims.RegionCopy{
				Name: "n", Description: "d", Region: "local-2", ProjectName: "local-2", AgencyName: "a",
			}))
		}},

	// Members.
	{name: "BatchAddMembers", request: `{"body":{"images":["$IMAGE"],"projects":["$PARTNER"]}}`, answer: []string{"job_id"},
		ours: func(w *world) error { return fails(w.ours.ShareImages(ctx, []string{w.image}, []string{partner})) }},
	{name: "BatchDeleteMembers", request: `{"body":{"images":["$IMAGE"],"projects":["$PARTNER"]}}`, answer: []string{"job_id"}, shared: true,
		ours: func(w *world) error { return fails(w.ours.UnshareImages(ctx, []string{w.image}, []string{partner})) }},
	{name: "BatchUpdateMembers", request: `{"body":{"images":["$IMAGE"],"project_id":"$PARTNER","status":"accepted"}}`,
		answer: []string{"job_id"}, as: partner,
		ours: func(w *world) error {
			return fails(w.ours.AnswerShares(ctx, []string{w.image}, partner, ims.MemberAccepted, ""))
		}},
	{name: "ListImageMembers", request: `{"image_id":"$IMAGE","limit":100}`, answer: []string{"members"}, shared: true,
		ours: func(w *world) error { return fails(w.ours.Members(ctx, w.image)) }},
	{name: "ShowImageMember", request: `{"image_id":"$IMAGE","member_id":"$PARTNER"}`, answer: []string{"member_id", "status"}, shared: true,
		ours: func(w *world) error { return fails(w.ours.Member(ctx, w.image, partner)) }},
	{name: "GlanceAddImageMember", request: `{"image_id":"$IMAGE","body":{"member":"$PARTNER"}}`, answer: []string{"member_id", "status"},
		ours: func(w *world) error { return fails(w.ours.AddNativeMember(ctx, w.image, partner)) }},
	{name: "GlanceDeleteImageMember", request: `{"image_id":"$IMAGE","member_id":"$PARTNER"}`, shared: true,
		ours: func(w *world) error { return w.ours.DeleteNativeMember(ctx, w.image, partner) }},
	{name: "GlanceListImageMembers", request: `{"image_id":"$IMAGE","limit":100}`, answer: []string{"members"}, shared: true,
		ours: func(w *world) error { return fails(w.ours.NativeMembers(ctx, w.image)) }},
	{name: "GlanceShowImageMember", request: `{"image_id":"$IMAGE","member_id":"$PARTNER"}`, answer: []string{"member_id"}, shared: true,
		ours: func(w *world) error { return fails(w.ours.NativeMember(ctx, w.image, partner)) }},
	{name: "GlanceUpdateImageMember", request: `{"image_id":"$IMAGE","member_id":"$PARTNER","body":{"status":"rejected"}}`,
		answer: []string{"member_id", "status"}, as: partner,
		ours: func(w *world) error {
			return fails(w.ours.UpdateNativeMember(ctx, w.image, partner, ims.MemberRejected, ""))
		}},

	// Tags.
	{name: "AddImageTag", request: `{"image_id":"$IMAGE","body":{"tag":{"key":"a","value":"b"}}}`,
		ours: func(w *world) error { return w.ours.AddTag(ctx, w.image, ims.Tag{Key: "a", Value: "b"}) }},
	{name: "BatchAddOrDeleteTags", request: `{"image_id":"$IMAGE","body":{"action":"create","tags":[{"key":"a","value":"b"}]}}`,
		ours: func(w *world) error { return w.ours.AddTags(ctx, w.image, ims.Tag{Key: "a", Value: "b"}) }},
	{name: "BatchAddOrDeleteTags", variant: "/delete", request: `{"image_id":"$IMAGE","body":{"action":"delete","tags":[{"key":"k","value":""}]}}`,
		ours: func(w *world) error { return w.ours.DeleteTags(ctx, w.image, "k") }},
	{name: "BatchDeleteTags", request: `{"image_id":"$IMAGE","body":{"tags":[{"key":"k","value":"v"}]}}`,
		ours: func(w *world) error { return w.ours.DeleteTagsV1(ctx, w.image, ims.Tag{Key: "k", Value: "v"}) }},
	{name: "CreateOrUpdateTags", request: `{"body":{"image_id":"$IMAGE","image_tag":{"key":"a","value":"b"}}}`,
		ours: func(w *world) error { return w.ours.SetTag(ctx, w.image, ims.Tag{Key: "a", Value: "b"}) }},
	{name: "DeleteImageTag", request: `{"image_id":"$IMAGE","key":"k"}`,
		ours: func(w *world) error { return w.ours.DeleteTag(ctx, w.image, "k") }},
	{name: "ListImageTags", request: `{"image_id":"$IMAGE"}`, answer: []string{"tags"},
		ours: func(w *world) error { return fails(w.ours.Tags(ctx, w.image)) }},
	{name: "ListImagesTags", request: `{}`, answer: []string{"tags"},
		ours: func(w *world) error { return fails(w.ours.ProjectTags(ctx)) }},
	{name: "ListTags", request: `{"limit":5,"page":1,"name":"base","__imagetype":"private"}`, answer: []string{"tags"},
		ours: func(w *world) error {
			return fails(w.ours.ListTags(ctx, ims.ImageFilter{Name: "base", ImageType: "private"}, 1, 5))
		}},
	{name: "ListImageByTags", answer: []string{"resources", "total_count"},
		request: `{"body":{"action":"filter","tags":[{"key":"k","values":["v"]}],"not_tags_any":[{"key":"z","values":[]}],
			"matches":[{"key":"resource_name","value":"base"}],"limit":"100","offset":"0"}}`,
		ours: func(w *world) error {
			return fails(w.ours.ImagesByTags(ctx, ims.TagFilter{
				All: []ims.TagValues{{Key: "k", Values: []string{"v"}}}, NotAny: []ims.TagValues{{Key: "z"}}, Name: "base",
			}))
		}},
	{name: "ListImageByTags", variant: "/count", request: `{"body":{"action":"count","tags":[{"key":"k","values":["v"]}]}}`,
		answer: []string{"total_count"},
		ours: func(w *world) error {
			return fails(w.ours.CountImagesByTags(ctx, ims.TagFilter{All: []ims.TagValues{{Key: "k", Values: []string{"v"}}}}))
		}},
	{name: "GlanceCreateTag", request: `{"image_id":"$IMAGE","tag":"solo"}`,
		ours: func(w *world) error { return w.ours.AddNativeTag(ctx, w.image, "solo") }},
	{name: "GlanceDeleteTag", request: `{"image_id":"$IMAGE","tag":"alone"}`,
		ours: func(w *world) error { return w.ours.DeleteNativeTag(ctx, w.image, "alone") }},
}
