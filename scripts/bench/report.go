// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
)

// report is what is written into the documents.
type report struct{ full, short string }

// numbers are the medians of a tool in a case.
type numbers struct {
	rounds                    int
	wall, cpu                 float64
	rss, read, write, sent, n int64
}

func (b *bench) numbers(bc *benchCase, tool string) numbers {
	var n numbers
	var wall, cpu, rss, read, written, sent, size []float64
	for _, r := range b.results.of(bc, tool) {
		if r.Round >= b.runs {
			continue
		}
		n.rounds++
		wall, cpu, rss = append(wall, r.Wall), append(cpu, r.CPU), append(rss, float64(r.RSS))
		read, written = append(read, float64(r.Read)), append(written, float64(r.Written))
		sent, size = append(sent, float64(r.Sent)), append(size, float64(r.Size))
	}
	n.wall, n.cpu, n.rss, n.read = median(wall), median(cpu), int64(median(rss)), int64(median(read))
	n.write, n.sent, n.n = int64(median(written)), int64(median(sent)), int64(median(size))
	return n
}

// ratios returns the medians, over the rounds, of tool a's time through tool b's.
func (b *bench) ratios(bc *benchCase, tool, peer string) (wall, cpu float64) {
	var w, c []float64
	theirs := b.results.of(bc, peer)
	for round, r := range b.results.of(bc, tool) {
		if p, ok := theirs[round]; ok && round < b.runs {
			w, c = append(w, r.Wall/p.Wall), append(c, r.CPU/p.CPU)
		}
	}
	return median(w), median(c)
}

// median of no values is 0.
func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	slices.Sort(v)
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// best returns the fastest of the tools but the first.
func (b *bench) best(bc *benchCase) string {
	name, most := "", 0.0
	for _, t := range bc.tools[1:] {
		if w, _ := b.ratios(bc, bc.tools[0].name, t.name); w > most {
			name, most = t.name, w
		}
	}
	return name
}

