package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
)

// ServerConfig returns the TLS settings of a memory node: TLS 1.3, and of every
// client a certificate of the authority. The certificate is read anew for each
// connection, so that a new one takes effect; the authority is not.
func ServerConfig(f Files) (*tls.Config, error) {
	pair, pool, err := f.load(Server)
	if err != nil {
		return nil, fmt.Errorf("pki: server: %w", err)
	}
	return &tls.Config{
		MinVersion:     tls.VersionTLS13,
		ClientAuth:     tls.RequireAndVerifyClientCert,
		ClientCAs:      pool,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return pair.fresh() },
		// A resumed session would not look at the client's certificate again.
		SessionTicketsDisabled: true,
	}, nil
}

// ClientConfig returns the TLS settings of a compute node: TLS 1.3, and of the
// memory node a certificate of the authority. ServerName is the caller's to set.
// The certificate is read anew for each connection.
func ClientConfig(f Files) (*tls.Config, error) {
	pair, pool, err := f.load(Client)
	if err != nil {
		return nil, fmt.Errorf("pki: client: %w", err)
	}
	return &tls.Config{
		MinVersion:           tls.VersionTLS13,
		RootCAs:              pool,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return pair.fresh() },
	}, nil
}

// load reads all files and makes sure that the certificate is one for use, and of
// the authority, which a peer would find out less clearly.
func (f Files) load(use Use) (*keyPair, *x509.CertPool, error) {
	text, err := readFile(f.CA)
	if err != nil {
		return nil, nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, nil, fmt.Errorf("%s: %w: no certificate of an authority", f.CA, ErrInvalid)
	}
	pair := &keyPair{files: f}
	cert, err := pair.fresh()
	if err != nil {
		return nil, nil, err
	}
	between := x509.NewCertPool()
	for _, der := range cert.Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", f.Cert, err)
		}
		between.AddCert(c)
	}
	_, err = cert.Leaf.Verify(x509.VerifyOptions{Roots: pool, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsage(use)}})
	if invalid := (x509.CertificateInvalidError{}); errors.As(err, &invalid) && invalid.Reason == x509.IncompatibleUsage {
		return nil, nil, fmt.Errorf("%s: %w: not a certificate for a %s", f.Cert, ErrInvalid, use)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", f.Cert, err)
	}
	return pair, pool, nil
}

// A keyPair is a certificate with its key in files that may be replaced.
type keyPair struct {
	files Files

	mu   sync.Mutex
	last *tls.Certificate // what was read last
}

// fresh reads the pair. While it cannot be read, as in the middle of being
// replaced, the one before goes on.
func (p *keyPair) fresh() (*tls.Certificate, error) {
	cert, err := p.files.pair()
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		p.last = cert
	}
	if p.last == nil {
		return nil, err
	}
	return p.last, nil
}

func (f Files) pair() (*tls.Certificate, error) {
	if err := checkKeyMode(f.Key); err != nil {
		return nil, err
	}
	cert, err := readFile(f.Cert)
	if err != nil {
		return nil, err
	}
	key, err := readFile(f.Key)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("%s, %s: %w", f.Cert, f.Key, err)
	}
	return &pair, nil
}
