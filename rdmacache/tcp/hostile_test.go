package tcp

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rpmemfs/rpmemfs/rdmacache"
)

// A node is a memory node with one session, whose token is all zero.
type node struct {
	kind  string // of the medium
	write func(p []byte, off int64) error
	flush func() error
	done  chan struct{}

	mu    sync.Mutex
	bytes []byte
}

func newNode(kind string) *node {
	return &node{kind: kind, done: make(chan struct{}), bytes: make([]byte, 4<<20)}
}

func (n *node) Session(token [32]byte) (Session, error) {
	if token != [32]byte{} {
		return nil, rdmacache.ErrFenced
	}
	return n, nil
}

func (n *node) Done() <-chan struct{}    { return n.done }
func (n *node) Medium() rdmacache.Medium { return rdmacache.Medium{Kind: n.kind} }

func (n *node) Flush() error {
	if n.flush != nil {
		return n.flush()
	}
	return nil
}

func (n *node) ReadAt(p []byte, off int64) error {
	if off > int64(len(n.bytes)-len(p)) {
		return errors.New("range")
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	copy(p, n.bytes[off:])
	return nil
}

func (n *node) WriteAt(p []byte, off int64) error {
	if n.write != nil {
		if err := n.write(p, off); err != nil {
			return err
		}
	}
	if off > int64(len(n.bytes)-len(p)) {
		return errors.New("range")
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	copy(n.bytes[off:], p)
	return nil
}

// serve serves n until the test ends.
func (n *node) serve(t testing.TB, cfg ServerConfig) string {
	t.Helper()
	return n.serveOn(t, cfg, func(l net.Listener) net.Listener { return l })
}

// serveOn does so on a wrapped listener.
func (n *node) serveOn(t testing.TB, cfg ServerConfig, wrap func(net.Listener) net.Listener) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = Serve(ctx, wrap(l), n, cfg)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return l.Addr().String()
}

// A raw client says what it likes.
type raw struct {
	t  testing.TB
	nc net.Conn
}

func connectRaw(t testing.TB, address string) *raw {
	t.Helper()
	nc, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(20 * time.Second))
	return &raw{t, nc}
}

// greet says HELLO and returns the answer.
func (r *raw) greet(h hello) (*welcome, error) {
	if h.alive == 0 {
		h.alive = time.Second
	}
	return greet(r.nc, h)
}

// say sends a message.
func (r *raw) say(h header, data []byte) {
	r.t.Helper()
	b := make([]byte, headerSize+len(data))
	copy(b[headerSize:], data)
	h.encode(b, data)
	if _, err := r.nc.Write(b); err != nil {
		r.t.Fatal(err)
	}
}

// hear returns the next answer.
func (r *raw) hear() (header, []byte, error) {
	b := make([]byte, headerSize)
	var h header
	if _, err := io.ReadFull(r.nc, b); err != nil {
		return h, nil, err
	}
	if err := h.decode(b); err != nil {
		return h, nil, err
	}
	data := make([]byte, h.follows())
	_, err := io.ReadFull(r.nc, data)
	return h, data, err
}

// sealed is a message with a good checksum, whatever it says.
func sealed(h header, data []byte) []byte {
	b := make([]byte, headerSize+len(data))
	copy(b[headerSize:], data)
	h.encode(b, data)
	return b
}

// Nothing that a client says before it is welcomed harms anybody.
func TestGarbageInsteadOfHello(t *testing.T) {
	n := newNode("dax")
	address := n.serve(t, ServerConfig{})
	good := (&hello{alive: time.Second}).encode()
	wrong := func(at int, b byte) []byte {
		p := bytes.Clone(good)
		p[at] ^= b
		return p
	}
	for name, test := range map[string]struct {
		say  []byte
		want code
	}{
		"http":          {bytes.Repeat([]byte("GET / HTTP/1.1\r\n"), 10), codeProtocol},
		"version":       {wrong(4, 3), codeVersion},
		"checksum":      {wrong(50, 1), codeProtocol},
		"unknown token": {(&hello{token: [32]byte{1}, alive: time.Second}).encode(), codeFenced},
		"alive never":   {(&hello{}).encode(), codeProtocol},
		"alive always":  {(&hello{alive: 1}).encode(), codeProtocol},
	} {
		r := connectRaw(t, address)
		if _, err := r.nc.Write(test.say); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, welcomeSize)
		if _, err := io.ReadFull(r.nc, b); err != nil {
			t.Errorf("%s: no answer: %v", name, err)
			continue
		}
		var w welcome
		if err := w.decode(b); err != nil || w.code != test.want {
			t.Errorf("%s: answer %+v, %v, want code %d", name, w, err, test.want)
		}
		if _, err := r.nc.Read(b); err == nil {
			t.Errorf("%s: the connection stays open", name)
		}
	}
	mustWork(t, address)
}

