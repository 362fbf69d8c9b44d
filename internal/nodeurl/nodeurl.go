// Package nodeurl reads the addresses of memory nodes, as people write them:
//
//	tcp://HOST[:PORT][/SHARE]
//	rdma://HOST[:PORT][/SHARE]
//
// HOST is a name or an address (an IPv6 one in brackets). PORT is that of the
// control API, 7470 if it is left out; that goes over TCP in any case, and the scheme is
// about the bytes of files. SHARE is a share of the pool; without one the
// memory node decides by who asks.
package nodeurl

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
)

// DefaultPort is the port of a memory node's control API.
const DefaultPort = 7470

const (
	schemeTCP  = "tcp"
	schemeRDMA = "rdma"
)

// A URL names a memory node, and what to mount of it.
type URL struct {
	RDMA  bool   // bytes of files go over RDMA
	Host  string // without brackets
	Port  uint16
	Share string // empty: the memory node decides
}

// Is reports whether a source of a mount is meant as the address of a memory node,
// right or wrong.
func Is(s string) bool { return strings.Contains(s, "://") }

// Parse reads an address.
func Parse(s string) (URL, error) {
	u, err := parse(s)
	if err != nil {
		return URL{}, fmt.Errorf("%q is no address of a memory node such as tcp://host:%d/share: %w", s, DefaultPort, err)
	}
	return u, nil
}

func parse(s string) (URL, error) {
	u, err := url.Parse(s)
	if err != nil {
		return URL{}, errors.Unwrap(err)
	}
	switch {
	case u.Scheme != schemeTCP && u.Scheme != schemeRDMA:
		return URL{}, fmt.Errorf("the scheme is %q, neither tcp nor rdma", u.Scheme)
	case u.Hostname() == "":
		return URL{}, errors.New("no host")
	case u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return URL{}, errors.New("only host, port and share")
	}
	n := URL{RDMA: u.Scheme == schemeRDMA, Host: u.Hostname(), Port: DefaultPort, Share: strings.Trim(u.Path, "/")}
	if strings.Contains(n.Share, "/") {
		return URL{}, errors.New("a share is a top-level directory of the pool")
	}
	if p := u.Port(); p != "" {
		port, err := strconv.ParseUint(p, 10, 16)
		if err != nil || port == 0 {
			return URL{}, fmt.Errorf("port %q", p)
		}
		n.Port = uint16(port)
	}
	return n, nil
}

// Address is host and port, to dial.
func (u URL) Address() string { return net.JoinHostPort(u.Host, strconv.Itoa(int(u.Port))) }

// String is the address as Parse reads it, with the port.
func (u URL) String() string {
	s := schemeTCP
	if u.RDMA {
		s = schemeRDMA
	}
	s += "://" + u.Address()
	if u.Share != "" {
		s += (&url.URL{Path: "/" + u.Share}).EscapedPath()
	}
	return s
}
