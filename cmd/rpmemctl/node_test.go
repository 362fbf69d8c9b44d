package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/rpmemfs/rpmemfs/internal/loopback"
	"github.com/rpmemfs/rpmemfs/internal/pki"
	"github.com/rpmemfs/rpmemfs/internal/rpcerr"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/node/nodepb"
)

// fakeNode answers operators.
type fakeNode struct {
	nodepb.UnimplementedNodeServer

	mu     sync.Mutex
	shares []*nodepb.Share
}

func (f *fakeNode) Shares(context.Context, *nodepb.SharesRequest) (*nodepb.SharesResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &nodepb.SharesResponse{Shares: f.shares}, nil
}

func (f *fakeNode) find(name string) (*nodepb.Share, error) {
	for _, s := range f.shares {
		if s.GetName() == name {
			return s, nil
		}
	}
	return nil, rpcerr.Pools.Encode(fmt.Errorf("%q: %w", name, namespace.ErrNotExist))
}

func (f *fakeNode) MakeShare(_ context.Context, r *nodepb.MakeShareRequest) (*nodepb.MakeShareResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, err := f.find(r.GetName()); err == nil {
		return nil, rpcerr.Pools.Encode(fmt.Errorf("make share %q: %w", r.GetName(), namespace.ErrExist))
	}
	f.shares = append(f.shares, &nodepb.Share{Name: r.GetName(), Ino: 7, QuotaBytes: r.GetQuotaBytes()})
	return &nodepb.MakeShareResponse{Ino: 7}, nil
}

func (f *fakeNode) SetQuota(_ context.Context, r *nodepb.SetQuotaRequest) (*nodepb.SetQuotaResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, err := f.find(r.GetName())
	if err != nil {
		return nil, err
	}
	s.QuotaBytes = r.GetQuotaBytes()
	return &nodepb.SetQuotaResponse{}, nil
}

func (f *fakeNode) EndSession(_ context.Context, r *nodepb.EndSessionRequest) (*nodepb.EndSessionResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, err := f.find(r.GetShare())
	if err != nil {
		return nil, err
	}
	if len(r.GetSession()) > 0 && !bytes.Equal(r.GetSession(), s.GetLease().GetSession()) {
		return nil, status.Error(codes.FailedPrecondition, "another session has it")
	}
	s.Lease = nil
	return &nodepb.EndSessionResponse{}, nil
}

