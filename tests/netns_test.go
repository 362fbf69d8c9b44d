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
}

// A host is one namespace, seen from which the memory node is at hub.
type host struct {
	net   *network
	space string // name of the namespace
	cable string // the end of its cable in the namespace of the hub; empty for the hub
	addr  string // its own
	hub   string
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
		net:   n,
		space: fmt.Sprintf("%s-%d", n.prefix, n.spokes),
		cable: fmt.Sprintf("c%d", n.spokes),
		addr:  fmt.Sprintf("10.99.%d.2", n.spokes),
		hub:   fmt.Sprintf("10.99.%d.1", n.spokes),
	}
	hub := n.prefix + "-m"
	n.space(h.space)
	n.ip("-n", hub, "link", "add", h.cable, "type", "veth", "peer", "name", "eth0", "netns", h.space)
	n.ip("-n", hub, "addr", "add", h.hub+"/24", "dev", h.cable)
	n.ip("-n", h.space, "addr", "add", h.addr+"/24", "dev", "eth0")
	n.ip("-n", hub, "link", "set", h.cable, "up")
	n.ip("-n", h.space, "link", "set", "eth0", "up")
	return h
}

// cut takes the cable out, mend puts it back. Packets are lost in between; no
// connection is reset.
func (h *host) cut() {
	h.net.t.Helper()
	h.net.ip("-n", h.net.prefix+"-m", "link", "set", h.cable, "down")
}
func (h *host) mend() {
	h.net.t.Helper()
	h.net.ip("-n", h.net.prefix+"-m", "link", "set", h.cable, "up")
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
