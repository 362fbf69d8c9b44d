package pki

import (
	"crypto/x509"
	"fmt"
	"net/url"
	"strings"
)

// An Identity is what a client's certificate says about its owner.
type Identity struct {
	Name   string  // the common name, which also names a share of its own
	Shares []Grant // further shares that it may open
	All    bool    // every share, the whole pool, and what operators may do
}

// A Grant lets its owner open a share.
type Grant struct {
	Share    string
	ReadOnly bool
}

// A grant is a URI among a certificate's alternative names: rpmemfs:share/NAME,
// rpmemfs:share/NAME?ro, or rpmemfs:share/* for all. Names are percent-encoded.
const (
	uriScheme = "rpmemfs"
	uriPrefix = "share/"
	uriAll    = "*"
	uriRO     = "ro"
)

// maxShareName is what a directory entry can hold.
const maxShareName = 255

// IdentityOf reads a verified client certificate. A certificate with a grant that
// is not understood has no identity: it may be meant to be narrower than what was
// understood. Errors match ErrInvalid.
func IdentityOf(cert *x509.Certificate) (Identity, error) {
	id := Identity{Name: cert.Subject.CommonName}
	if !validName(id.Name) {
		return Identity{}, fmt.Errorf("%w: common name %q", ErrInvalid, id.Name)
	}
	for _, u := range cert.URIs {
		if !strings.EqualFold(u.Scheme, uriScheme) {
			continue // somebody else's
		}
		g, err := parseGrant(u)
		if err != nil {
			return Identity{}, fmt.Errorf("certificate of %s: %w", id.Name, err)
		}
		if g.Share == "" {
			id.All = true
		} else {
			id.Shares = append(id.Shares, g)
		}
	}
	return id, nil
}

// parseGrant reads a grant; one of all shares has no name.
func parseGrant(u *url.URL) (Grant, error) {
	bad := fmt.Errorf("%w: grant %q", ErrInvalid, u)
	raw, ok := strings.CutPrefix(u.Opaque, uriPrefix)
	if !ok || u.Fragment != "" || u.RawQuery != "" && u.RawQuery != uriRO {
		return Grant{}, bad
	}
	ro := u.RawQuery == uriRO
	if raw == uriAll && !ro {
		return Grant{}, nil
	}
	name, err := url.PathUnescape(raw)
	if err != nil || raw == uriAll || !validShare(name) {
		return Grant{}, bad
	}
	return Grant{name, ro}, nil
}

// uri is the inverse of parseGrant.
func (g Grant) uri() (*url.URL, error) {
	u := &url.URL{Scheme: uriScheme, Opaque: uriPrefix + uriAll}
	if g.Share == "" {
		return u, nil
	}
	if !validShare(g.Share) {
		return nil, fmt.Errorf("%w: share %q", ErrInvalid, g.Share)
	}
	u.Opaque = uriPrefix + url.PathEscape(g.Share) // of * too
	if g.ReadOnly {
		u.RawQuery = uriRO
	}
	return u, nil
}

// validShare tells whether name can be a directory at the top of a pool.
func validShare(name string) bool {
	return name != "" && name != "." && name != ".." && len(name) <= maxShareName && !strings.ContainsAny(name, "/\x00")
}
