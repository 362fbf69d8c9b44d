package node

import (
	"crypto/tls"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rpmemfs/rpmemfs/control/controlpb"
	"github.com/rpmemfs/rpmemfs/internal/pki"
	"github.com/rpmemfs/rpmemfs/node/nodepb"
)

// What a certificate says is what its owner may.
func TestIdentities(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	if err := pki.Init(dir); err != nil {
		t.Fatal(err)
	}
	for _, r := range []pki.Request{
		{Name: "node", Hosts: []string{"node.example"}},
		{Name: "boss", All: true},
		{Name: "alpha", Shares: []pki.Grant{{Share: "common"}, {Share: "beta", ReadOnly: true}}},
		{Name: "beta"},
	} {
		if _, err := pki.Issue(dir, r); err != nil {
			t.Fatal(err)
		}
	}
	files := func(name string, use pki.Use) pki.Files {
		f, err := pki.Find(filepath.Join(dir, name), use)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	serverTLS, err := pki.ServerConfig(files("node", pki.Server))
	if err != nil {
		t.Fatal(err)
	}
	n := newNode(t, Config{TLS: serverTLS})
	as := func(name string) nodepb.NodeClient {
		cfg, err := pki.ClientConfig(files(name, pki.Client))
		if err != nil {
			t.Fatal(err)
		}
		cfg.ServerName = "node.example"
		return n.client(cfg)
	}
	boss, alpha, beta := as("boss"), as("alpha"), as("beta")
	if _, err := boss.MakeShare(t.Context(), &nodepb.MakeShareRequest{Name: "common", QuotaBytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}

	const ok = controlpb.Reason_REASON_UNSPECIFIED
	const denied = controlpb.Reason_REASON_PERMISSION
	for _, tt := range []struct {
		what   string
		caller nodepb.NodeClient
		req    *nodepb.OpenRequest
		share  string
		want   controlpb.Reason
	}{
		{"its own, which is not there yet", beta, &nodepb.OpenRequest{}, "", controlpb.Reason_REASON_NOT_EXIST},
		{"its own", beta, &nodepb.OpenRequest{Create: true}, "beta", ok},
		{"another's to read", alpha, &nodepb.OpenRequest{Share: "beta", ReadOnly: true}, "beta", ok},
		{"another's to write", alpha, &nodepb.OpenRequest{Share: "beta"}, "", denied},
		{"another's by theft", alpha, &nodepb.OpenRequest{Share: "beta", Steal: true}, "", denied},
		{"another's to read, by theft", alpha, &nodepb.OpenRequest{Share: "beta", ReadOnly: true, Steal: true}, "", denied},
		{"a common one", alpha, &nodepb.OpenRequest{Share: "common"}, "common", ok},
		{"a common one, not granted", beta, &nodepb.OpenRequest{Share: "common", ReadOnly: true}, "", denied},
		{"one that is not there", beta, &nodepb.OpenRequest{Share: "new", Create: true}, "", denied},
		{"the whole pool", alpha, &nodepb.OpenRequest{Share: "/", ReadOnly: true}, "", denied},
		{"an operator's own", boss, &nodepb.OpenRequest{}, "/", ok},
		{"any, by an operator", boss, &nodepb.OpenRequest{Share: "new", Create: true}, "new", ok},
	} {
		s, err := n.tryOpen(tt.caller, tt.req)
		if got := reasonOf(err); got != tt.want || (err == nil) != (tt.want == ok) {
			t.Errorf("%s: got %v, want %v", tt.what, err, tt.want)
		}
		if err != nil {
			continue
		}
		if s.GetShare() != tt.share || s.GetReadOnly() != tt.req.GetReadOnly() {
			t.Errorf("%s: got %v", tt.what, s.OpenResponse)
		}
		if _, err := tt.caller.Close(t.Context(), &nodepb.CloseRequest{Session: s.GetSession(), Token: s.GetToken()}); err != nil {
			t.Fatal(err)
		}
	}

	// What operators do is theirs.
	if _, err := n.tryOpen(alpha, &nodepb.OpenRequest{Share: "common", Holder: "here"}); err != nil {
		t.Fatal(err)
	}
	_, err = alpha.Shares(t.Context(), &nodepb.SharesRequest{})
	wantReason(t, "shares", err, denied)
	_, err = alpha.MakeShare(t.Context(), &nodepb.MakeShareRequest{Name: "alpha"})
	wantReason(t, "make share", err, denied)
	_, err = alpha.SetQuota(t.Context(), &nodepb.SetQuotaRequest{Name: "common"})
	wantReason(t, "set quota", err, denied)
	_, err = alpha.EndSession(t.Context(), &nodepb.EndSessionRequest{Share: "common"})
	wantReason(t, "end session", err, denied)

	if _, err := boss.SetQuota(t.Context(), &nodepb.SetQuotaRequest{Name: "common", QuotaBytes: 2 << 20}); err != nil {
		t.Error(err)
	}
	list, err := boss.Shares(t.Context(), &nodepb.SharesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var common *nodepb.Share
	for _, share := range list.GetShares() {
		if share.GetName() == "common" {
			common = share
		}
	}
	if list.GetShares()[0].GetName() != nodepb.WholePool || common.GetQuotaBytes() != 2<<20 ||
		common.GetLease().GetHolder() != "here" || common.GetLease().GetIdentity() != "alpha" {
		t.Errorf("shares: got %v", list)
	}
	if _, err := boss.EndSession(t.Context(), &nodepb.EndSessionRequest{Share: "common"}); err != nil {
		t.Error(err)
	}
	if _, err := n.tryOpen(alpha, &nodepb.OpenRequest{Share: "common"}); err != nil {
		t.Errorf("after the session was ended: %v", err)
	}
}

// Nobody gets in without a certificate, by either listener.
func TestNoCertificate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	if err := pki.Init(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := pki.Issue(dir, pki.Request{Name: "node", Hosts: []string{"node.example"}}); err != nil {
		t.Fatal(err)
	}
	f, err := pki.Find(filepath.Join(dir, "node"), pki.Server)
	if err != nil {
		t.Fatal(err)
	}
	serverTLS, err := pki.ServerConfig(f)
	if err != nil {
		t.Fatal(err)
	}
	n := newNode(t, Config{TLS: serverTLS})
	for _, addr := range []string{n.addr, n.data} {
		// With TLS 1.3 the client learns of its rejection at the first read.
		c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "certificate required") {
			t.Errorf("%s: got %v", addr, err)
		}
		_ = c.Close() // it was rejected
	}
}
