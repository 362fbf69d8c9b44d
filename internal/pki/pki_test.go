package pki_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/rpmemfs/rpmemfs/internal/pki"
)

var _ = flag.Uint64("seed", 0, "seed of the random tests; there are none here")

// newAuthority makes an authority with a server and a client.
func newAuthority(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "pki")
	if err := pki.Init(dir); err != nil {
		t.Fatal(err)
	}
	issue(t, dir, pki.Request{Name: "node", Hosts: []string{"node.example", "127.0.0.1"}})
	issue(t, dir, pki.Request{Name: "compute"})
	return dir
}

func issue(t *testing.T, dir string, r pki.Request) *x509.Certificate {
	t.Helper()
	cert, err := pki.Issue(dir, r)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func configs(t *testing.T, server, client string) (s, c *tls.Config) {
	t.Helper()
	sf, err := pki.Find(server, pki.Server)
	if err != nil {
		t.Fatal(err)
	}
	if s, err = pki.ServerConfig(sf); err != nil {
		t.Fatal(err)
	}
	cf, err := pki.Find(client, pki.Client)
	if err != nil {
		t.Fatal(err)
	}
	if c, err = pki.ClientConfig(cf); err != nil {
		t.Fatal(err)
	}
	c.ServerName = "node.example"
	return s, c
}

// tcpPair returns the ends of a connection. Unlike net.Pipe it takes what nobody reads.
func tcpPair(t *testing.T) (server, client net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // it has done its work
	if client, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return server, client
}

// shake makes a connection and returns what each end says of it, and the client's
// identity.
func shake(t *testing.T, server, client *tls.Config) (id pki.Identity, serverErr, clientErr error) {
	t.Helper()
	a, b := tcpPair(t)
	deadline := time.Now().Add(10 * time.Second)
	_, _ = a.SetDeadline(deadline), b.SetDeadline(deadline)
	done := make(chan error, 1)
	go func() {
		c := tls.Client(b, client)
		err := c.Handshake()
		if err == nil {
			// In TLS 1.3 the client learns only here that it was refused.
			_, err = c.Read(make([]byte, 1))
		}
		_ = b.Close()
		done <- err
	}()
	s := tls.Server(a, server)
	if serverErr = s.Handshake(); serverErr == nil {
		state := s.ConnectionState()
		if state.Version != tls.VersionTLS13 || state.DidResume || len(state.PeerCertificates) == 0 {
			t.Errorf("got version %x, resumed %v, %d certificates; want TLS 1.3, anew, and the client's", state.Version, state.DidResume, len(state.PeerCertificates))
		} else if id, serverErr = pki.IdentityOf(state.PeerCertificates[0]); serverErr == nil {
			_, serverErr = s.Write([]byte{1})
		}
	}
	_ = a.Close()
	return id, serverErr, <-done
}

func TestHandshake(t *testing.T) {
	dir, other := newAuthority(t), newAuthority(t)
	later := func() time.Time { return time.Now().Add(2 * 365 * 24 * time.Hour) }
	for _, tt := range []struct {
		name                   string
		change                 func(s, c *tls.Config)
		serverSays, clientSays string // empty: no error
	}{
		{name: "good", change: func(_, _ *tls.Config) {}},
		{name: "by address", change: func(_, c *tls.Config) { c.ServerName = "127.0.0.1" }},
		{"another host", func(_, c *tls.Config) { c.ServerName = "other.example" }, "bad certificate", "not other.example"},
		{"no client certificate", func(_, c *tls.Config) { c.GetClientCertificate = nil }, "didn't provide a certificate", "certificate required"},
		{"client of another authority", func(_, c *tls.Config) {
			_, foreign := configs(t, other, other)
			c.GetClientCertificate = foreign.GetClientCertificate
		}, "unknown authority", "unknown certificate authority"},
		{"server of another authority", func(_, c *tls.Config) {
			_, foreign := configs(t, other, other)
			c.RootCAs = foreign.RootCAs
		}, "bad certificate", "unknown authority"},
		{"expired client", func(s, _ *tls.Config) { s.Time = later }, "expired", "expired"},
		{"expired server", func(_, c *tls.Config) { c.Time = later }, "bad certificate", "expired"},
		{"a client as server", func(s, c *tls.Config) {
			s.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.GetClientCertificate(nil) }
		}, "bad certificate", "not valid for any names"},
		{"a server as client", func(s, c *tls.Config) {
			c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return s.GetCertificate(nil) }
		}, "incompatible key usage", "bad certificate"},
		{"TLS 1.2", func(_, c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 }, "unsupported versions", "protocol version"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, c := configs(t, dir, dir)
			tt.change(s, c)
			_, serverErr, clientErr := shake(t, s, c)
			expect(t, "server", serverErr, tt.serverSays)
			expect(t, "client", clientErr, tt.clientSays)
		})
	}
}

