package tests

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// A network is a star of network namespaces: the memory node in the middle, and
// compute nodes with a cable each. Processes run in them with the file systems of
// the machine.
type network struct {
	t      *testing.T
	prefix string // of the namespaces' names
	spokes int
	drops  bool // nftables can drop packets
}

// A host is one namespace, seen from which the memory node is at hub.
type host struct {
	net    *network
	number int    // of the cable
	space  string // name of the namespace
	cable  string // the end of its cable in the namespace of the hub; empty for the hub
	addr   string // its own
	hub    string
}

// networks counts, so that names differ in a run.
var networks int

// newNetwork makes a network and returns the host in its middle.
func newNetwork(t *testing.T) (*network, *host) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("not root: no network namespaces")
	}
	need(t, "ip", "nsenter")
	networks++
	n := &network{t: t, prefix: fmt.Sprintf("rpmemfs-%s-%d", shop.run, networks)}
	hub := &host{net: n, space: n.prefix + "-m", addr: "127.0.0.1", hub: "127.0.0.1"}
	n.space(hub.space)
	out, err := hub.nft("add table inet probe; delete table inet probe")
	if n.drops = err == nil; !n.drops {
		t.Logf("no nftables, so cables lose all packets or none: %v %s", err, out)
	}
	return n, hub
}

// space makes a namespace that the test deletes at its end.
func (n *network) space(name string) {
	n.t.Helper()
	n.ip("netns", "add", name)
	n.t.Cleanup(func() { n.ip("netns", "del", name) })
	n.ip("-n", name, "link", "set", "lo", "up")
}

// join adds a compute node.
func (n *network) join() *host {
	n.t.Helper()
	n.spokes++
	h := &host{
		net:    n,
		number: n.spokes,
		space:  fmt.Sprintf("%s-%d", n.prefix, n.spokes),
		cable:  fmt.Sprintf("c%d", n.spokes),
		addr:   fmt.Sprintf("10.99.%d.2", n.spokes),
		hub:    fmt.Sprintf("10.99.%d.1", n.spokes),
	}
	hub := n.prefix + "-m"
	n.space(h.space)
	n.ip("-n", hub, "link", "add", h.cable, "address", h.mac(1), "type", "veth",
		"peer", "name", "eth0", "address", h.mac(2), "netns", h.space)
	n.ip("-n", hub, "addr", "add", h.hub+"/24", "dev", h.cable)
	n.ip("-n", h.space, "addr", "add", h.addr+"/24", "dev", "eth0")
	n.ip("-n", hub, "link", "set", h.cable, "up")
	n.ip("-n", h.space, "link", "set", "eth0", "up")
	h.mend()
	return h
}

// mac is the Ethernet address of an end of the cable.
func (h *host) mac(end int) string { return fmt.Sprintf("02:00:00:00:%02x:%02x", h.number, end) }

// cut loses every packet of the cable from now on, mend none. Nothing is told to
// anyone: packets go to an Ethernet address that nobody has. (A link that is set down
// and up again is noticed by the kernel up to a second late.)
func (h *host) cut()  { h.net.t.Helper(); h.neighbours("02:ff:ff:ff:ff:ff", "02:ff:ff:ff:ff:ff") }
func (h *host) mend() { h.net.t.Helper(); h.neighbours(h.mac(2), h.mac(1)) }

// lose loses some packets in a hundred from now on, in each direction; loseNone none. The
// network can do so if drops.
func (h *host) lose(percent int) {
	h.net.t.Helper()
	rule := fmt.Sprintf("numgen random mod 100 < %d drop", percent)
	h.mustNFT("table inet loss { chain in { type filter hook input priority 0; " + rule + "; }; chain out { type filter hook output priority 0; " + rule + "; }; }")
}

func (h *host) loseNone() { h.net.t.Helper(); h.mustNFT("delete table inet loss") }

func (h *host) mustNFT(commands string) {
	h.net.t.Helper()
	if out, err := h.nft(commands); err != nil {
		h.net.t.Fatalf("nft %s: %v\n%s", commands, err, out)
	}
}

// nft gives commands to the namespace's packet filter.
func (h *host) nft(commands string) ([]byte, error) {
	cmd := h.command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(commands + "\n")
	return cmd.CombinedOutput()
}

// down takes the host's end of the cable down, and with it what the kernel knows of
// neighbours; up makes it as it was, after up to a second.
func (h *host) down() { h.net.t.Helper(); h.net.ip("-n", h.space, "link", "set", "eth0", "down") }

func (h *host) up() {
	h.net.t.Helper()
	h.net.ip("-n", h.space, "link", "set", "eth0", "up")
	h.mend()
}

func (h *host) neighbours(own, hub string) {
	h.net.t.Helper()
	h.net.ip("-n", h.net.prefix+"-m", "neigh", "replace", h.addr, "lladdr", own, "nud", "permanent", "dev", h.cable)
	h.net.ip("-n", h.space, "neigh", "replace", h.hub, "lladdr", hub, "nud", "permanent", "dev", "eth0")
}

// command runs a program in the namespace.
func (h *host) command(name string, args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"--net=/run/netns/" + h.space, "--", name}, args...)...)
}

func (n *network) ip(args ...string) {
	n.t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		n.t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}