// start serves f on loopback and returns its address.
func (f *fakeNode) start(t *testing.T, opts ...grpc.ServerOption) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(opts...)
	nodepb.RegisterNodeServer(g, f)
	done := make(chan error, 1)
	go func() { done <- g.Serve(l) }()
	t.Cleanup(func() {
		g.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return "tcp://" + l.Addr().String()
}

func TestShareAndLease(t *testing.T) {
	session := bytes.Repeat([]byte{0xab}, nodepb.SessionSize)
	f := &fakeNode{shares: []*nodepb.Share{
		{Name: nodepb.WholePool, Ino: 1, UsedBytes: 5 << 20},
		{Name: "web\x1b7", Ino: 3, UsedBytes: 4 << 20, Lease: &nodepb.Lease{
			Session: session, Holder: "web7:/mnt", Identity: "web7", Generation: 9, Granted: 1e18, Lease: 10e9, KeepAliveAge: 123e6,
		}},
	}}
	node := f.start(t)
	ask := func(args ...string) string {
		t.Helper()
		return mustCtl(t, append(args, "--node", node, "--insecure")...)
	}
	refused := func(code int, say string, args ...string) {
		t.Helper()
		got, _, errOut := ctl(t, append(args, "--node", node, "--insecure")...)
		if got != code || !strings.Contains(errOut, say) {
			t.Errorf("%q: got exit code %d, %s; want %d and %q", args, got, errOut, code, say)
		}
	}
	ask("share", "make", "new", "--quota", "1GiB")
	refused(exitFailed, `make share "new": file exists`, "share", "make", "new")
	refused(exitFailed, "share quota new SIZE", "share", "make", "new")
	if out := ask("share", "ls"); !strings.Contains(out, "0 B      1.0 GiB  -      free") || !strings.Contains(out, `"web\x1b7"`) || !strings.Contains(out, "web7:/mnt (web7)") {
		t.Errorf("share ls: got\n%s", out)
	}
	ask("share", "quota", "new", "0")
	if out := ask("share", "ls", "--json"); strings.Contains(out, "quota_bytes") || !strings.Contains(out, `"keep_alive_age": 123000000`) {
		t.Errorf("share ls --json: got\n%s", out)
	}
	refused(exitFailed, `"none": no such file`, "share", "quota", "none", "1G")
	refused(exitUsage, "quota much", "share", "quota", "new", "much")
	refused(exitUsage, "whole pool", "share", "quota", "/", "1G")

	hexSession := strings.Repeat("ab", nodepb.SessionSize)
	if out := ask("lease", "ls"); !strings.Contains(out, hexSession) || !strings.Contains(out, "123ms ago") {
		t.Errorf("lease ls: got\n%s", out)
	}
	refused(exitUsage, "32 hexadecimal", "lease", "end", "web\x1b7", "--session", "abc")
	refused(exitFailed, "another session", "lease", "end", "web\x1b7", "--session", strings.Repeat("cd", nodepb.SessionSize))
	ask("lease", "end", "web\x1b7", "--session", hexSession)
	if out := ask("lease", "ls"); out != "no leases\n" {
		t.Errorf("lease ls: got %s", out)
	}
}

// Who asks is known by certificates, and what is wrong with them is told.
func TestNodeTLS(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	if err := pki.Init(dir); err != nil {
		t.Fatal(err)
	}
	for _, r := range []pki.Request{{Name: "node1", Hosts: []string{"127.0.0.1"}}, {Name: "web7"}, {Name: "op", All: true}} {
		if _, err := pki.Issue(dir, r); err != nil {
			t.Fatal(err)
		}
	}
	files, err := pki.Find(dir, pki.Server)
	if err != nil {
		t.Fatal(err)
	}
	config, err := pki.ServerConfig(files)
	if err != nil {
		t.Fatal(err)
	}
	operatorsOnly := func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
		p, _ := peer.FromContext(ctx)
		id, err := pki.IdentityOf(p.AuthInfo.(credentials.TLSInfo).State.PeerCertificates[0])
		if err != nil || !id.All {
			return nil, status.Errorf(codes.PermissionDenied, "%s may not", id.Name)
		}
		return handle(ctx, req)
	}
	node := (&fakeNode{}).start(t, grpc.Creds(credentials.NewTLS(config)), grpc.UnaryInterceptor(operatorsOnly))
	if out := mustCtl(t, "share", "ls", "--node", node, "--pki", dir+"/op"); !strings.HasPrefix(out, "SHARE") {
		t.Errorf("operator: got %s", out)
	}
	for _, tt := range []struct {
		args []string
		say  string
	}{
		{[]string{"--node", node, "--pki", dir + "/web7"}, "Only operators may"},
		{[]string{"--node", node, "--pki", dir + "/node1"}, "not a certificate for a client"},
		{[]string{"--node", node, "--pki", dir}, "several client certificates"},
		{[]string{"--node", node, "--insecure"}, "does not answer"},
		{[]string{"--node", node}, "TLS needs certificates"},
		{[]string{"--node", node + "/share", "--insecure"}, "name the node only"},
		{[]string{"--node", "node", "--insecure"}, "no address of a memory node"},
		{[]string{"--node", "tcp://" + loopback.Host() + ":7470", "--insecure"}, "does not answer"},
		{nil, `"node" not set`},
	} {
		if code, _, errOut := ctl(t, append([]string{"share", "ls", "--timeout", "5s"}, tt.args...)...); code == exitOK || !strings.Contains(errOut, tt.say) {
			t.Errorf("%q: got exit code %d, %s; want %q", tt.args, code, errOut, tt.say)
		}
	}
}
