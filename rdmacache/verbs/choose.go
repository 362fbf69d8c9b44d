package verbs

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

const probeSize = 4096

// A choice is a method, and why the better ones were not possible.
type choice struct {
	method Method
	access Access // that MRs are registered with
	why    []string
}

func (c *choice) not(format string, args ...any) {
	c.why = append(c.why, fmt.Sprintf(format, args...))
}

func (c *choice) String() string { return strings.Join(c.why, "; ") }

// choose decides how the writes of a client become persistent. d is a domain of the
// device, without queue pairs: what is registered to try it is in nobody's reach. An error says
// that there is no memory to try: the next connection must not be by another method for that.
func choose(s Session, device Device, d Domain, clientFlushes bool, p Persistence) (c choice, short error) {
	c.method = ByMessage
	mem, medium := s.Bytes(), s.Medium()
	if len(mem) == 0 {
		c.not("medium %s is not memory: put the pool on DAX or tmpfs", medium.Kind)
		return c, nil
	}
	base := RemoteRead
	if !s.ReadOnly() {
		base |= RemoteWrite
	}
	if err := probe(d, mem, base); errors.Is(err, unix.ENOMEM) {
		return c, err
	} else if err != nil {
		c.not("device %s does not register medium %s: %v", device.Name(), medium.Kind, err)
		return c, nil
	}
	c.access = base
	flush := func() bool {
		switch {
		case !device.Flushes():
			c.not("device %s has no FLUSH", device.Name())
		case !clientFlushes:
			c.not("the client's device has no FLUSH")
		default:
			err := probe(d, mem, base|RemoteFlush)
			if err == nil {
				c.method, c.access = ByFlush, base|RemoteFlush
				return true
			}
			if errors.Is(err, unix.ENOMEM) {
				short = err
			}
			c.not("device %s does not register medium %s for FLUSH: %v", device.Name(), medium.Kind, err)
		}
		return false
	}
	switch {
	case s.ReadOnly():
		c.method = ByRead // nothing is written
	case p == CPUOnly:
		c.method = ByCPU
		c.not("the operator leaves persistence to the processor")
	case medium.Volatile:
		// Visible is all that it can promise. A device that takes a FLUSH of it promises
		// what is not so.
		c.method = ByRead
		c.not("medium %s is volatile", medium.Kind)
	case flush():
	case p == ADRNoDDIO || p == EADR:
		c.method = ByRead
	default:
		c.method = ByCPU
		c.not("the operator has not declared that what was read back is persistent")
	}
	return c, short
}

// probe tries to register the beginning of the pool.
func probe(d Domain, mem []byte, access Access) error {
	n := min(len(mem), probeSize)
	mr, err := d.Register(mem[:n:n], access)
	if err != nil {
		return err
	}
	if err := mr.Close(); err != nil {
		return errors.Join(errors.New("deregister"), err)
	}
	return nil
}
