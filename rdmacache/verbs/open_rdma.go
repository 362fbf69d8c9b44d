//go:build linux && cgo && rdma

package verbs

// #cgo LDFLAGS: -libverbs -lrdmacm
// #include "shim.h"
import "C"

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"syscall"
)

const (
	// resolveTimeoutMS bounds the kernel's search for a peer's hardware address, and for the
	// route, in milliseconds each.
	resolveTimeoutMS = 2000
	// listenBacklog is how many connection requests may wait for Accept.
	listenBacklog = 128
)

// Open returns the RDMA devices of this host. The error matches ErrUnsupported if there are
// none, or the kernel's connection manager is missing.
func Open() (NIC, error) {
	n, err := eachDevice(func(*C.struct_ibv_device) {})
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, fmt.Errorf("%w: no device", ErrUnsupported)
	}
	l, err := newID()
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ENODEV) {
		return nil, fmt.Errorf("%w: no /dev/infiniband/rdma_cm (kernel module rdma_ucm): %w", ErrUnsupported, err)
	}
	if err != nil {
		return nil, fmt.Errorf("verbs: /dev/infiniband/rdma_cm: %w", err)
	}
	l.close()
	return &rdmaNIC{devices: make(map[*C.struct_ibv_context]*rdmaDevice)}, nil
}

// failedC makes an error of what a shim function returned.
func failedC(n C.int) error {
	if n < 0 {
		return syscall.Errno(-n)
	}
	return nil
}

// An rdmaNIC is rdma-core's NIC. Contexts of devices are librdmacm's; device keeps them open.
type rdmaNIC struct {
	mu      sync.Mutex // guards what follows
	devices map[*C.struct_ibv_context]*rdmaDevice
}

var _ NIC = (*rdmaNIC)(nil)

// device returns the one Device of a context, which an id has open.
//
// librdmacm closes a context with its last id, whatever else was made of it, and another
// one may get its address. Its list of devices keeps open what is in it, so one is taken
// when there is a new context, and never freed: a device that is reset costs a context.
func (n *rdmaNIC) device(ctx *C.struct_ibv_context) (*rdmaDevice, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if d, ok := n.devices[ctx]; ok {
		return d, nil
	}
	if list, err := C.rdma_get_devices(nil); list == nil {
		return nil, fmt.Errorf("keep devices open: %w", err)
	}
	d := &rdmaDevice{ctx: ctx, name: C.GoString(C.ibv_get_device_name(ctx.device))}
	n.devices[ctx] = d
	return d, nil
}

// Resolve tries all addresses of the host in turn.
func (n *rdmaNIC) Resolve(ctx context.Context, address string) (Route, error) {
	addrs, err := lookupAddrs(ctx, address)
	if err != nil {
		return nil, fmt.Errorf("verbs: resolve %s: %w", address, err)
	}
	for _, addr := range addrs {
		var r *rdmaRoute
		if r, err = n.resolve(ctx, addr); err == nil {
			return r, nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, fmt.Errorf("verbs: resolve %s: %w", address, err)
}

func (n *rdmaNIC) resolve(ctx context.Context, to netip.AddrPort) (_ *rdmaRoute, err error) {
	l, err := newID()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	addr := toC(to)
	if err := failedC(C.shim_resolve_address(l.id, &addr, resolveTimeoutMS)); err != nil {
		return nil, err
	}
	if err := l.expect(ctx, C.RDMA_CM_EVENT_ADDR_RESOLVED); err != nil {
		return nil, err
	}
	if l.id.verbs == nil {
		return nil, fmt.Errorf("%w: no device leads there", ErrUnsupported)
	}
	if err := failedC(C.shim_resolve_route(l.id, resolveTimeoutMS)); err != nil {
		return nil, err
	}
	if err := l.expect(ctx, C.RDMA_CM_EVENT_ROUTE_RESOLVED); err != nil {
		return nil, err
	}
	device, err := n.device(l.id.verbs)
	if err != nil {
		return nil, err
	}
	return &rdmaRoute{device: device, id: l}, nil
}

// lookupAddrs returns the addresses that host:port stands for.
func lookupAddrs(ctx context.Context, address string) ([]netip.AddrPort, error) {
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	port, err := net.DefaultResolver.LookupPort(ctx, "tcp", service)
	if err != nil {
		return nil, err
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	addrs := make([]netip.AddrPort, len(ips))
	for i, ip := range ips {
		addrs[i] = netip.AddrPortFrom(ip.Unmap(), uint16(port))
	}
	return addrs, nil
}

// Listen takes requests of IPv6 and IPv4 if host is empty, or of IPv4 where that is all
// there is.
func (n *rdmaNIC) Listen(address string) (Listener, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("verbs: listen: %w", err)
	}
	if host != "" {
		l, err := n.listen(address)
		if err != nil {
			return nil, fmt.Errorf("verbs: listen on %s: %w", address, err)
		}
		return l, nil
	}
	l, err := n.listen("[::]" + address)
	if err != nil {
		l, err = n.listen("0.0.0.0" + address)
	}
	if err != nil {
		return nil, fmt.Errorf("verbs: listen on %s: %w", address, err)
	}
	return l, nil
}

func (n *rdmaNIC) listen(address string) (*rdmaListener, error) {
	addrs, err := lookupAddrs(context.Background(), address)
	if err != nil {
		return nil, err
	}
	l, err := newID()
	if err != nil {
		return nil, err
	}
	at := toC(addrs[0])
	if err := failedC(C.shim_listen(l.id, &at, listenBacklog)); err != nil {
		l.close()
		return nil, err
	}
	return &rdmaListener{nic: n, id: l, addr: net.TCPAddrFromAddrPort(l.local())}, nil
}

// toC makes an address for C.
func toC(a netip.AddrPort) C.struct_shim_address {
	out := C.struct_shim_address{port: C.uint16_t(a.Port())}
	ip := a.Addr()
	for i, b := range ip.AsSlice() {
		out.ip[i] = C.uint8_t(b)
		out.size++
	}
	if zone := ip.Zone(); zone != "" {
		if no, err := strconv.Atoi(zone); err == nil {
			out.scope = C.uint32_t(no)
		} else if i, err := net.InterfaceByName(zone); err == nil {
			out.scope = C.uint32_t(i.Index)
		}
	}
	return out
}

// fromC takes an address from C.
func fromC(a C.struct_shim_address) netip.AddrPort {
	raw := make([]byte, a.size)
	for i := range raw {
		raw[i] = byte(a.ip[i])
	}
	ip, _ := netip.AddrFromSlice(raw) // invalid without one
	return netip.AddrPortFrom(ip.Unmap(), uint16(a.port))
}