func (b *bench) report(cases []*benchCase) report {
	bySection, first := map[string][]*benchCase{}, map[*benchCase]string{}
	for _, bc := range cases {
		first[bc] = bc.tools[0].name
	}
	for _, bc := range cases {
		// Of tools that are missing or failed there is nothing to tell.
		bc.tools = slices.DeleteFunc(bc.tools, func(t tool) bool { return b.numbers(bc, t.name).rounds == 0 })
		if len(bc.tools) > 1 && bc.tools[0].name == first[bc] {
			bySection[bc.section] = append(bySection[bc.section], bc)
		}
	}
	var full, short strings.Builder
	fmt.Fprintf(&full, "`make bench` on %s.\n%s.\n", machine(), strings.Join(versions(b.imsprep), ", "))
	fmt.Fprintf(&full, "Disks of %d GiB, half of it files of /usr in an ext4 and an XFS, in the page cache. Medians; a ratio is the median of the\n"+
		"ratios within the rounds, imsprep's number through the other's: below 1 imsprep takes less.\n", b.gib)

	if list := bySection[sectionConvert]; len(list) > 0 {
		fmt.Fprintf(&short, "Converting disks of %d GiB, half of it files, to sparse RAW; wall time against the fastest of qemu-img, nbdcopy and (QCOW2, RAW)\n"+
			"go-qcow2reader, and processor time against qemu-img's; %d processors, medians of %d or more rounds (`make bench`):\n\n",
			b.gib, runtime.NumCPU(), b.rounds(list))
		short.WriteString("| disk | wall ÷ fastest peer's | CPU ÷ qemu-img's | peak memory |\n|---|---|---|---|\n")
		fmt.Fprintf(&full, "\n### Converting to sparse RAW\n\nNobody waits until the file is on the disk (`--no-sync`); %d rounds, of what is quick %d. Read: bytes that went "+
			"through\nread calls, of nbdcopy the server's and its own. Memory: the largest process.\n\n", b.rounds(list), b.mostRounds(list))
		full.WriteString("| disk | tool | wall s | CPU s | peak MiB | read MiB | ratio wall | ratio CPU |\n|---|---|---|---|---|---|---|---|\n")
		for _, bc := range list {
			b.toolRows(&full, bc)
			best := b.best(bc)
			wall, _ := b.ratios(bc, toolImsprep, best)
			_, cpu := b.ratios(bc, toolImsprep, toolQemu)
			fmt.Fprintf(&short, "| %s | **%.2f** (%s) | %.2f | %d MiB |\n", bc.name, wall, best, cpu, b.numbers(bc, toolImsprep).rss>>20)
		}
	}
	if list := bySection[sectionDurable]; len(list) > 0 {
		fmt.Fprintf(&full, "\n### Converting, until the file is on the disk\n\nimsprep's way unless `--no-sync` is given; %d rounds.\n\n", b.rounds(list))
		full.WriteString("| disk | tool | wall s | CPU s | peak MiB | read MiB | ratio wall | ratio CPU |\n|---|---|---|---|---|---|---|---|\n")
		for _, bc := range list {
			b.toolRows(&full, bc)
		}
	}
	if list := bySection[sectionWhole]; len(list) > 0 {
		fmt.Fprintf(&full, "\n### The whole job\n\nFrom the disk (%s) to object and bitmap in the local cloud; %d rounds. Today's way converts to a RAW file with qemu-img, reads it\n"+
			"once for the bitmap (all of it: who makes one today doesn't ask for holes), and uploads both. The server runs on the same processors, its time\n"+
			"isn't counted, and its buckets are in memory if there is room.\n\n", list[0].name, b.rounds(list))
		full.WriteString("| way | wall s | CPU s | sent MiB | written to disk MiB | ratio wall | ratio CPU | ZVHD2: ratio wall | ratio CPU |\n|---|---|---|---|---|---|---|---|---|\n")
		short.WriteString("\nThe whole job, disk to object and bitmap in the local cloud, against qemu-img, a pass for the bitmap, and an upload: ")
		for _, bc := range list {
			against := func(tool string) string {
				s3cmd, _ := b.ratios(bc, tool, toolS3cmd)
				rclone, _ := b.ratios(bc, tool, toolRclone)
				return fmt.Sprintf("**%.2f** of the time with s3cmd and **%.2f** of that with rclone", s3cmd, rclone)
			}
			for _, t := range bc.tools {
				n := b.numbers(bc, t.name)
				ratios := " |  |  | "
				if t.name == toolS3cmd || t.name == toolRclone {
					wall, cpu := b.ratios(bc, toolZVHD2, t.name)
					ratios = fmt.Sprintf("%s | %.2f | %.2f", b.ratioCells(bc, t.name), wall, cpu)
				}
				fmt.Fprintf(&full, "| %s | %.1f | %.1f | %d | %d | %s |\n", t.name, n.wall, n.cpu, n.sent>>20, n.write>>20, ratios)
			}
			raw, packed, s3cmd := b.numbers(bc, toolImsprep), b.numbers(bc, toolZVHD2), b.numbers(bc, toolS3cmd)
			fmt.Fprintf(&short, "as RAW\n%s, as ZVHD2 of level 1 %s; %d (RAW)\nand %d (ZVHD2) instead of %d MiB sent, %d instead of %d MiB written to disk.\n", against(toolImsprep), against(toolZVHD2),
				raw.sent>>20, packed.sent>>20, s3cmd.sent>>20, raw.write>>20, s3cmd.write>>20)
		}
	}
	if list := bySection[sectionZVHD2]; len(list) > 0 {
		fmt.Fprintf(&full, "\n### Writing ZVHD2\n\nOnly data, no holes, against zstd's own program on all processors; %d rounds. ZVHD2 has independent blocks of 2 MiB.\n\n", b.rounds(list))
		full.WriteString("| level | tool | wall s | CPU s | stored ÷ data | ratio wall | ratio CPU |\n|---|---|---|---|---|---|---|\n")
		for _, bc := range list {
			fi, err := os.Stat(bc.warm[0])
			if err != nil {
				continue
			}
			for _, t := range bc.tools {
				n := b.numbers(bc, t.name)
				fmt.Fprintf(&full, "| %s | %s | %.2f | %.2f | %.3f | %s |\n", strings.TrimPrefix(bc.name, "level "), t.name, n.wall, n.cpu,
					float64(n.n)/float64(fi.Size()), b.ratioCells(bc, t.name))
			}
		}
	}
	if list := bySection[sectionScale]; len(list) > 0 {
		fmt.Fprintf(&full, "\n### Virtual size\n\nQCOW2 with %s to ZVHD2 of level 1; %d rounds.\n\n", list[0].name, b.rounds(list))
		full.WriteString("| virtual size | wall s | CPU s | peak MiB | wall ÷ 64 GiB's | CPU ÷ 64 GiB's |\n|---|---|---|---|---|---|\n")
		for _, bc := range list {
			for _, t := range bc.tools {
				n := b.numbers(bc, t.name)
				wall, cpu := b.ratios(bc, t.name, bc.tools[0].name)
				fmt.Fprintf(&full, "| %s | %.2f | %.2f | %d | %.2f | %.2f |\n", t.name, n.wall, n.cpu, n.rss>>20, wall, cpu)
			}
		}
	}
	if list := bySection[sectionMap]; len(list) > 0 {
		fmt.Fprintf(&full, "\n### Extents of a QCOW2 of 1 TiB\n\n%d rounds.\n\n", b.rounds(list))
		full.WriteString("| tool | wall s | CPU s | peak MiB | imsprep's wall ÷ qemu-img's |\n|---|---|---|---|---|\n")
		for _, bc := range list {
			for i, t := range bc.tools {
				n := b.numbers(bc, t.name)
				ratio := ""
				if i%2 == 0 && i+1 < len(bc.tools) {
					wall, _ := b.ratios(bc, t.name, bc.tools[i+1].name)
					ratio = fmt.Sprintf("%.2f", wall)
				}
				fmt.Fprintf(&full, "| %s | %.2f | %.2f | %d | %s |\n", t.name, n.wall, n.cpu, n.rss>>20, ratio)
			}
		}
	}
	return report{full.String(), short.String()}
}

