package pki

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Files are the paths of what one end of a connection needs, in PEM.
type Files struct {
	Cert string // its own certificate, and those between it and the authority
	Key  string // of Cert
	CA   string // of the authorities that the other end's certificate may be of
}

func filesOf(dir, name string) Files {
	base := filepath.Join(dir, name)
	return Files{Cert: base + certSuffix, Key: base + keySuffix, CA: filepath.Join(dir, caName+certSuffix)}
}

// A Use is what a certificate is for.
type Use x509.ExtKeyUsage

const (
	Server = Use(x509.ExtKeyUsageServerAuth)
	Client = Use(x509.ExtKeyUsageClientAuth)
)

func (u Use) String() string {
	if u == Server {
		return "server"
	}
	return "client"
}

// Find returns the files that path stands for: DIR/NAME those of NAME, and DIR
// those of the only certificate in it for this use that has a key. Errors match
// ErrNone where there is none or more than one.
func Find(path string, use Use) (Files, error) {
	fi, err := os.Stat(path)
	switch {
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return Files{}, err
	case err != nil || !fi.IsDir():
		f := filesOf(filepath.Dir(path), strings.TrimSuffix(filepath.Base(path), certSuffix))
		if _, err := os.Stat(f.Cert); errors.Is(err, os.ErrNotExist) {
			return Files{}, fmt.Errorf("%w: %s is no directory, and there is no %s", ErrNone, path, f.Cert)
		}
		return f, nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return Files{}, err
	}
	var names []string
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), certSuffix)
		if !ok || name == caName {
			continue
		}
		f := filesOf(path, name)
		if _, err := os.Stat(f.Key); err != nil {
			continue
		}
		if cert, err := ReadCertificate(f.Cert); err == nil && slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsage(use)) {
			names = append(names, name)
		}
	}
	switch len(names) {
	case 0:
		return Files{}, fmt.Errorf("%w: %s has no %s certificate with a key", ErrNone, path, use)
	case 1:
		return filesOf(path, names[0]), nil
	}
	return Files{}, fmt.Errorf("%w: %s has several %s certificates, %s: name one as %s", ErrNone, path, use,
		strings.Join(names, ", "), filepath.Join(path, names[0]))
}

const (
	certSuffix = ".crt"
	keySuffix  = ".key"
	certBlock  = "CERTIFICATE"
	keyBlock   = "PRIVATE KEY"
	// maxPEM bounds what is read: a chain and a key are a few thousand bytes.
	maxPEM = 1 << 20
)

// ReadCertificate reads the first certificate of a file.
func ReadCertificate(path string) (*x509.Certificate, error) {
	der, err := readPEM(path, certBlock)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return cert, nil
}

// readKey reads a private key that nobody else may read.
func readKey(path string) (crypto.Signer, error) {
	if err := checkKeyMode(path); err != nil {
		return nil, err
	}
	der, err := readPEM(path, keyBlock)
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%s: %w: a %T cannot sign", path, ErrInvalid, key)
	}
	return signer, nil
}

// checkKeyMode refuses a key that is not private. Its group may read it: daemons
// have groups.
func checkKeyMode(path string) error {
	fi, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: %w", ErrNone, err)
	}
	if err != nil {
		return err
	}
	if mode := fi.Mode().Perm(); mode&0o027 != 0 {
		return fmt.Errorf("%w: %s has mode %04o: chmod 600 it", ErrKeyMode, path, mode)
	}
	return nil
}

func readPEM(path, kind string) ([]byte, error) {
	text, err := readFile(path)
	if err != nil {
		return nil, err
	}
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return nil, fmt.Errorf("%s: %w: no PEM block of a %s", path, ErrInvalid, strings.ToLower(kind))
		}
		if block.Type == kind {
			return block.Bytes, nil
		}
	}
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", ErrNone, err)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close() // read only
	text, err := io.ReadAll(io.LimitReader(f, maxPEM+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxPEM {
		return nil, fmt.Errorf("%s: %w: larger than %d bytes", path, ErrInvalid, maxPEM)
	}
	return text, nil
}

// writePEM writes a file whole or not at all, and durably.
func writePEM(path, kind string, der []byte, mode os.FileMode, replace bool) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".new-*") // 0600
	if err != nil {
		return err
	}
	temp := f.Name()
	defer func() {
		if rmErr := os.Remove(temp); !errors.Is(rmErr, os.ErrNotExist) {
			err = errors.Join(err, rmErr)
		}
	}()
	err = pem.Encode(f, &pem.Block{Type: kind, Bytes: der})
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	if replace {
		err = os.Rename(temp, path)
	} else if err = os.Link(temp, path); errors.Is(err, os.ErrExist) {
		err = fmt.Errorf("%s: %w", filepath.Base(path), ErrExist)
	}
	if err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
