package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Certificates are made, shown and refused; what they can do is package pki's to
// test.
func TestPki(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	if out := mustCtl(t, "pki", "init", dir); !strings.Contains(out, "use:") || !strings.Contains(out, "authority") {
		t.Errorf("init: got %s", out)
	}
	mustCtl(t, "pki", "issue", dir, "node1", "--host", "node1.example", "--host", "10.0.0.1")
	mustCtl(t, "pki", "issue", dir, "web7", "--share", "common", "--share-ro", "models, old", "--days", "30")
	if out := mustCtl(t, "pki", "issue", dir, "op", "--all"); !strings.Contains(out, "every share") {
		t.Errorf("issue --all: got %s", out)
	}
	refused := func(code int, say string, args ...string) {
		t.Helper()
		got, _, errOut := ctl(t, args...)
		if got != code || !strings.Contains(errOut, say) {
			t.Errorf("%q: got exit code %d, %s; want %d and %q", args, got, errOut, code, say)
		}
	}
	refused(exitFailed, "exists already", "pki", "init", dir)
	refused(exitFailed, "--force", "pki", "issue", dir, "web7")
	refused(exitFailed, "pki init", "pki", "issue", t.TempDir(), "web7")
	refused(exitUsage, "--days 0", "pki", "issue", dir, "x", "--days", "0")
	refused(exitFailed, "no certificate", "pki", "show", t.TempDir())
	refused(exitUsage, "name what to do", "pki")
	mustCtl(t, "pki", "issue", dir, "op", "--all", "--force")

	var list certificatesJSON
	if err := json.Unmarshal([]byte(mustCtl(t, "pki", "show", dir, "--json")), &list); err != nil {
		t.Fatal(err)
	}
	uses := map[string]certificateJSON{}
	for _, c := range list.Certificates {
		uses[c.Use+" "+filepath.Base(c.Path)] = c
	}
	server, web, op := uses["server node1.crt"], uses["client web7.crt"], uses["client op.crt"]
	if len(list.Certificates) != 4 || uses["authority ca.crt"].Serial == "" ||
		!slices.Equal(server.Hosts, []string{"node1.example", "10.0.0.1"}) ||
		!slices.Equal(web.Shares, []string{"common"}) || !slices.Equal(web.SharesRO, []string{"models, old"}) || web.All || !op.All {
		t.Errorf("got %+v", list)
	}
	if out := mustCtl(t, "pki", "show", filepath.Join(dir, "web7.crt")); !strings.Contains(out, "web7, common, models, old (read-only)") {
		t.Errorf("show: got %s", out)
	}
	if err := os.WriteFile(filepath.Join(dir, "bad.crt"), []byte("bad"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, _ := ctl(t, "pki", "show", dir)
	if code != exitFailed || !strings.Contains(out, "bad.crt") || !strings.Contains(out, "no PEM block") || !strings.Contains(out, "web7.crt") {
		t.Errorf("show with a bad file: got exit code %d, %s", code, out)
	}
}