// Nothing that a client says after it was welcomed harms anybody else.
func TestGarbageInsteadOfRequests(t *testing.T) {
	n := newNode("dax")
	address := n.serve(t, ServerConfig{})
	page := make([]byte, 4096)
	write := header{kind: kindWrite, length: 4096, sequence: 1}
	stream := uint64(0)
	for name, say := range map[string][]byte{
		"noise":             bytes.Repeat([]byte{0xa5}, 1000),
		"long write":        sealed(header{kind: kindWrite, length: maxData + 1, sequence: 1}, nil),
		"longest length":    sealed(header{kind: kindRead, length: 1<<32 - 1, sequence: 1}, nil),
		"unknown kind":      sealed(header{kind: 99, sequence: 1}, nil),
		"an answer":         sealed(header{kind: kindData, length: 4096, sequence: 1}, page),
		"done":              sealed(header{kind: kindDone, sequence: 1}, nil),
		"alive":             sealed(header{kind: kindAlive}, nil),
		"an error":          sealed(header{kind: kindError, code: codeFenced, sequence: 1}, nil),
		"second first":      sealed(header{kind: kindFlush, sequence: 2}, nil),
		"replay":            append(sealed(write, page), sealed(write, page)...),
		"sequence 0":        sealed(header{kind: kindFlush}, nil),
		"negative offset":   sealed(header{kind: kindWrite, length: 4096, sequence: 1, offset: -4096}, page),
		"other data":        append(sealed(write, page)[:headerSize], bytes.Repeat([]byte{1}, 4096)...),
		"truncated header":  sealed(write, page)[:20],
		"truncated data":    sealed(write, page)[:headerSize+100],
		"truncated big one": sealed(header{kind: kindWrite, length: maxData, sequence: 1}, page)[:headerSize+4096],
	} {
		r := connectRaw(t, address)
		stream++
		if _, err := r.greet(hello{stream: stream}); err != nil {
			t.Fatal(err)
		}
		if _, err := r.nc.Write(say); err != nil {
			t.Fatal(err)
		}
		_ = r.nc.(*net.TCPConn).CloseWrite()
		b, err := io.ReadAll(r.nc)
		if isTimeout(err) {
			t.Errorf("%s: the connection stays open", name)
		}
		var h header
		if truncated := strings.HasPrefix(name, "truncated"); !truncated && (len(b) < headerSize || h.decode(b) != nil || h.code != codeProtocol) {
			t.Errorf("%s: answer %x, %v, want ERROR with code %d", name, b, err, codeProtocol)
		}
		mustWork(t, address)
	}
	for i, b := range n.bytes {
		if b != 0 && b != mark {
			t.Fatalf("byte %d was stored by a client that breaks the protocol", i)
		}
	}
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// mark is what mustWork writes.
const mark = 0x77

// mustWork uses the node as a good client does.
func mustWork(t *testing.T, address string) {
	t.Helper()
	c, err := Dial(t.Context(), Config{Connect: func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", address)
	}})
	if err != nil {
		t.Fatal(err)
	}
	p := bytes.Repeat([]byte{mark}, 100)
	if err := errors.Join(c.Write(t.Context(), p, 0), c.Flush(t.Context()), c.Read(t.Context(), p, 0), c.Close()); err != nil {
		t.Errorf("a good client: %v", err)
	}
}

