// Package wire is what the lab and its guests say to each other: JSON values, one after
// the other, over a virtio serial port.
package wire

// Port is the name of the serial port's device in the guest.
const Port = "/dev/vport0p1"

// A Request asks a guest for something. ID is that of a process, chosen by the lab when
// it starts one.
type Request struct {
	ID       int
	Argv     []string `json:",omitempty"` // start a process
	Env      []string `json:",omitempty"` // of it, besides the usual
	Signal   int      `json:",omitempty"` // send it to the process' group
	PowerOff bool     `json:",omitempty"` // stop everything, unmount, and end the guest
}

// A Reply tells what became of a process.
type Reply struct {
	ID     int
	Out    []byte  `json:",omitempty"` // of its standard output
	Err    []byte  `json:",omitempty"` // of its standard error
	Exited bool    `json:",omitempty"` // it ended, and Out and Err are complete
	Status int     `json:",omitempty"` // exit status, or 128 and the signal's number
	Failed string  `json:",omitempty"` // it could not be started
	Ready  bool    `json:",omitempty"` // the guest is up; about no process
	Uptime float64 `json:",omitempty"` // seconds, when Ready
}

// The words of the kernel's command line by which a guest learns what it is.
const (
	ArgName    = "lab.name="    // host name
	ArgAddress = "lab.address=" // address/bits of the network card
	ArgNVDIMM  = "lab.nvdimm="  // devdax or fsdax: the mode of the NVDIMM's namespace
)
