// SPDX-License-Identifier: Apache-2.0

// Command packer-plugin-imsprep is a plugin of Packer: the post-processor "imsprep" makes a private image of Huawei
// Cloud IMS of the disk that a build has made.
package main

import (
	"fmt"
	"os"

	"github.com/hashicorp/packer-plugin-sdk/plugin"
	sdkversion "github.com/hashicorp/packer-plugin-sdk/version"
)

// version is set by the build (-ldflags "-X main.version=..."). Packer wants three numbers.
var version = "0.0.0"

func main() {
	set := plugin.NewSet()
	set.RegisterPostProcessor(plugin.DEFAULT_NAME, new(postProcessor))
	set.SetVersion(sdkversion.NewPluginVersion(version, "dev", ""))
	if err := set.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