// A client that comes again is looked at again.
func TestNoResumption(t *testing.T) {
	dir := newAuthority(t)
	s, c := configs(t, dir, dir)
	c.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	for range 2 {
		_, serverErr, clientErr := shake(t, s, c)
		expect(t, "server", serverErr, "")
		expect(t, "client", clientErr, "")
	}
}

func expect(t *testing.T, who string, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("%s: got %v, want no error", who, err)
	case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
		t.Errorf("%s: got %v, want %q in it", who, err, want)
	}
}

// What a request grants is what the other end of a connection reads.
func TestIdentity(t *testing.T) {
	dir := newAuthority(t)
	for _, tt := range []struct {
		request pki.Request
		want    pki.Identity
	}{
		{pki.Request{Name: "a"}, pki.Identity{Name: "a"}},
		{pki.Request{Name: "b.example-1_x", All: true}, pki.Identity{Name: "b.example-1_x", All: true}},
		{
			pki.Request{Name: "c", Shares: []pki.Grant{{Share: "x"}, {Share: "y", ReadOnly: true}, {Share: "*"}, {Share: "ä b?ro#%", ReadOnly: true}}},
			pki.Identity{Name: "c", Shares: []pki.Grant{{Share: "x"}, {Share: "y", ReadOnly: true}, {Share: "*"}, {Share: "ä b?ro#%", ReadOnly: true}}},
		},
	} {
		issue(t, dir, tt.request)
		s, c := configs(t, dir+"/node", filepath.Join(dir, tt.request.Name))
		got, serverErr, clientErr := shake(t, s, c)
		if serverErr != nil || clientErr != nil || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%+v: got %+v, %v, %v; want %+v", tt.request, got, serverErr, clientErr, tt.want)
		}
	}
}

// A grant that is not understood grants nothing at all.
func TestStrangeIdentity(t *testing.T) {
	for _, uri := range []string{
		"rpmemfs:share/", "rpmemfs:share/a?rw", "rpmemfs:share/*?ro", "rpmemfs:share/a/b", "rpmemfs:share/a%2Fb", "rpmemfs:share/%00",
		"rpmemfs:share/..", "rpmemfs:pool/a", "rpmemfs://share/a", "rpmemfs:share/a#b", "RPMEMFS:other", "rpmemfs:share/%zz", "rpmemfs:share/" + strings.Repeat("a", 256),
	} {
		u, err := url.Parse(uri)
		if err != nil {
			t.Fatalf("%s: %v", uri, err)
		}
		if id, err := pki.IdentityOf(cert("x", u)); !errors.Is(err, pki.ErrInvalid) {
			t.Errorf("%s: got %+v, %v; want ErrInvalid", uri, id, err)
		}
	}
	for _, name := range []string{"", ".", "..", "a/b", "a b", "-x", "ä", strings.Repeat("a", 65)} {
		if id, err := pki.IdentityOf(cert(name)); !errors.Is(err, pki.ErrInvalid) {
			t.Errorf("common name %q: got %+v, %v; want ErrInvalid", name, id, err)
		}
	}
	other := &url.URL{Scheme: "spiffe", Host: "example", Path: "/x"}
	if id, err := pki.IdentityOf(cert("x", other)); err != nil || id.All || id.Shares != nil {
		t.Errorf("%v: got %+v, %v; want an identity without grants", other, id, err)
	}
}

func cert(name string, uris ...*url.URL) *x509.Certificate {
	c := &x509.Certificate{URIs: uris}
	c.Subject.CommonName = name
	return c
}

func TestRefusedRequests(t *testing.T) {
	dir := newAuthority(t)
	for _, r := range []pki.Request{
		{Name: ""},
		{Name: "ca"},
		{Name: "../x"},
		{Name: "x", Hosts: []string{"a b"}},
		{Name: "x", Hosts: []string{""}},
		{Name: "x", Hosts: []string{"*.example"}},
		{Name: "x", Hosts: []string{"h"}, Shares: []pki.Grant{{Share: "s"}}},
		{Name: "x", Hosts: []string{"h"}, All: true},
		{Name: "x", Shares: []pki.Grant{{Share: ""}}},
		{Name: "x", Shares: []pki.Grant{{Share: "a/b"}}},
		{Name: "x", Valid: -time.Second},
	} {
		if _, err := pki.Issue(dir, r); !errors.Is(err, pki.ErrInvalid) {
			t.Errorf("%+v: got %v, want ErrInvalid", r, err)
		}
	}
	if _, err := pki.Issue(t.TempDir(), pki.Request{Name: "x"}); !errors.Is(err, pki.ErrNone) {
		t.Errorf("no authority: got %v, want ErrNone", err)
	}
}

