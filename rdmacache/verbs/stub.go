//go:build !(linux && cgo && rdma)

package verbs

// Open returns the RDMA devices of this host. This program was built without rdma-core: the
// error matches ErrUnsupported.
func Open() (NIC, error) { return nil, ErrUnsupported }

// Devices lists the RDMA devices of this host. The error matches ErrUnsupported, as that of
// Open.
func Devices() ([]DeviceReport, error) { return nil, ErrUnsupported }
