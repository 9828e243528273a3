// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/imsprep/imsprep/pkg/ims"
)

func (a *app) imageShareCommand() *cobra.Command {
	// What is said of a job that has ended; with --quiet, whose output programs read, the images' ids.
	done := func(word string, ids []string) func(*ims.Job) string {
		return func(*ims.Job) string {
			if a.flags.quiet {
				return strings.Join(ids, "\n")
			}
			return word
		}
	}
	var below []*cobra.Command
	for _, c := range []struct{ use, short, example, word, title string }{
		{"add ID...", "Share images with other projects of the region",
			`  imsprep image share add 498cc67e-7795-482c-8c47-32bcece2d7ec --project 0b1e494e2660441a957313163095fe5c --wait`, "shared", "Sharing"},
		{"remove ID...", "End the sharing of images",
			`  imsprep image share remove 498cc67e-7795-482c-8c47-32bcece2d7ec --project 0b1e494e2660441a957313163095fe5c`, "removed", "Unsharing"},
	} {
		var projects []string
		var job jobFlags
		var native bool
		cmd := a.cloudCommand(c.use, c.short, c.example, cobra.MinimumNArgs(1),
			func(ctx context.Context, client *ims.Client, args []string) error {
				if len(projects) == 0 {
					return usagef("no project: give --project with the id of who to share with")
				}
				if native {
					return a.shareNatively(ctx, client, c.word == "removed", args, projects)
				}
				change := client.ShareImages
				if c.word == "removed" {
					change = client.UnshareImages
				}
				id, err := change(ctx, args, projects)
				if err != nil {
					return err
				}
				return a.finishJob(ctx, client, started{JobID: id, Status: string(ims.JobInit)}, &job, done(c.word, args))
			})
		cmd.Flags().StringSliceVar(&projects, "project", nil, "id of the other project (repeatable)")
		cmd.Flags().BoolVar(&native, "native", false, "by OpenStack's call, which is done when it answers: no job")
		below = append(below, job.add(a, cmd, c.title))
	}
	for _, c := range []struct{ use, short, status, title string }{
		{"accept ID...", "Accept images that others share with this project", ims.MemberAccepted, "Accepting"},
		{"reject ID...", "Reject images that others share with this project", ims.MemberRejected, "Rejecting"},
	} {
		var vault string
		var job jobFlags
		var native bool
		word, _, _ := strings.Cut(c.use, " ")
		cmd := a.cloudCommand(c.use, c.short, `  imsprep image list --type shared --member-status pending
  imsprep image share `+word+` 498cc67e-7795-482c-8c47-32bcece2d7ec --wait`, cobra.MinimumNArgs(1),
			func(ctx context.Context, client *ims.Client, args []string) error {
				project, err := client.ProjectID(ctx)
				if err != nil {
					return err
				}
				if native {
					var members []ims.Member
					for _, id := range args {
						m, err := client.UpdateNativeMember(ctx, id, project, c.status, vault)
						if err != nil {
							return err
						}
						members = append(members, *m)
					}
					return a.printMembers(members)
				}
				id, err := client.AnswerShares(ctx, args, project, c.status, vault)
				if err != nil {
					return err
				}
				return a.finishJob(ctx, client, started{JobID: id, Status: string(ims.JobInit)}, &job, done(c.status, args))
			})
		cmd.Flags().BoolVar(&native, "native", false, "by OpenStack's call, which is done when it answers: no job")
		cmd.Flags().StringVar(&vault, "vault", "", "backup vault, for images of whole servers")
		below = append(below, job.add(a, cmd, c.title))
	}
	var native, oneNative bool
	list := a.cloudCommand("list ID", "List the projects that an image is shared with",
		`  imsprep image share list 498cc67e-7795-482c-8c47-32bcece2d7ec`, cobra.ExactArgs(1),
		func(ctx context.Context, client *ims.Client, args []string) error {
			members := client.Members
			if native {
				members = client.NativeMembers
			}
			found, err := members(ctx, args[0])
			if err != nil {
				return err
			}
			return a.printMembers(found)
		})
	list.Flags().BoolVar(&native, "native", false, "by OpenStack's call")
	show := a.cloudCommand("show ID PROJECT", "Show how one project stands to an image",
		`  imsprep image share show 498cc67e-7795-482c-8c47-32bcece2d7ec 0b1e494e2660441a957313163095fe5c`, cobra.ExactArgs(2),
		func(ctx context.Context, client *ims.Client, args []string) error {
			member := client.Member
			if oneNative {
				member = client.NativeMember
			}
			m, err := member(ctx, args[0], args[1])
			if err != nil {
				return err
			}
			return a.printMembers([]ims.Member{*m})
		})
	show.Flags().BoolVar(&oneNative, "native", false, "by OpenStack's call")
	return a.parentCommand("share", "Share images with other projects, and answer what others share", append(below, list, show)...)
}

func (a *app) printMembers(members []ims.Member) error {
	return printList(a, members, func(m ims.Member) string { return m.ProjectID }, []string{"PROJECT", "STATUS", "SINCE"},
		func(m ims.Member) []string { return []string{m.ProjectID, m.Status, m.UpdatedAt} })
}

// shareNatively shares every image with every project, or ends that, one request after the other.
func (a *app) shareNatively(ctx context.Context, client *ims.Client, remove bool, images, projects []string) error {
	var members []ims.Member
	for _, image := range images {
		for _, project := range projects {
			if remove {
				if err := client.DeleteNativeMember(ctx, image, project); err != nil {
					return err
				}
				continue
			}
			m, err := client.AddNativeMember(ctx, image, project)
			if err != nil {
				return err
			}
			members = append(members, *m)
		}
	}
	if remove && !a.flags.json {
		return nil
	}
	return a.printMembers(members)
}
