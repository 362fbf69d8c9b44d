package main

import (
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/rpmemfs/rpmemfs/rdmacache/verbs"
)

// A persistence is a verbs.Persistence as people write it.
type persistence verbs.Persistence

// persistenceWords are the words, in the order of the constants.
var persistenceWords = []string{"auto", "adr-no-ddio", "eadr", "cpu"}

func (p *persistence) String() string { return persistenceWords[*p] }

func (p *persistence) Type() string { return "METHOD" }

func (p *persistence) Set(s string) error {
	i := slices.Index(persistenceWords, s)
	if i < 0 {
		return fmt.Errorf("%q is none of %s", s, strings.Join(persistenceWords, ", "))
	}
	*p = persistence(i)
	return nil
}

// listenRDMA listens for RDMA connections where --rdma says; nil without.
func (o *serveOptions) listenRDMA() (verbs.Listener, error) {
	if o.rdma == "" {
		return nil, nil
	}
	host, port, err := net.SplitHostPort(o.rdma)
	if err != nil {
		return nil, fmt.Errorf("--rdma %s: want HOST:PORT, or \":\" for every device: %w", o.rdma, err)
	}
	if port == "" {
		port = fmt.Sprint(defaultRDMA)
	}
	nic, err := verbs.Open()
	if err != nil {
		return nil, fmt.Errorf("--rdma %s: %w", o.rdma, err)
	}
	l, err := nic.Listen(net.JoinHostPort(host, port))
	if err != nil {
		return nil, fmt.Errorf("--rdma %s: %w", o.rdma, err)
	}
	return l, nil
}
