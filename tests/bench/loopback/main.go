// Loopback mounts a directory through go-fuse's own loopback file system, with
// passthrough switched off: every WRITE reaches this process. It is what the
// bench compares rpmemfs with: the same library and the same messages, without
// epochs, checksums and atomicity.
//
//	loopback ORIGINAL MOUNTPOINT
//
// It prints "mounted" when ready, and at its end how many WRITEs it served.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// A node is a loopback node whose files count their WRITEs.
type node struct {
	*fs.LoopbackNode
	writes *atomic.Int64
}

var (
	_ fs.NodeOpener      = (*node)(nil)
	_ fs.NodeCreater     = (*node)(nil)
	_ fs.NodeWrapChilder = (*node)(nil)
)

// A file is a loopback file that is never passed through.
type file struct {
	*fs.LoopbackFile
	writes *atomic.Int64
}

var _ fs.FileWriter = (*file)(nil)

// PassthroughFd refuses: a file that is passed through would bypass the process.
func (f *file) PassthroughFd() (int, bool) { return 0, false }

func (f *file) Write(ctx context.Context, p []byte, off int64) (uint32, syscall.Errno) {
	f.writes.Add(1)
	return f.LoopbackFile.Write(ctx, p, off)
}

// WrapChild makes the children of a node count as it does.
func (n *node) WrapChild(_ context.Context, child fs.InodeEmbedder) fs.InodeEmbedder {
	if l, ok := child.(*fs.LoopbackNode); ok {
		return &node{l, n.writes}
	}
	return child
}

func (n *node) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	fh, fuseFlags, errno := n.LoopbackNode.Open(ctx, flags)
	return n.count(fh), fuseFlags, errno
}

func (n *node) Create(ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	inode, fh, fuseFlags, errno := n.LoopbackNode.Create(ctx, name, flags, mode, out)
	return inode, n.count(fh), fuseFlags, errno
}

func (n *node) count(fh fs.FileHandle) fs.FileHandle {
	if lf, ok := fh.(*fs.LoopbackFile); ok {
		return &file{lf, n.writes}
	}
	return fh
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "loopback:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("usage: loopback ORIGINAL MOUNTPOINT")
	}
	var st syscall.Stat_t
	if err := syscall.Stat(args[0], &st); err != nil {
		return err
	}
	var writes atomic.Int64
	root := &fs.LoopbackRoot{Path: args[0], Dev: st.Dev}
	top := &node{&fs.LoopbackNode{RootData: root}, &writes}
	root.RootNode = top
	server, err := fs.Mount(args[1], top, &fs.Options{MountOptions: fuse.MountOptions{
		FsName: args[0], Name: "loopback", DirectMount: os.Getuid() == 0,
		// As large and as many requests as rpmemfs takes.
		MaxWrite: 1 << 20, MaxBackground: 65535, CongestionThreshold: 65535,
		DisabledCapabilities: fuse.CAP_PASSTHROUGH,
	}})
	if err != nil {
		return err
	}
	fmt.Println("mounted", args[1])
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		for range signals {
			if err := server.Unmount(); err != nil {
				fmt.Fprintln(os.Stderr, "loopback: unmount:", err)
			}
		}
	}()
	server.Wait()
	fmt.Println("writes", writes.Load())
	return nil
}
