// SPDX-License-Identifier: Apache-2.0

// Command ociimage puts the program into container images without a daemon, for `make image`. It is a module of its own, so
// that the product doesn't depend on what it needs.
package main

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "ociimage:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	c := content{binaries: map[string]string{}}
	f := flag.NewFlagSet("ociimage", flag.ContinueOnError)
	f.Func("binary", "PLATFORM=FILE of the program, such as linux/amd64=bin/imsprep (repeatable)", func(s string) error {
		platform, file, ok := strings.Cut(s, "=")
		if !ok {
			return fmt.Errorf("it is written PLATFORM=FILE")
		}
		c.binaries[platform] = file
		return nil
	})
	f.StringVar(&c.certs, "certs", "", "bundle of CA certificates (PEM)")
	f.StringVar(&c.license, "license", "", "license text")
	f.StringVar(&c.version, "version", "unknown", "version")
	f.StringVar(&c.revision, "revision", "", "commit")
	f.StringVar(&c.tag, "tag", "imsprep:latest", "name and tag that the tarballs carry")
	epoch := f.Int64("epoch", 0, "time of everything in the image, in seconds since 1970 (SOURCE_DATE_EPOCH)")
	out := f.String("out", "bin/image", "folder for the tarballs")
	if err := f.Parse(args); err != nil {
		return err
	}
	c.created = time.Unix(*epoch, 0).UTC()
	written, err := c.write(*out)
	if err != nil {
		return err
	}
	if c.certs == "" {
		fmt.Fprintln(os.Stderr, "ociimage: there are no CA certificates in the image: mount some at /etc/ssl/certs, or nothing can be reached by HTTPS")
	}
	for _, w := range written {
		fmt.Println(w)
	}
	return nil
}

func newTag(s string) (name.Tag, error) { return name.NewTag(s) }
