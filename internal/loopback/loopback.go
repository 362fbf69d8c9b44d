// Package loopback gives tests addresses of this machine that are theirs alone.
package loopback

import (
	"math/rand/v2"
	"net/netip"
)

// Host returns an address of this machine, of 127.0.0.0/8, that nobody else uses: any
// port is free there, and stays free while a server that used it is away. At 127.0.0.1
// it does not, because the connections that are made from there get ports, too.
func Host() string {
	part := func() byte { return byte(1 + rand.N(254)) }
	return netip.AddrFrom4([4]byte{127, part(), part(), part()}).String()
}
