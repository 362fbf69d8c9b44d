package main

import (
	"bytes"
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/rpmemfs/rpmemfs/memnode"
	"github.com/rpmemfs/rpmemfs/node"
	"github.com/rpmemfs/rpmemfs/node/nodepb"
)

// liveNode serves a new pool on loopback and returns its address.
func liveNode(t *testing.T) string {
	t.Helper()
	pool, err := memnode.Open(newPool(t, 16<<20), memnode.Options{KeepOrphans: true})
	if err != nil {
		t.Fatal(err)
	}
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	control, data := listen(), listen()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- node.NewServer(node.Config{Pool: pool}).Run(ctx, control, data) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := pool.Close(); err != nil {
			t.Error(err)
		}
	})
	return control.Addr().String()
}

// The commands do to a memory node what they say.
func TestLiveNode(t *testing.T) {
	address := liveNode(t)
	ask := func(args ...string) string {
		t.Helper()
		return mustCtl(t, append(args, "--node", "tcp://"+address, "--insecure")...)
	}
	ask("share", "make", "web", "--quota", "1MiB")
	ask("share", "quota", "web", "2MiB", "--names", "3MiB")
	if out := ask("share", "ls"); !strings.Contains(out, "web") || !strings.Contains(out, "2.0 MiB  84 B of 3.0 MiB  free") {
		t.Errorf("share ls: got\n%s", out)
	}

	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() // nothing is under way
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	client := nodepb.NewNodeClient(conn)
	open, err := client.Open(ctx, &nodepb.OpenRequest{Share: "web", Holder: "host:/mnt", Nonce: bytes.Repeat([]byte{1}, nodepb.NonceSize)})
	if err != nil {
		t.Fatal(err)
	}
	if out := ask("lease", "ls"); !strings.Contains(out, "web") || !strings.Contains(out, "host:/mnt") {
		t.Errorf("lease ls: got\n%s", out)
	}
	if code, _, errOut := ctl(t, "lease", "end", "web", "--session", strings.Repeat("00", nodepb.SessionSize), "--node", "tcp://"+address, "--insecure"); code != exitFailed {
		t.Errorf("lease end of another session: got exit code %d, %s", code, errOut)
	}
	ask("lease", "end", "web")
	if out := ask("lease", "ls"); out != "no leases\n" {
		t.Errorf("lease ls: got\n%s", out)
	}
	if _, err := client.KeepAlive(ctx, &nodepb.KeepAliveRequest{Session: open.GetSession(), Token: open.GetToken()}); err == nil {
		t.Error("the session goes on after its lease was ended")
	}
}
