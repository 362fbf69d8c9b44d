//go:build linux && cgo && rdma

package verbs

// #include "shim.h"
import "C"

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"unsafe"
)

// Bits of device_cap_flags_ex (linux/include/uapi/rdma/ib_user_verbs.h).
const (
	capFlushPersistent = 1 << 39
)

// An rdmaDevice is one that librdmacm has open.
type rdmaDevice struct {
	ctx  *C.struct_ibv_context
	name string

	asked   sync.Once
	flushes bool
}

var _ Device = (*rdmaDevice)(nil)

func (d *rdmaDevice) Name() string { return d.name }

// Flushes asks the device once. The kernel may have FLUSH where the library does not.
func (d *rdmaDevice) Flushes() bool {
	d.asked.Do(func() {
		var attr C.struct_shim_device
		d.flushes = C.shim_query(d.ctx, &attr) == 0 && attr.caps_ex&capFlushPersistent != 0 && C.shim_try(d.ctx, 0, 1) == 1
	})
	return d.flushes
}

func (d *rdmaDevice) NewDomain() (Domain, error) {
	out := &rdmaDomain{device: d}
	if err := failedC(C.shim_pd(d.ctx, &out.pd)); err != nil {
		return nil, fmt.Errorf("verbs: protection domain of %s: %w", d.name, err)
	}
	return out, nil
}

// An rdmaDomain is a protection domain.
type rdmaDomain struct {
	device *rdmaDevice

	mu sync.Mutex // guards what follows
	pd *C.struct_ibv_pd
}

var _ Domain = (*rdmaDomain)(nil)

var errDomainClosed = errors.New("domain closed")

func (d *rdmaDomain) Register(mem []byte, access Access) (MR, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.pd == nil {
		return nil, &registerError{len(mem), access, errDomainClosed}
	}
	m := &rdmaMR{address: uint64(addressOf(mem))}
	n := C.shim_register(d.pd, addressOf(mem), C.uint64_t(len(mem)), bit(access, RemoteRead), bit(access, RemoteWrite), bit(access, RemoteFlush), &m.mr)
	if err := failedC(n); err != nil {
		return nil, &registerError{len(mem), access, err}
	}
	m.lkey, m.rkey = uint32(m.mr.lkey), uint32(m.mr.rkey)
	return m, nil
}

func bit(access, of Access) C.int {
	if access&of != 0 {
		return 1
	}
	return 0
}

// addressOf is where the device finds p, which is not on the Go heap.
func addressOf(p []byte) C.uint64_t {
	return C.uint64_t(uintptr(unsafe.Pointer(unsafe.SliceData(p))))
}

// Close fails with EBUSY while there are queues or MRs.
func (d *rdmaDomain) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.pd == nil {
		return nil
	}
	if err := failedC(C.shim_pd_free(d.pd)); err != nil {
		return fmt.Errorf("verbs: close protection domain of %s: %w", d.device.name, err)
	}
	d.pd = nil
	return nil
}

// A registerError says which memory could not be registered. It matches errors.ErrUnsupported
// if such memory never can.
type registerError struct {
	size   int
	access Access
	err    error
}

func (e *registerError) Error() string {
	text := fmt.Sprintf("verbs: register %d bytes", e.size)
	if e.access&RemoteFlush != 0 {
		text += " for persistent flushes"
	}
	text += ": " + e.err.Error()
	if errors.Is(e.err, syscall.ENOMEM) {
		text += " (raise the limit of locked memory: LimitMEMLOCK of the unit, or ulimit -l; see rpmemctl doctor)"
	}
	return text
}

func (e *registerError) Unwrap() error { return e.err }

// Is knows that a file on DAX answers EOPNOTSUPP or EFAULT for it cannot be pinned for long,
// and DRAM EINVAL for it is not persistent.
func (e *registerError) Is(target error) bool {
	return target == errors.ErrUnsupported &&
		(errors.Is(e.err, syscall.EINVAL) || errors.Is(e.err, syscall.EOPNOTSUPP) || errors.Is(e.err, syscall.EFAULT))
}

