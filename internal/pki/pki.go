// Package pki is a small certificate authority in a directory, and the TLS
// settings that memory nodes and compute nodes make of its files.
//
// The directory has the authority's ca.crt and ca.key, and for each certificate
// that it issued NAME.crt and NAME.key. Only ca.crt and a node's own pair go to
// that node. Keys are ECDSA on P-256; both ends of every connection show a
// certificate of the authority, over TLS 1.3.
//
// A certificate is for one use: a server's carries the host names that it may
// answer for, a client's says who a compute node is and which shares it may open
// (see Identity). A certificate cannot be revoked: it ends with its validity, or
// with the authority.
package pki

import "errors"

var (
	// ErrExist reports a file that would have been replaced.
	ErrExist = errors.New("pki: exists already")
	// ErrKeyMode reports a private key that others may read, or its group write.
	ErrKeyMode = errors.New("pki: the key is not private")
	// ErrNone reports a directory without the certificate that was asked for.
	ErrNone = errors.New("pki: no certificate")
	// ErrInvalid reports a name, a host or a grant that no certificate can carry,
	// or one in a certificate that says nothing known.
	ErrInvalid = errors.New("pki: invalid")
)

// maxName is what a common name can hold (RFC 5280, ub-common-name).
const maxName = 64

// validName tells whether name can be a certificate's: it also names files, and
// the share that is the compute node's own.
func validName(name string) bool {
	if name == "" || len(name) > maxName || name[0] == '.' || name[0] == '-' {
		return false
	}
	for _, c := range []byte(name) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '-', c == '_':
		default:
			return false
		}
	}
	return true
}
