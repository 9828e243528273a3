// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/imsprep/imsprep/pkg/ims"
)

func (a *app) imageTagCommand() *cobra.Command {
	tagLine := func(t ims.Tag) string { return t.String() }
	list := a.cloudCommand("list ID", "List the tags of an image", `  imsprep image tag list 498cc67e-7795-482c-8c47-32bcece2d7ec`, cobra.ExactArgs(1),
		func(ctx context.Context, client *ims.Client, args []string) error {
			tags, err := client.Tags(ctx, args[0])
			if err != nil {
				return err
			}
			return printList(a, tags, tagLine, []string{"KEY", "VALUE"}, func(t ims.Tag) []string { return []string{t.Key, t.Value} })
		})
	var adding, deleting string
	add := a.cloudCommand("add ID KEY=VALUE...", "Give an image tags, or the tags other values",
		`  imsprep image tag add 498cc67e-7795-482c-8c47-32bcece2d7ec env=prod team=blue`, cobra.MinimumNArgs(2),
		func(ctx context.Context, client *ims.Client, args []string) error {
			tags, err := addTags(ctx, client, args[0], args[1:], adding)
			if err != nil || !a.flags.json {
				return err
			}
			return a.printJSON(map[string]any{"image_id": args[0], "added": tags})
		})
	tagCallFlag(add, &adding)
	remove := a.cloudCommand("delete ID KEY...", "Take tags from an image",
		`  imsprep image tag delete 498cc67e-7795-482c-8c47-32bcece2d7ec team`, cobra.MinimumNArgs(2),
		func(ctx context.Context, client *ims.Client, args []string) error {
			err := deleteTags(ctx, client, args[0], args[1:], deleting)
			if err != nil || !a.flags.json {
				return err
			}
			return a.printJSON(map[string]any{"image_id": args[0], "deleted": args[1:]})
		})
	tagCallFlag(remove, &deleting)
	var old bool
	all := a.cloudCommand("all", "List all tags of the project's images", `  imsprep image tag all`, cobra.NoArgs,
		func(ctx context.Context, client *ims.Client, _ []string) error {
			if old {
				tags, err := client.ListTags(ctx, ims.ImageFilter{ImageType: "private"}, 0, 0)
				if err != nil {
					return err
				}
				return printList(a, tags, func(t string) string { return t }, []string{"TAG"}, func(t string) []string { return []string{t} })
			}
			tags, err := client.ProjectTags(ctx)
			if err != nil {
				return err
			}
			return printList(a, tags, func(t ims.TagValues) string { return t.Key }, []string{"KEY", "VALUES"},
				func(t ims.TagValues) []string { return []string{t.Key, strings.Join(t.Values, ", ")} })
		})
	all.Flags().BoolVar(&old, "v1", false, "by the older call, for old installations")
	var anyOf, not []string
	var f ims.TagFilter
	var count bool
	find := a.cloudCommand("find [KEY=VALUE...]", "Find images by their tags; several values of a key are alternatives", `  imsprep image tag find env=prod team=blue
  imsprep image tag find --any env=prod --any env=test --not obsolete
  imsprep image tag find --untagged --count`, cobra.ArbitraryArgs,
		func(ctx context.Context, client *ims.Client, args []string) error {
			var err error
			for dst, list := range map[*[]ims.TagValues][]string{&f.All: args, &f.Any: anyOf, &f.NotAny: not} {
				if *dst, err = tagValues(list); err != nil {
					return err
				}
			}
			if count {
				n, err := client.CountImagesByTags(ctx, f)
				if err != nil {
					return err
				}
				if a.flags.json {
					return a.printJSON(map[string]int{"total_count": n})
				}
				_, err = fmt.Fprintln(a.out, n)
				return err
			}
			images, err := client.ImagesByTags(ctx, f)
			if err != nil {
				return err
			}
			return printList(a, images, func(i ims.TaggedImage) string { return i.ID }, []string{"ID", "NAME", "STATUS", "TAGS"},
				func(i ims.TaggedImage) []string {
					var tags []string
					for _, t := range i.Tags {
						tags = append(tags, t.String())
					}
					return []string{i.ID, i.Name, i.Status, strings.Join(tags, " ")}
				})
		})
	fl := find.Flags()
	fl.StringArrayVar(&anyOf, "any", nil, "images with at least one of these, KEY=VALUE or KEY (repeatable)")
	fl.StringArrayVar(&not, "not", nil, "images with none of these, KEY=VALUE or KEY (repeatable)")
	fl.BoolVar(&f.Without, "untagged", false, "images without any tag")
	fl.StringVar(&f.Name, "name", "", "a part of the name")
	fl.IntVar(&f.Limit, "limit", 0, "most images to list; 0 for all")
	fl.BoolVar(&count, "count", false, "print how many there are")
	return a.parentCommand("tag", "List, change and find tags of images", list, add, remove, all, find)
}