// An rdmaMR is a memory region of ibv_reg_mr.
type rdmaMR struct {
	address    uint64
	lkey, rkey uint32

	mu sync.Mutex // guards what follows
	mr *C.struct_ibv_mr
}

var _ MR = (*rdmaMR)(nil)

func (m *rdmaMR) LKey() uint32    { return m.lkey }
func (m *rdmaMR) RKey() uint32    { return m.rkey }
func (m *rdmaMR) Address() uint64 { return m.address }

func (m *rdmaMR) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mr == nil {
		return nil
	}
	if err := failedC(C.shim_deregister(m.mr)); err != nil {
		return fmt.Errorf("verbs: deregister: %w", err)
	}
	m.mr = nil
	return nil
}

// Devices lists the RDMA devices of this host, none if the kernel has none. What one cannot
// be asked is in its Err.
func Devices() (reports []DeviceReport, err error) {
	_, err = eachDevice(func(dev *C.struct_ibv_device) { reports = append(reports, reportDevice(dev)) })
	return reports, err
}

// eachDevice calls fn for each device of this host, and counts them.
func eachDevice(fn func(*C.struct_ibv_device)) (int, error) {
	var n C.int
	list, err := C.ibv_get_device_list(&n)
	if list == nil {
		if errors.Is(err, syscall.ENOSYS) || errors.Is(err, syscall.ENOENT) {
			return 0, nil // the kernel knows no RDMA
		}
		return 0, fmt.Errorf("verbs: list devices: %w", err)
	}
	defer C.ibv_free_device_list(list)
	for _, dev := range unsafe.Slice(list, int(n)) {
		fn(dev)
	}
	return int(n), nil
}

func reportDevice(dev *C.struct_ibv_device) DeviceReport {
	r := DeviceReport{Name: C.GoString(C.ibv_get_device_name(dev))}
	ctx, err := C.ibv_open_device(dev)
	if ctx == nil {
		r.Err = fmt.Errorf("verbs: open %s: %w", r.Name, err)
		return r
	}
	defer C.ibv_close_device(ctx)
	var attr C.struct_shim_device
	if err := failedC(C.shim_query(ctx, &attr)); err != nil {
		r.Err = fmt.Errorf("verbs: query %s: %w", r.Name, err)
		return r
	}
	r.QueueDepth = int(attr.max_qp_wr)
	r.MaxMR = uint64(attr.max_mr_size)
	r.Flush = attr.caps_ex&capFlushPersistent != 0 && C.shim_try(ctx, 0, 1) == 1
	r.OnDemand = attr.odp_caps != 0
	for size := 1024; size >= 16; size /= 2 {
		if C.shim_try(ctx, C.uint32_t(size), 0) == 1 {
			r.Inline = size
			break
		}
	}
	for no := 1; no <= int(attr.ports); no++ {
		r.Ports = append(r.Ports, reportPort(ctx, r.Name, no))
	}
	return r
}

func reportPort(ctx *C.struct_ibv_context, name string, no int) PortReport {
	var attr C.struct_shim_port
	if C.shim_query_port(ctx, C.uint8_t(no), &attr) != 0 {
		return PortReport{State: "unknown"}
	}
	p := PortReport{
		State:     strings.ToLower(strings.TrimPrefix(C.GoString(C.ibv_port_state_str(uint32(attr.state))), "PORT_")),
		LinkLayer: "InfiniBand",
		MTU:       int(attr.active_mtu),
	}
	if attr.link_layer == C.IBV_LINK_LAYER_ETHERNET {
		p.LinkLayer = "Ethernet"
	}
	// The first entry of the port's table of addresses names the interface.
	raw, err := os.ReadFile(filepath.Join("/sys/class/infiniband", name, "ports", strconv.Itoa(no), "gid_attrs/ndevs/0"))
	if err == nil {
		p.Netdev = strings.TrimSpace(string(raw))
	}
	return p
}
