// Command rpmemfs mounts a pool: files whose memory-mapped content outlives the
// program, the daemon and the machine, one whole epoch at a time.
//
// Called as mount.fuse.rpmemfs it is the helper that mount(8) and /etc/fstab use.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// Exit codes.
const (
	exitError = 1
	exitUsage = 2
)

func main() {
	if name := filepath.Base(os.Args[0]); name == helperName || name == "mount.rpmemfs" {
		os.Exit(mountHelper(os.Args[1:]))
	}
	root := &cobra.Command{
		Use:           "rpmemfs",
		Short:         "Files with failure-atomic mmap on a pool of persistent memory",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(mountCommand(), serveCommand(), versionCommand(), quiescerCommand())
	if err := root.ExecuteContext(context.Background()); err != nil {
		fail(err)
	}
}

// fail ends the process with an error that people can read.
func fail(err error) {
	fmt.Fprintln(os.Stderr, "rpmemfs:", err)
	tellParent(err)
	os.Exit(exitError)
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of this program",
		Args:  cobra.NoArgs,
		Run:   func(*cobra.Command, []string) { fmt.Println("rpmemfs", version()) },
	}
}

// version is what the build recorded of the module or of its working tree.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	revision, dirty := "devel", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision" && len(s.Value) >= 12:
			revision = s.Value[:12]
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "+changes"
		}
	}
	return revision + dirty
}
