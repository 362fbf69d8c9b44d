package remote_test

import (
	"net"
	"sync"
	"testing"
)

// A weather is what a proxy does to the connections through it.
type weather int

const (
	fair  weather = iota
	stall         // nothing passes, nothing breaks, new connections hang
	mute          // requests pass, answers vanish
	down          // connections break
)

// A proxy stands between a client and a memory node.
type proxy struct {
	listener net.Listener
	target   string

	mu      sync.Mutex // guards the fields below
	weather weather
	changed chan struct{} // closed when the weather changes
	conns   map[net.Conn]struct{}
	made    int // connections so far
	frozen  int // of these the first so many pass nothing any more
	closed  bool
	eaten   int // bytes of answers that vanished
	wg      sync.WaitGroup
}

func newProxy(t testing.TB, listen, target string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", listen)
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: l, target: target, changed: make(chan struct{}), conns: make(map[net.Conn]struct{})}
	p.wg.Go(p.accept)
	t.Cleanup(p.close)
	return p
}

func (p *proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.wg.Go(func() { p.serve(client) })
	}
}

// keep registers a connection, to be cut.
func (p *proxy) keep(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.weather == down {
		_ = c.Close()
		return false
	}
	p.conns[c] = struct{}{}
	return true
}

func (p *proxy) drop(c net.Conn) {
	p.mu.Lock()
	delete(p.conns, c)
	p.mu.Unlock()
	_ = c.Close()
}

func (p *proxy) serve(client net.Conn) {
	if !p.keep(client) {
		return
	}
	defer p.drop(client)
	server, err := net.Dial("tcp", p.target)
	if err != nil || !p.keep(server) {
		return
	}
	defer p.drop(server)
	p.mu.Lock()
	no := p.made
	p.made++
	p.mu.Unlock()
	var wg sync.WaitGroup
	wg.Go(func() { p.pass(no, server, client, false) })
	wg.Go(func() { p.pass(no, client, server, true) })
	wg.Wait()
}

func (p *proxy) pass(no int, to, from net.Conn, answers bool) {
	defer to.Close()
	defer from.Close()
	b := make([]byte, 32<<10)
	for {
		n, err := from.Read(b)
		if n > 0 && !p.vanishes(no, n, answers) {
			if _, err := to.Write(b[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// vanishes waits while nothing passes on connection no, and reports whether n bytes
// are lost.
func (p *proxy) vanishes(no, n int, answers bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for (p.weather == stall || no < p.frozen) && !p.closed {
		changed := p.changed
		p.mu.Unlock()
		<-changed
		p.mu.Lock()
	}
	if p.weather == mute && answers {
		p.eaten += n
		return true
	}
	return false
}

// set changes the weather for connections old and new.
func (p *proxy) set(w weather) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.weather = w
	close(p.changed)
	p.changed = make(chan struct{})
	if w == down {
		p.cutLocked()
	}
}

// freeze makes the connections of now pass nothing any more, and later ones pass.
func (p *proxy) freeze() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.frozen = p.made
}

// swallow makes answers vanish from now on.
func (p *proxy) swallow() {
	p.set(mute)
	p.mu.Lock()
	p.eaten = 0
	p.mu.Unlock()
}

// swallowed reports whether something vanished since.
func (p *proxy) swallowed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.eaten > 0
}

// cut breaks all connections.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cutLocked()
}

func (p *proxy) cutLocked() {
	for c := range p.conns {
		_ = c.Close()
	}
}

func (p *proxy) close() {
	_ = p.listener.Close()
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.set(fair)
	p.cut()
	p.wg.Wait()
}
