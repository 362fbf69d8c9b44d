package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/internal/pki"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
	"github.com/rpmemfs/rpmemfs/remote"
)

// A memoryNode is a running `rpmemfs serve` on a new pool, over the loopback.
type memoryNode struct {
	*server
	b       *bench
	address string // of its API
	pki     string // directory of certificates; empty: no TLS
}

// memoryNode starts one. Its flags are args.
func (b *bench) memoryNode(certificates string, args ...string) (*memoryNode, error) {
	args = append([]string{"serve", "--log-level=error", "--listen=127.0.0.1:0", "--data=127.0.0.1:0"}, args...)
	if certificates == "" {
		args = append(args, "--insecure")
	} else {
		args = append(args, "--pki", certificates)
	}
	s, err := launch("", b.rpmemfs, append(args, filepath.Join(b.dir, "pool"))...)
	if err != nil {
		return nil, err
	}
	said, err := s.await("serving")
	if err != nil {
		return nil, err
	}
	_, rest, _ := strings.Cut(said, " on ")
	address, _, ok := strings.Cut(rest, ",")
	if !ok {
		return nil, fmt.Errorf("rpmemfs serve says no address: %q", said)
	}
	return &memoryNode{s, b, address, certificates}, nil
}

// own mounts a pool of its own, which no memory node serves, beside those of one.
func (b *bench) own(size string) (*server, error) {
	mnt := filepath.Join(b.dir, "near")
	return serve(mnt, b.rpmemfs, "mount", "--log-level=error", "--pool", filepath.Join(b.dir, "own"), "--size", size, mnt)
}

// stop unmounts what no program uses any more.
func stop(mounts ...*server) (err error) {
	for _, m := range mounts {
		_, stopErr := m.stop()
		err = errors.Join(err, stopErr)
	}
	return err
}

// end stops the memory node and removes the pools.
func (n *memoryNode) end() error {
	if _, err := n.stop(); err != nil {
		return err
	}
	return n.b.discard()
}

// launch begins to mount a share on directory name of the bench.
func (n *memoryNode) launch(name, share string) (*server, error) {
	mnt := filepath.Join(n.b.dir, name)
	return launch(mnt, n.b.rpmemfs, "mount", "--log-level=error", "--insecure", "tcp://"+n.address+"/"+share, mnt)
}

// mount mounts a share on directory name of the bench.
func (n *memoryNode) mount(name, share string) (*server, error) {
	s, err := n.launch(name, share)
	if err == nil {
		_, err = s.await("mounted")
	}
	return s, err
}

// certificates makes an authority, and certificates of a memory node on the loopback
// and of a client, and returns their directory.
func (b *bench) certificates() (string, error) {
	dir := filepath.Join(b.dir, "pki")
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	if err := pki.Init(dir); err != nil {
		return "", err
	}
	for _, r := range []pki.Request{{Name: "node", Hosts: []string{"127.0.0.1"}}, {Name: "client", All: true}} {
		if _, err := pki.Issue(dir, r); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// clientTLS returns a client's settings with certificates from a directory, nil
// without.
func clientTLS(certificates string) (*tls.Config, error) {
	o := pki.Options{Pki: certificates, Insecure: certificates == ""}
	return o.ClientConfig()
}

// A session is an open share with room for the bytes that are pushed, without a mount.
type session struct {
	pool  *remote.Pool
	conn  rdmacache.Conn
	start int64 // of size bytes in the pool
}

// session opens a share and gets size bytes of slots in it, in one run.
func (n *memoryNode) session(share string, size int64) (*session, error) {
	security, err := clientTLS(n.pki)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	pool, err := remote.Dial(ctx, remote.Config{Address: n.address, TLS: security, Share: share, Create: true, Holder: "bench"})
	if err != nil {
		return nil, err
	}
	file, err := pool.Create(ctx, namespace.Root, "file", namespace.Inode{Mode: unix.S_IFREG | 0o600})
	if err != nil {
		return nil, err
	}
	slots := uint64(size / region.PageSize)
	grant, err := pool.Grant(ctx, region.ID(file.Ino), slots, slots)
	if err != nil {
		return nil, err
	}
	if len(grant.Runs) != 1 {
		return nil, fmt.Errorf("an empty pool grants %d slots in %d runs", slots, len(grant.Runs))
	}
	return &session{pool, pool.Conn(), grant.Runs[0].Start.Offset()}, nil
}

func (s *session) close() error { return s.pool.Close() }

// A bare connection is one to a peer (tests/bench/peer): size bytes go there, answer
// bytes come back.
type bare struct {
	peer *server
	net.Conn
	size, answer int
}

// bare starts a peer, which copies what it gets to file if that is not empty, and
// connects to it.
func (b *bench) bare(certificates string, size, answer int, file string) (*bare, error) {
	args := []string{"-pki", certificates, strconv.Itoa(size), strconv.Itoa(answer)}
	if file != "" {
		args = append(args, file)
	}
	peer, err := launch("", b.peer, args...)
	if err != nil {
		return nil, err
	}
	address, err := peer.await("serving")
	if err != nil {
		return nil, err
	}
	security, err := clientTLS(certificates)
	if err != nil {
		return nil, err
	}
	c := &bare{peer: peer, size: size, answer: answer}
	if security == nil {
		c.Conn, err = net.Dial("tcp", address)
	} else {
		c.Conn, err = tls.Dial("tcp", address, security)
	}
	return c, err
}

func (c *bare) close() {
	_ = c.Close() // the peer is killed anyway
	c.peer.kill()
}
