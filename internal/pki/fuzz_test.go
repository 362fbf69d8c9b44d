package pki

import (
	"net/url"
	"testing"
)

// A grant that is understood can be written, and is then read as the same.
func FuzzGrant(f *testing.F) {
	for _, s := range []string{"rpmemfs:share/a", "rpmemfs:share/a%20b?ro", "rpmemfs:share/*", "rpmemfs:share/%2A", "rpmemfs:share/%zz", "rpmemfs:x#y", "RPMEMFS:share/%00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := url.Parse(s)
		if err != nil {
			return
		}
		g, err := parseGrant(u)
		if err != nil {
			return
		}
		if g.Share == "" && g.ReadOnly {
			t.Fatalf("%q grants everything to read", s)
		}
		written, err := g.uri()
		if err != nil {
			t.Fatalf("%q: %+v: %v", s, g, err)
		}
		// As it comes back from a certificate.
		if u, err = url.Parse(written.String()); err != nil {
			t.Fatalf("%q: %v", s, err)
		}
		if again, err := parseGrant(u); err != nil || again != g {
			t.Fatalf("%q: got %+v, %v after %+v", s, again, err, g)
		}
	})
}