// An old connection has done all that it will ever do when the new one is welcomed.
// Fails without the wait in join.
func TestNewConnectionWaitsForOld(t *testing.T) {
	n := newNode("dax")
	inside, gate := make(chan struct{}), make(chan struct{})
	open := sync.OnceFunc(func() { close(gate) })
	var first atomic.Bool
	n.write = func([]byte, int64) error {
		if first.CompareAndSwap(false, true) {
			close(inside)
			<-gate
		}
		return nil
	}
	address := n.serve(t, ServerConfig{})
	defer open()
	old := connectRaw(t, address)
	if _, err := old.greet(hello{stream: 1, attempt: 1}); err != nil {
		t.Fatal(err)
	}
	old.say(header{kind: kindWrite, length: 1, sequence: 1}, []byte{1})
	<-inside
	old.say(header{kind: kindWrite, length: 1, sequence: 2}, []byte{2})

	// Not before the write that is under way ends, and another may not jump the queue.
	welcomed := make(chan error, 2)
	fresh := connectRaw(t, address)
	go func() {
		_, err := fresh.greet(hello{stream: 1, attempt: 2})
		welcomed <- err
	}()
	other := connectRaw(t, address)
	if _, err := other.greet(hello{stream: 2, attempt: 1}); err != nil {
		t.Errorf("another stream: %v", err)
	}
	select {
	case err := <-welcomed:
		t.Fatalf("welcomed while the old connection writes: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	open()
	if err := <-welcomed; err != nil {
		t.Fatal(err)
	}
	n.mu.Lock()
	n.bytes[0] = 3
	n.mu.Unlock()
	time.Sleep(50 * time.Millisecond)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.bytes[0] != 3 {
		t.Errorf("the old connection wrote %d after the new one was welcomed", n.bytes[0])
	}
}

// While an old connection is stuck none of its successors is welcomed, not even the
// one after the next.
func TestStuckConnection(t *testing.T) {
	n := newNode("dax")
	inside, gate := make(chan struct{}), make(chan struct{})
	n.write = func([]byte, int64) error {
		close(inside)
		<-gate
		return nil
	}
	address := n.serve(t, ServerConfig{})
	defer close(gate)
	old := connectRaw(t, address)
	if _, err := old.greet(hello{stream: 1, attempt: 1}); err != nil {
		t.Fatal(err)
	}
	old.say(header{kind: kindWrite, length: 1, sequence: 1}, []byte{1})
	<-inside
	var wg sync.WaitGroup
	for attempt := uint64(2); attempt < 4; attempt++ {
		wg.Go(func() {
			time.Sleep(time.Duration(attempt) * 100 * time.Millisecond)
			_, err := connectRaw(t, address).greet(hello{stream: 1, attempt: attempt})
			if !errors.Is(err, errUnavailable) && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("attempt %d: %v, want errUnavailable", attempt, err)
			}
		})
	}
	wg.Wait()
}

// A connection that was made before the present one is not welcomed after it.
func TestStaleAttempt(t *testing.T) {
	address := newNode("dax").serve(t, ServerConfig{})
	if _, err := connectRaw(t, address).greet(hello{stream: 1, attempt: 2}); err != nil {
		t.Fatal(err)
	}
	for _, attempt := range []uint64{1, 2} {
		if _, err := connectRaw(t, address).greet(hello{stream: 1, attempt: attempt}); !errors.Is(err, errUnavailable) {
			t.Errorf("attempt %d after 2: %v, want errUnavailable", attempt, err)
		}
	}
}

// Connections are limited: all, those of a session, and those that say nothing.
func TestConnectionLimits(t *testing.T) {
	address := newNode("dax").serve(t, ServerConfig{Connections: 20, Log: slog.New(slog.DiscardHandler)})
	for i := range uint64(maxStreams + 1) {
		_, err := connectRaw(t, address).greet(hello{stream: i})
		if full := i == maxStreams; errors.Is(err, errUnavailable) != full {
			t.Errorf("stream %d: %v", i, err)
		}
	}
	address = newNode("dax").serve(t, ServerConfig{Connections: 3})
	for i := range uint64(4) {
		_, err := connectRaw(t, address).greet(hello{stream: i})
		if full := i == 3; errors.Is(err, errUnavailable) != full {
			t.Errorf("connection %d: %v", i, err)
		}
	}
}

// Clients that say nothing, or one byte now and then, are cut after the handshake's
// time, or when others come: they keep nobody out.
func TestSlowHello(t *testing.T) {
	t.Parallel()
	address := newNode("dax").serve(t, ServerConfig{})
	begun := time.Now()
	var silent []*raw
	for range maxGreeting + 10 {
		silent = append(silent, connectRaw(t, address))
	}
	slow := silent[len(silent)-1]
	go func() {
		for _, b := range (&hello{alive: time.Second}).encode() {
			if _, err := slow.nc.Write([]byte{b}); err != nil {
				return
			}
			time.Sleep(200 * time.Millisecond)
		}
	}()
	if _, err := silent[0].nc.Read(make([]byte, 1)); err == nil || isTimeout(err) || time.Since(begun) > handshakeTimeout-time.Second {
		t.Errorf("the oldest of too many: %v after %v", err, time.Since(begun))
	}
	mustWork(t, address) // while they are there
	if took := time.Since(begun); took > handshakeTimeout-time.Second {
		t.Errorf("others had to wait: %v", took)
	}
	if _, err := slow.nc.Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("slow hello: %v", err)
	}
	if took := time.Since(begun); took < handshakeTimeout-time.Second || took > handshakeTimeout+5*time.Second {
		t.Errorf("slow hello was cut after %v", took)
	}
	mustWork(t, address)
}

