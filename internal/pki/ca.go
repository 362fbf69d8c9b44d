package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// caName is the base name of the authority's files.
const caName = "ca"

const (
	caValidity      = 10 * 365 * 24 * time.Hour
	defaultValidity = 365 * 24 * time.Hour
	// backdate is by how much the clock of a peer may be slow.
	backdate = time.Hour
)

// Init makes an authority in dir, which it makes too if need be, closed to
// others. An authority that is there stays, with ErrExist.
func Init(dir string) error {
	if err := initAuthority(dir); err != nil {
		return fmt.Errorf("pki: make authority %s: %w", dir, err)
	}
	return nil
}

func initAuthority(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	now := time.Now()
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "rpmemfs authority of " + now.UTC().Format("2006-01-02")},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(caValidity),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true, // it signs nodes, no further authorities
		KeyUsage:              x509.KeyUsageCertSign,
	}
	return writePair(dir, caName, template, template, key, key, false)
}

// A Request says what Issue puts into a certificate.
type Request struct {
	Name string // of the node: 1 to 64 of a-z A-Z 0-9 . _ -

	// Hosts are the names and IP addresses that a memory node is reached by. With
	// them it is a server's certificate, without a client's.
	Hosts []string
	// Shares and All are what a client may open beside the share of its name.
	Shares []Grant
	All    bool

	Valid   time.Duration // from now; 0: a year. It ends with the authority at the latest
	Replace bool          // a certificate of this name that is there
}

// Issue makes NAME.crt and NAME.key with the authority in dir, and returns the
// certificate. Errors match ErrInvalid, ErrExist, ErrNone or ErrKeyMode where one
// of them is the reason. A crash leaves the pair that was there, or a pair that
// does not match and that Issue with Replace makes anew.
func Issue(dir string, r Request) (*x509.Certificate, error) {
	cert, err := issue(dir, r)
	if err != nil {
		return nil, fmt.Errorf("pki: issue %s: %w", r.Name, err)
	}
	return cert, nil
}

func issue(dir string, r Request) (*x509.Certificate, error) {
	now := time.Now()
	template, err := r.template(now)
	if err != nil {
		return nil, err
	}
	authority := filesOf(dir, caName)
	ca, err := ReadCertificate(authority.Cert)
	if err != nil {
		return nil, err
	}
	signer, err := readKey(authority.Key)
	if err != nil {
		return nil, err
	}
	if now.After(ca.NotAfter) {
		return nil, fmt.Errorf("%w: the authority ended at %v: make a new one", ErrInvalid, ca.NotAfter)
	}
	if template.NotAfter.After(ca.NotAfter) {
		template.NotAfter = ca.NotAfter
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	if err := writePair(dir, r.Name, template, ca, key, signer, r.Replace); err != nil {
		return nil, err
	}
	return ReadCertificate(filesOf(dir, r.Name).Cert)
}

// template checks the request and puts it into the form of a certificate.
func (r *Request) template(now time.Time) (*x509.Certificate, error) {
	if !validName(r.Name) || r.Name == caName {
		return nil, fmt.Errorf("%w: name %q: up to %d letters, digits, dots, dashes and underlines, and not %s", ErrInvalid, r.Name, maxName, caName)
	}
	if r.Valid < 0 {
		return nil, fmt.Errorf("%w: validity %v", ErrInvalid, r.Valid)
	}
	valid := r.Valid
	if valid == 0 {
		valid = defaultValidity
	}
	c := &x509.Certificate{
		Subject:               pkix.Name{CommonName: r.Name},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(valid),
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if len(r.Hosts) > 0 {
		if r.All || len(r.Shares) > 0 {
			return nil, fmt.Errorf("%w: a server's certificate opens no shares: issue another one for a client", ErrInvalid)
		}
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	}
	for _, h := range r.Hosts {
		if ip := net.ParseIP(h); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		} else if validHost(h) {
			c.DNSNames = append(c.DNSNames, h)
		} else {
			return nil, fmt.Errorf("%w: host %q is neither a name nor an IP address", ErrInvalid, h)
		}
	}
	var err error
	c.URIs, err = r.uris()
	return c, err
}

func (r *Request) uris() ([]*url.URL, error) {
	var uris []*url.URL
	if r.All {
		all, err := Grant{}.uri()
		if err != nil {
			return nil, err
		}
		uris = append(uris, all)
	}
	for _, g := range r.Shares {
		if g.Share == "" {
			return nil, fmt.Errorf("%w: a share without a name", ErrInvalid)
		}
		u, err := g.uri()
		if err != nil {
			return nil, err
		}
		uris = append(uris, u)
	}
	return uris, nil
}

// validHost admits what DNS names consist of; x509 matches nothing else.
func validHost(h string) bool {
	if h == "" || len(h) > 253 {
		return false
	}
	for label := range strings.SplitSeq(h, ".") {
		if label == "" || len(label) > 63 || strings.ContainsFunc(label, func(c rune) bool {
			return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_'
		}) {
			return false
		}
	}
	return true
}

// writePair signs a certificate of key and writes both. The key comes first: a
// certificate without its key would be of no use.
func writePair(dir, name string, template, parent *x509.Certificate, key *ecdsa.PrivateKey, signer crypto.Signer, replace bool) error {
	f := filesOf(dir, name)
	if !replace {
		for _, path := range []string{f.Cert, f.Key} {
			_, err := os.Lstat(path)
			if err == nil {
				return fmt.Errorf("%s: %w", filepath.Base(path), ErrExist)
			}
			if !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		return err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := writePEM(f.Key, keyBlock, secret, 0o600, replace); err != nil {
		return err
	}
	return writePEM(f.Cert, certBlock, der, 0o644, replace)
}
