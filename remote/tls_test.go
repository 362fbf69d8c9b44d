package remote_test

import (
	"context"
	"crypto/tls"
	"testing"
	"time"

	"github.com/rpmemfs/rpmemfs/internal/pki"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/region"
	"github.com/rpmemfs/rpmemfs/remote"
)

// certificates makes an authority with a memory node and clients.
func certificates(t *testing.T, requests ...pki.Request) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := pki.Init(dir); err != nil {
		t.Fatal(err)
	}
	for _, r := range append(requests, pki.Request{Name: "node", Hosts: []string{host}}) {
		if _, err := pki.Issue(dir, r); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func clientTLS(t *testing.T, dir, name string) *tls.Config {
	t.Helper()
	files, err := pki.Find(dir+"/"+name, pki.Client)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := pki.ClientConfig(files)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// Over TLS a client gets the share of its name, calls and data, and nothing else.
// Whom the memory node does not know, and a memory node that the client does not
// know, is an error at once.
func TestTLS(t *testing.T) {
	dir := certificates(t, pki.Request{Name: "alice"}, pki.Request{Name: "root", All: true})
	files, err := pki.Find(dir+"/node", pki.Server)
	if err != nil {
		t.Fatal(err)
	}
	n := &memoryNode{TB: t, lease: long}
	if n.tls, err = pki.ServerConfig(files); err != nil {
		t.Fatal(err)
	}
	n.create()

	p := n.open(remote.Config{TLS: clientTLS(t, dir, "alice"), Create: true})
	if p.Share() != "alice" {
		t.Errorf("alice has %q", p.Share())
	}
	f := mustCreate(t, p, "f", fileInode())
	g, err := p.Grant(ctx, region.ID(f.Ino), 10, 10)
	if err != nil {
		t.Fatal(err)
	}
	page := make([]byte, region.PageSize)
	if err := p.Conn().Write(ctx, page, g.Runs[0].Start.Offset()); err != nil {
		t.Fatal(err)
	}
	if err := p.Conn().Flush(ctx); err != nil {
		t.Fatal(err)
	}
	n.restart()
	if _, err := p.Lookup(ctx, namespace.Root, "f"); err != nil {
		t.Error(err)
	}

	_, err = remote.Dial(ctx, remote.Config{Address: n.control, TLS: clientTLS(t, dir, "alice"), Share: "bob", Create: true})
	wantErr(t, "a share of others", err, remote.ErrPermission)

	stranger := certificates(t, pki.Request{Name: "alice"})
	for what, cfg := range map[string]*tls.Config{
		"a certificate of another authority": clientTLS(t, stranger, "alice"),
		"no TLS":                             nil,
	} {
		dial, cancel := context.WithTimeout(ctx, patience)
		begun := time.Now()
		_, err := remote.Dial(dial, remote.Config{Address: n.control, TLS: cfg, Wait: time.Hour})
		cancel()
		wantErr(t, what, err, remote.ErrUnavailable)
		if took := time.Since(begun); took > 8*time.Second {
			t.Errorf("%s: it took %v", what, took)
		}
	}
}