// mostRounds returns how many rounds some of the cases have.
func (b *bench) mostRounds(list []*benchCase) int {
	n := 0
	for _, bc := range list {
		n = max(n, b.rounds([]*benchCase{bc}))
	}
	return n
}

// rounds returns how many rounds all of the cases have.
func (b *bench) rounds(list []*benchCase) int {
	n := b.runs
	for _, bc := range list {
		for _, t := range bc.tools {
			n = min(n, b.numbers(bc, t.name).rounds)
		}
	}
	return n
}

func (b *bench) toolRows(w *strings.Builder, bc *benchCase) {
	for _, t := range bc.tools {
		n := b.numbers(bc, t.name)
		fmt.Fprintf(w, "| %s | %s | %.2f | %.2f | %d | %d | %s |\n", bc.name, t.name, n.wall, n.cpu, n.rss>>20, n.read>>20, b.ratioCells(bc, t.name))
	}
}

// ratioCells are the first tool's times through another's.
func (b *bench) ratioCells(bc *benchCase, tool string) string {
	if tool == bc.tools[0].name {
		return " | "
	}
	wall, cpu := b.ratios(bc, bc.tools[0].name, tool)
	return fmt.Sprintf("%.2f | %.2f", wall, cpu)
}

// machine describes what this runs on.
func machine() string {
	model, memory := "an unknown processor", ""
	text, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(text)) {
		if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "model name" {
			model = strings.TrimSpace(value)
			break
		}
	}
	text, _ = os.ReadFile("/proc/meminfo")
	var kib int64
	if _, err := fmt.Sscanf(string(text), "MemTotal: %d", &kib); err == nil {
		memory = fmt.Sprintf(", %d GiB of memory", (kib+1<<19)>>20)
	}
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return fmt.Sprintf("%d × %s%s, Linux %s", runtime.NumCPU(), model, memory, strings.TrimSpace(string(kernel)))
}

// versions are those of imsprep and its peers.
func versions(imsprep string) []string {
	var found []string
	for _, argv := range [][]string{{imsprep, "version"}, {"qemu-img", "--version"}, {"nbdcopy", "--version"}, {"nbdkit", "--version"},
		{"zstd", "--version"}, {"s3cmd", "--version"}, {"rclone", "version"}} {
		out, err := exec.Command(argv[0], argv[1:]...).Output()
		first, _, _ := strings.Cut(string(bytes.TrimSpace(out)), "\n")
		if err != nil {
			first = argv[0] + ": missing"
		}
		first = strings.NewReplacer("*", "", "Zstandard CLI (64-bit)", "zstd", "version ", "", " Command Line Interface", "", ", by Yann Collet", "").Replace(first)
		if name, _, _ := strings.Cut(first, " (Debian"); name != "" {
			first = name
		}
		found = append(found, strings.TrimSpace(first))
	}
	return append(found, "go-qcow2reader "+libraryVersion(), runtime.Version())
}

const (
	blockBegin = "<!-- bench:begin -->\n"
	blockEnd   = "<!-- bench:end -->"
)

// replaceBlock puts text between the marks of a document.
func replaceBlock(path, text string) error {
	doc, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	head, rest, ok := strings.Cut(string(doc), blockBegin)
	_, tail, end := strings.Cut(rest, blockEnd)
	if !ok || !end {
		return fmt.Errorf("%s has no lines %q and %q", path, strings.TrimSpace(blockBegin), blockEnd)
	}
	return os.WriteFile(path, []byte(head+blockBegin+text+blockEnd+tail), 0o644)
}
