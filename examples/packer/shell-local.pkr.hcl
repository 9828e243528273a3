# Builds a disk with QEMU and imports it with the imsprep command. Needs Packer's QEMU plugin and imsprep;
# credentials, region and bucket come from the environment (docs/environment.md).
packer {
  required_plugins {
    qemu = {
      source  = "github.com/hashicorp/qemu"
      version = ">= 1.1.0"
    }
  }
}

source "qemu" "ubuntu" {
  iso_url          = "https://cloud-images.ubuntu.com/releases/22.04/release/ubuntu-22.04-server-cloudimg-amd64.img"
  iso_checksum     = "file:https://cloud-images.ubuntu.com/releases/22.04/release/SHA256SUMS"
  disk_image       = true
  format           = "qcow2"
  ssh_username     = "ubuntu"
  shutdown_command = "sudo shutdown -P now"
}

build {
  sources = ["source.qemu.ubuntu"]

  post-processors {
    post-processor "manifest" {
      output = "packer-manifest.json"
    }
    post-processor "shell-local" {
      inline = [
        "imsprep import --packer-manifest packer-manifest.json --build qemu.ubuntu --name ubuntu-$(date -u +%Y%m%d-%H%M%S) --os-version 'Ubuntu 22.04 server 64bit'",
      ]
    }
  }
}