// A client that asks and does not take its answers holds a bounded amount of memory,
// and is gone when its session ends.
func TestClientThatTakesNothing(t *testing.T) {
	for _, kind := range []string{"dax", "file"} {
		n := newNode(kind)
		cut := make(chan struct{})
		address := n.serveOn(t, ServerConfig{}, func(l net.Listener) net.Listener {
			return closeListener{l, sync.OnceFunc(func() { close(cut) })}
		})
		r := connectRaw(t, address)
		if _, err := r.greet(hello{}); err != nil {
			t.Fatal(err)
		}
		asked := 0
		for seq := uint64(1); seq < 1e6; seq++ {
			b := sealed(header{kind: kindRead, length: maxData, sequence: seq}, nil)
			_ = r.nc.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
			if _, err := r.nc.Write(b); err != nil {
				break
			}
			asked++
		}
		if asked > 1e6/2 {
			t.Errorf("%s: the server took %d requests of a client that takes no answer", kind, asked)
		}
		close(n.done)
		select {
		case <-cut:
		case <-time.After(20 * time.Second):
			t.Errorf("%s: still connected long after the session ended", kind)
		}
	}
}

// A closeListener tells when a connection that it accepted is closed.
type closeListener struct {
	net.Listener
	closed func()
}

func (l closeListener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	return closeConn{nc, l.closed}, err
}

type closeConn struct {
	net.Conn
	closed func()
}

func (c closeConn) Close() error {
	c.closed()
	return c.Conn.Close()
}

// Flushes that a client sends in a row are done one after the other.
func TestManyFlushes(t *testing.T) {
	for _, kind := range []string{"dax", "file"} {
		n := newNode(kind)
		var under, most atomic.Int32
		n.flush = func() error {
			now := under.Add(1)
			defer under.Add(-1)
			for {
				old := most.Load()
				if now <= old || most.CompareAndSwap(old, now) {
					break
				}
			}
			time.Sleep(time.Millisecond)
			return nil
		}
		r := connectRaw(t, n.serve(t, ServerConfig{}))
		if _, err := r.greet(hello{}); err != nil {
			t.Fatal(err)
		}
		for seq := range uint64(50) {
			r.say(header{kind: kindFlush, sequence: seq + 1}, nil)
		}
		for range 50 {
			if h, _, err := r.hear(); err != nil || h.kind != kindDone {
				t.Fatalf("%s: answer %+v, %v", kind, h, err)
			}
		}
		if most.Load() != 1 {
			t.Errorf("%s: %d flushes of one connection at once", kind, most.Load())
		}
	}
}

// Whatever follows a welcome, the server neither panics nor stores what it should
// not have taken.
func FuzzServer(f *testing.F) {
	for _, m := range messages() {
		f.Add(m, true)
		f.Add(m, false)
	}
	f.Fuzz(func(t *testing.T, say []byte, seal bool) {
		if seal {
			say = sealAll(say)
		}
		for _, kind := range []string{"dax", "file"} {
			n := newNode(kind)
			n.bytes = n.bytes[:64<<10]
			n.write = func(p []byte, off int64) error {
				if len(p) == 0 || len(p) > maxData || off < 0 {
					t.Errorf("write of %d bytes at %d", len(p), off)
				}
				return nil
			}
			here, there := net.Pipe()
			go func() { _, _ = io.Copy(io.Discard, here) }()
			go func() {
				_, _ = here.Write(say)
				_ = here.Close()
			}()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			k := newLink(&direct{Conn: there}, n, hello{alive: time.Second})
			if err := k.serve(ctx); err == nil || ctx.Err() != nil {
				t.Errorf("serve = %v, %v", err, ctx.Err())
			}
			cancel()
			_ = there.Close()
		}
	})
}

// sealAll gives the messages in b good checksums and sequences.
func sealAll(b []byte) []byte {
	b = bytes.Clone(b)
	for at, seq := 0, uint64(1); len(b)-at >= headerSize; seq++ {
		var h header
		head := b[at : at+headerSize]
		h.kind, h.code = kind(head[0]%9), code(head[2])
		h.length = uint32(head[4]) | uint32(head[5])<<8 | uint32(head[6]&0x1f)<<16
		h.sequence, h.offset = seq, int64(head[16])<<8
		data := b[at+headerSize:]
		if n := h.follows(); n < len(data) {
			data = data[:n]
		}
		h.encode(head, data)
		at += headerSize + len(data)
	}
	return b
}