// The calls that change an image's tags.
const (
	tagsBatch  = "batch"  // all at once
	tagsSingle = "single" // one by one; to delete a tag that isn't there is an error
	tagsV1     = "v1"     // the older calls, for old installations
	tagsNative = "native" // OpenStack's, whose tags are keys alone
)

func tagCallFlag(cmd *cobra.Command, call *string) {
	all := []string{tagsBatch, tagsSingle, tagsV1, tagsNative}
	cmd.Flags().StringVar(call, "call", tagsBatch, "the service's call: batch, single (a key that isn't there is an error), v1 (old installations), native (keys alone)")
	_ = cmd.RegisterFlagCompletionFunc("call", cobra.FixedCompletions(all, cobra.ShellCompDirectiveNoFileComp))
}

func unknownTagCall(call string) error {
	return usagef("--call %q: it is one of batch, single, v1, native", call)
}

func addTags(ctx context.Context, client *ims.Client, id string, args []string, call string) ([]ims.Tag, error) {
	tags, err := tagArgs(args)
	if err != nil {
		return nil, err
	}
	one := client.AddTag
	switch call {
	case tagsBatch:
		return tags, client.AddTags(ctx, id, tags...)
	case tagsSingle:
	case tagsV1:
		one = client.SetTag
	case tagsNative:
		one = func(ctx context.Context, id string, t ims.Tag) error {
			if t.Value != "" {
				return usagef("%q: a native tag is a key alone", t.String())
			}
			return client.AddNativeTag(ctx, id, t.Key)
		}
	default:
		return nil, unknownTagCall(call)
	}
	for _, t := range tags {
		if err := one(ctx, id, t); err != nil {
			return nil, err
		}
	}
	return tags, nil
}

func deleteTags(ctx context.Context, client *ims.Client, id string, keys []string, call string) error {
	one := client.DeleteTag
	switch call {
	case tagsBatch:
		return client.DeleteTags(ctx, id, keys...)
	case tagsV1:
		tags, err := tagArgs(keys)
		if err != nil {
			return err
		}
		return client.DeleteTagsV1(ctx, id, tags...)
	case tagsSingle:
	case tagsNative:
		one = client.DeleteNativeTag
	default:
		return unknownTagCall(call)
	}
	for _, key := range keys {
		if err := one(ctx, id, key); err != nil {
			return err
		}
	}
	return nil
}

// tagValues gathers KEY=VALUE arguments by key. A key alone means any value.
func tagValues(args []string) ([]ims.TagValues, error) {
	var list []ims.TagValues
	at := map[string]int{}
	for _, arg := range args {
		t, err := tagArg(arg)
		if err != nil {
			return nil, err
		}
		n, ok := at[t.Key]
		if !ok {
			n = len(list)
			at[t.Key] = n
			list = append(list, ims.TagValues{Key: t.Key})
		}
		if strings.Contains(arg, "=") {
			list[n].Values = append(list[n].Values, t.Value)
		}
	}
	return list, nil
}
