package machine

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
)

// maxFrame is more than a packet with the largest MTU of the lab has.
const maxFrame = 64 << 10

// bulk is the size of a frame that carries data of pages, in bytes.
const bulk = 1024

// A Hub is the network between machines: an Ethernet switch, to which QEMU's "stream"
// network cards connect by a unix socket. Nothing of it reaches the network of the host.
//
// A frame is preceded by its length in 4 bytes, big-endian. As on a real switch frames
// are lost that a machine does not take in time.
type Hub struct {
	listener net.Listener
	wg       sync.WaitGroup

	mu    sync.Mutex
	ports map[*port]bool
	owner map[card]*port // which port a card was last seen at
	sent  map[card]int   // frames of at least bulk bytes
}

// A card is the hardware address of a network card.
type card [6]byte

// cardOf is the address of the card that is number n of a hub.
func cardOf(n int) card { return card{0x52, 0x54, 0, 0, 0, byte(n)} }

func (c card) String() string { return net.HardwareAddr(c[:]).String() }

// A port is where a machine is connected.
type port struct {
	conn  net.Conn
	queue chan []byte // frames to the machine; closed when it is gone
}

// queued is how many frames wait for a machine at most.
const queued = 4096

// NewHub makes a network at a socket of that path.
func NewHub(path string) (*Hub, error) {
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	h := &Hub{listener: l, ports: map[*port]bool{}, owner: map[card]*port{}, sent: map[card]int{}}
	h.wg.Go(h.accept)
	return h, nil
}

func (h *Hub) accept() {
	for {
		conn, err := h.listener.Accept()
		if err != nil {
			return // closed
		}
		p := &port{conn: conn, queue: make(chan []byte, queued)}
		h.mu.Lock()
		h.ports[p] = true
		h.mu.Unlock()
		h.wg.Go(p.deliver)
		h.wg.Go(func() { h.receive(p) })
	}
}

// receive forwards what a machine sends, until it is gone.
func (h *Hub) receive(p *port) {
	defer h.remove(p)
	header := make([]byte, 4)
	for {
		if _, err := io.ReadFull(p.conn, header); err != nil {
			return
		}
		n := binary.BigEndian.Uint32(header)
		if n < 14 || n > maxFrame {
			return // not Ethernet
		}
		frame := make([]byte, 4+n)
		copy(frame, header)
		if _, err := io.ReadFull(p.conn, frame[4:]); err != nil {
			return
		}
		h.forward(p, frame)
	}
}

// forward queues a frame for the card that it is meant for, or for all others while it
// is not known where that is.
func (h *Hub) forward(from *port, frame []byte) {
	to, source := card(frame[4:10]), card(frame[10:16])
	h.mu.Lock()
	defer h.mu.Unlock()
	h.owner[source] = from
	if len(frame) >= bulk {
		h.sent[source]++
	}
	if p := h.owner[to]; p != nil {
		p.offer(frame)
		return
	}
	for p := range h.ports {
		if p != from {
			p.offer(frame)
		}
	}
}

// Bulk is how many frames that carry data of pages a card has sent.
func (h *Hub) Bulk(n int) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.sent[cardOf(n)]
}

func (p *port) offer(frame []byte) {
	select {
	case p.queue <- frame:
	default: // lost
	}
}

func (p *port) deliver() {
	for frame := range p.queue {
		if _, err := p.conn.Write(frame); err != nil {
			break
		}
	}
	for range p.queue { // the machine is gone
	}
}

func (h *Hub) remove(p *port) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.ports, p)
	for card, owner := range h.owner {
		if owner == p {
			delete(h.owner, card)
		}
	}
	close(p.queue)
	_ = p.conn.Close() // nothing more is said on it
}

// Close ends the network and waits for all of it.
func (h *Hub) Close() error {
	err := h.listener.Close()
	h.mu.Lock()
	for p := range h.ports {
		_ = p.conn.Close() // its receive ends
	}
	h.mu.Unlock()
	h.wg.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