// Nothing is replaced that was not to be, and a running end takes a new
// certificate.
func TestReplace(t *testing.T) {
	dir := newAuthority(t)
	if err := pki.Init(dir); !errors.Is(err, pki.ErrExist) {
		t.Errorf("second authority: got %v, want ErrExist", err)
	}
	before, err := os.ReadFile(filepath.Join(dir, "compute.key"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pki.Issue(dir, pki.Request{Name: "compute", All: true}); !errors.Is(err, pki.ErrExist) {
		t.Errorf("second certificate: got %v, want ErrExist", err)
	}
	if after, err := os.ReadFile(filepath.Join(dir, "compute.key")); err != nil || string(after) != string(before) {
		t.Errorf("the key was replaced: %v", err)
	}
	halfway := filepath.Join(dir, "node.key")
	if err := os.Remove(halfway); err != nil {
		t.Fatal(err)
	}
	if _, err := pki.Issue(dir, pki.Request{Name: "node", Hosts: []string{"node.example"}}); !errors.Is(err, pki.ErrExist) {
		t.Errorf("certificate without key: got %v, want ErrExist", err)
	}
	if _, err := os.Stat(halfway); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a key beside another's certificate: %v", err)
	}
	issue(t, dir, pki.Request{Name: "node", Hosts: []string{"node.example"}, Replace: true})

	s, c := configs(t, dir, dir)
	issue(t, dir, pki.Request{Name: "compute", All: true, Replace: true})
	if id, serverErr, clientErr := shake(t, s, c); serverErr != nil || clientErr != nil || !id.All {
		t.Errorf("replaced: got %+v, %v, %v; want the new grant", id, serverErr, clientErr)
	}
	// A pair in the middle of being replaced does not match.
	if err := os.WriteFile(filepath.Join(dir, "compute.key"), before, 0o600); err != nil {
		t.Fatal(err)
	}
	if id, serverErr, clientErr := shake(t, s, c); serverErr != nil || clientErr != nil || !id.All {
		t.Errorf("half replaced: got %+v, %v, %v; want the last whole pair", id, serverErr, clientErr)
	}
}

func TestModes(t *testing.T) {
	dir := newAuthority(t)
	for name, want := range map[string]os.FileMode{"": 0o700, "ca.key": 0o600, "node.key": 0o600, "ca.crt": 0o644, "node.crt": 0o644} {
		fi, err := os.Stat(filepath.Join(dir, name))
		if err != nil || fi.Mode().Perm() != want {
			t.Errorf("%q: got %v, %v; want mode %o", name, fi.Mode(), err, want)
		}
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".*")); err != nil || left != nil {
		t.Errorf("left behind: %q, %v", left, err)
	}
	key := filepath.Join(dir, "node.key")
	files, err := pki.Find(dir, pki.Server)
	if err != nil {
		t.Fatal(err)
	}
	for mode, private := range map[os.FileMode]bool{0o400: true, 0o640: true, 0o644: false, 0o660: false, 0o601: false, 0o602: false} {
		if err := os.Chmod(key, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := pki.ServerConfig(files); errors.Is(err, pki.ErrKeyMode) == private {
			t.Errorf("key of mode %o: got %v", mode, err)
		}
	}
	if err := os.Chmod(filepath.Join(dir, "ca.key"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := pki.Issue(dir, pki.Request{Name: "x"}); !errors.Is(err, pki.ErrKeyMode) {
		t.Errorf("readable authority: got %v, want ErrKeyMode", err)
	}
}

// A directory stands for the only certificate of a use.
func TestFind(t *testing.T) {
	dir := newAuthority(t)
	issue(t, dir, pki.Request{Name: "second"})
	if f, err := pki.Find(dir, pki.Server); err != nil || f.Cert != filepath.Join(dir, "node.crt") || f.CA != filepath.Join(dir, "ca.crt") {
		t.Errorf("server: got %+v, %v", f, err)
	}
	if f, err := pki.Find(dir, pki.Client); !errors.Is(err, pki.ErrNone) || !strings.Contains(err.Error(), "compute, second") {
		t.Errorf("two clients: got %+v, %v; want both named", f, err)
	}
	if f, err := pki.Find(dir+"/second", pki.Client); err != nil || f.Key != filepath.Join(dir, "second.key") {
		t.Errorf("by name: got %+v, %v", f, err)
	}
	if err := os.Remove(filepath.Join(dir, "second.key")); err != nil {
		t.Fatal(err)
	}
	if f, err := pki.Find(dir, pki.Client); err != nil || f.Cert != filepath.Join(dir, "compute.crt") {
		t.Errorf("one with a key: got %+v, %v", f, err)
	}
	if _, err := pki.Find(t.TempDir(), pki.Client); !errors.Is(err, pki.ErrNone) {
		t.Errorf("empty: got %v, want ErrNone", err)
	}
	missing := filepath.Join(dir, "third")
	if _, err := pki.Find(missing, pki.Client); !errors.Is(err, pki.ErrNone) || !strings.Contains(err.Error(), missing+" is no directory") {
		t.Errorf("missing: got %v, want ErrNone and what is missing", err)
	}
}

// Files that cannot work are refused before anybody connects.
func TestRefusedFiles(t *testing.T) {
	dir, other := newAuthority(t), newAuthority(t)
	node, err := pki.Find(dir, pki.Server)
	if err != nil {
		t.Fatal(err)
	}
	compute, err := pki.Find(dir, pki.Client)
	if err != nil {
		t.Fatal(err)
	}
	ended := issue(t, dir, pki.Request{Name: "short", Valid: time.Nanosecond})
	for _, tt := range []struct {
		files pki.Files
		want  string
	}{
		{compute, "not a certificate for a server"},
		{pki.Files{Cert: node.Cert, Key: compute.Key, CA: node.CA}, "private key does not match"},
		{pki.Files{Cert: node.Cert, Key: node.Key, CA: filepath.Join(other, "ca.crt")}, "unknown authority"},
		{pki.Files{Cert: node.Cert, Key: node.Key, CA: node.Key}, "no certificate of an authority"},
		{pki.Files{Cert: node.Key, Key: node.Key, CA: node.CA}, "failed to find"},
		{pki.Files{Cert: dir + "/none", Key: node.Key, CA: node.CA}, "no such file"},
		{pki.Files{Cert: node.Cert, Key: dir + "/none", CA: node.CA}, "no such file"},
	} {
		_, err := pki.ServerConfig(tt.files)
		expect(t, "server", err, tt.want)
	}
	if _, err := pki.ClientConfig(node); err == nil || !strings.Contains(err.Error(), "not a certificate for a client") {
		t.Errorf("a server's as a client's: got %v", err)
	}
	short, err := pki.Find(dir+"/short", pki.Client)
	if err != nil {
		t.Fatal(err)
	}
	_, err = pki.ClientConfig(short)
	expect(t, "ended at "+ended.NotAfter.String(), err, "expired")
}

// The numbers of certificates are random, and none outlives the authority.
func TestCertificates(t *testing.T) {
	dir := newAuthority(t)
	ca, err := pki.ReadCertificate(filepath.Join(dir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	if !ca.IsCA || ca.MaxPathLen != 0 || !ca.MaxPathLenZero {
		t.Errorf("authority: got %v, path length %d; want one that signs no authorities", ca.IsCA, ca.MaxPathLen)
	}
	long := issue(t, dir, pki.Request{Name: "long", Valid: 100 * 365 * 24 * time.Hour})
	if !long.NotAfter.Equal(ca.NotAfter) {
		t.Errorf("got an end at %v, want the authority's, %v", long.NotAfter, ca.NotAfter)
	}
	year := issue(t, dir, pki.Request{Name: "year"})
	if d := time.Until(year.NotAfter); d > 366*24*time.Hour || d < 364*24*time.Hour || year.IsCA {
		t.Errorf("got a certificate for %v, authority %v; want a year and none", d, year.IsCA)
	}
	if long.SerialNumber.BitLen() < 64 || long.SerialNumber.Cmp(year.SerialNumber) == 0 {
		t.Errorf("serial numbers %x and %x", long.SerialNumber, year.SerialNumber)
	}
}

func TestOptions(t *testing.T) {
	dir := newAuthority(t)
	files, err := pki.Find(dir, pki.Server)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		options pki.Options
		tls     bool
		says    string // an error; empty: none
	}{
		{options: pki.Options{Insecure: true}},
		{options: pki.Options{Pki: dir}, tls: true},
		{options: pki.Options{Files: files}, tls: true},
		{pki.Options{}, false, "TLS needs certificates"},
		{pki.Options{Pki: dir, Insecure: true}, false, "give one of"},
		{pki.Options{Pki: dir, Files: files}, false, "give one of"},
		{pki.Options{Files: files, Insecure: true}, false, "give one of"},
		{pki.Options{Files: pki.Files{Cert: files.Cert, CA: files.CA}}, false, "go together"},
		{pki.Options{Pki: dir + "/compute"}, false, "not a certificate for a server"},
		{pki.Options{Pki: t.TempDir()}, false, "no server certificate"},
	} {
		got, err := tt.options.ServerConfig()
		expect(t, fmt.Sprintf("%+v", tt.options), err, tt.says)
		if (got != nil) != tt.tls {
			t.Errorf("%+v: got %v, want TLS %v", tt.options, got, tt.tls)
		}
	}
	if c, err := (&pki.Options{Pki: dir}).ClientConfig(); err != nil || c.RootCAs == nil {
		t.Errorf("client: got %v, %v", c, err)
	}
}
