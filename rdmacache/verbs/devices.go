package verbs

// A DeviceReport is what Devices tells of one device, for people.
type DeviceReport struct {
	Name  string
	Err   error // why there is nothing below; most likely a lack of permission
	Ports []PortReport

	QueueDepth int    // work requests that a queue pair takes, at most
	Inline     int    // bytes that a work request may take along, about
	MaxMR      uint64 // bytes of the largest MR
	// Flush says that the device and this program have FLUSH with persistent placement.
	Flush bool
	// OnDemand says that the device can fault pages in, which this package does not use.
	OnDemand bool
}

// A PortReport is what Devices tells of one port.
type PortReport struct {
	State     string // "active", "down", ...
	LinkLayer string // "Ethernet", "InfiniBand"
	MTU       int    // bytes of a packet's payload
	Netdev    string // network interface; empty if there is none
}
