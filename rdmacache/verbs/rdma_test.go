//go:build linux && cgo && rdma

package verbs

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var (
	labAddress = flag.String("lab.address", "", "address of this machine on an RDMA device")
	labDevice  = flag.String("lab.device", "", "device-dax node that may be overwritten")
)

// TestMain runs the tests of the device only where there is one, and shorter, if nothing
// else is asked for: the machines of tests/lab are slow, and the others pass on any.
func TestMain(m *testing.M) {
	flag.Parse()
	if run := flag.Lookup("test.run"); *labAddress != "" && run.Value.String() == "" {
		if err := errors.Join(run.Value.Set("RDMA"), flag.Set("test.short", "true")); err != nil {
			panic(err)
		}
	}
	m.Run()
}

// For the tests outside the package.
var (
	OpenLab   = openLab
	ListenLab = listenLab
	MapLab    = mapLab
)

// within is the end of every wait.
const within = 30 * time.Second

// openLab skips without a device.
func openLab(t testing.TB) NIC {
	nic, err := Open()
	if errors.Is(err, ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if *labAddress == "" {
		t.Skip("no -lab.address")
	}
	return nic
}

func labContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	t.Cleanup(cancel)
	return ctx
}

// An end is one side of a connection, with a domain and memory of its own.
type end struct {
	t   testing.TB
	dev Device
	dom Domain
	mem []byte
	mr  MR
	q   Queue
}

func mapAnonymous(t testing.TB, size int) []byte {
	mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(mem) })
	return mem
}

// newEnd registers mem, or 1 MiB of its own.
func newEnd(t testing.TB, dev Device, mem []byte, access Access) *end {
	e := &end{t: t, dev: dev, mem: mem}
	if mem == nil {
		e.mem = mapAnonymous(t, 1<<20)
	}
	var err error
	if e.dom, err = dev.NewDomain(); err != nil {
		t.Fatal(err)
	}
	if e.mr, err = e.dom.Register(e.mem, access); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.close() })
	return e
}

func (e *end) close() {
	var err error
	if e.q != nil {
		err = e.q.Close()
	}
	if err := errors.Join(err, e.mr.Close(), e.dom.Close()); err != nil {
		e.t.Error(err)
	}
}

func (e *end) work(op Op, id uint64, off, n int) Work {
	return Work{Op: op, ID: id, Signaled: true, Local: e.mem[off : off+n], LKey: e.mr.LKey()}
}

// onto makes w reach the bytes of peer from off on.
func (w Work) onto(peer *end, off int) Work {
	w.RKey, w.Remote = peer.mr.RKey(), peer.mr.Address()+uint64(off)
	return w
}

func (w Work) quiet() Work {
	w.Signaled = false
	return w
}

func (e *end) post(work ...Work) {
	e.t.Helper()
	if err := e.q.Post(work); err != nil {
		e.t.Fatal(err)
	}
}

// wait returns the next n completions.
func (e *end) wait(n int) []Completion {
	e.t.Helper()
	ctx := labContext(e.t)
	got := make([]Completion, 0, n)
	for len(got) < n {
		m, err := e.q.Wait(ctx, got[len(got):n])
		if err != nil || m == 0 {
			e.t.Fatalf("Wait = %d, %v after %d of %d completions", m, err, len(got), n)
		}
		got = got[:len(got)+m]
	}
	return got
}

func (e *end) done(ids ...uint64) {
	e.t.Helper()
	for i, c := range e.wait(len(ids)) {
		if c.Err != nil || c.ID != ids[i] {
			e.t.Fatalf("completion %d: %+v, want ID %d", i, c, ids[i])
		}
	}
}

// A lab is a connection between two ends in this process.
type lab struct {
	client, server *end
	welcome        []byte // as the client got it
	hello          []byte // as the server got it
	listener       Listener
}

// A labConfig says what a lab is made of. Its zero value has 1 MiB of DRAM on both sides.
type labConfig struct {
	queue  QueueConfig
	mem    []byte // of the server
	access Access // of its peer; RemoteRead|RemoteWrite if 0
	recvs  int    // posted by the server, of 4096 bytes each
}

func listenLab(t testing.TB, nic NIC) Listener {
	l, err := nic.Listen(net.JoinHostPort(*labAddress, "0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() }) // again, in some tests
	return l
}

func resolveLab(t testing.TB, nic NIC, to net.Addr) Route {
	r, err := nic.Resolve(labContext(t), to.String())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func connectLab(t testing.TB, nic NIC, cfg labConfig) *lab {
	if cfg.queue.Sends == 0 {
		cfg.queue.Sends = 64
	}
	cfg.queue.Recvs = 16
	if cfg.access == 0 {
		cfg.access = RemoteRead | RemoteWrite
	}
	out := &lab{listener: listenLab(t, nic)}
	accepted := make(chan error, 1)
	go func() {
		req, err := out.listener.Accept()
		if err != nil {
			accepted <- err
			return
		}
		out.hello = req.Private()
		s := newEnd(t, req.Device(), cfg.mem, cfg.access)
		recvs := make([]Work, cfg.recvs)
		for i := range recvs {
			recvs[i] = s.work(OpRecv, uint64(100+i), i*4096, 4096)
		}
		s.q, err = req.Accept(labContext(t), s.dom, cfg.queue, recvs, []byte("welcome"))
		out.server = s
		accepted <- err
	}()
	r := resolveLab(t, nic, out.listener.Addr())
	c := newEnd(t, r.Device(), nil, 0)
	q, welcome, err := r.Connect(labContext(t), c.dom, cfg.queue, []byte("hello"))
	if err := errors.Join(err, <-accepted); err != nil {
		t.Fatal(err)
	}
	c.q = q
	out.client, out.welcome = c, welcome
	return out
}

// padded says that got is want with zeros behind, as the connection manager passes it.
func padded(got []byte, want string) bool {
	rest, ok := bytes.CutPrefix(got, []byte(want))
	return ok && len(bytes.Trim(rest, "\x00")) == 0
}

func TestRDMAConnect(t *testing.T) {
	nic := openLab(t)
	l := connectLab(t, nic, labConfig{})
	if !padded(l.hello, "hello") || !padded(l.welcome, "welcome") {
		t.Errorf("private data %q, %q", l.hello, l.welcome)
	}
	if l.client.dev != l.server.dev || l.client.dev.Name() == "" {
		t.Errorf("devices %v, %v: want one, with a name", l.client.dev, l.server.dev)
	}
}

func TestRDMAListenEverywhere(t *testing.T) {
	nic := openLab(t)
	l, err := nic.Listen(":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	rejected := make(chan error, 1)
	go func() {
		req, err := l.Accept()
		if err == nil {
			err = req.Reject([]byte("not today"))
		}
		rejected <- err
	}()
	r, err := nic.Resolve(labContext(t), net.JoinHostPort(*labAddress, port))
	if err != nil {
		t.Fatal(err)
	}
	checkRejected(t, r, "not today")
	if err := <-rejected; err != nil {
		t.Error(err)
	}
}

func TestRDMANobodyListens(t *testing.T) {
	nic := openLab(t)
	l := listenLab(t, nic)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	checkRejected(t, resolveLab(t, nic, l.Addr()), "")
}

func checkRejected(t *testing.T, r Route, reason string) {
	t.Helper()
	dom, err := r.Device().NewDomain()
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = r.Connect(labContext(t), dom, QueueConfig{}, nil)
	var rejected *RejectedError
	if !errors.As(err, &rejected) {
		t.Fatalf("connect: %v, want a RejectedError", err)
	}
	if reason == "" && len(rejected.Private) != 0 || !padded(rejected.Private, reason) {
		t.Errorf("rejected with %q, want %q", rejected.Private, reason)
	}
	if err := dom.Close(); err != nil {
		t.Errorf("close the domain of a connection that was refused: %v", err)
	}
}

// A peer that never answers is given up when the context is done.
func TestRDMAConnectGivesUp(t *testing.T) {
	nic := openLab(t)
	l := listenLab(t, nic)
	r := resolveLab(t, nic, l.Addr())
	dom, err := r.Device().NewDomain()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(labContext(t))
	asked := make(chan Request, 1)
	go func() {
		req, err := l.Accept()
		if err != nil {
			t.Error(err)
		}
		asked <- req
		cancel()
	}()
	if _, _, err := r.Connect(ctx, dom, QueueConfig{}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("connect: %v, want that it was canceled", err)
	}
	if req := <-asked; req != nil {
		_ = req.Reject(nil) // too late, perhaps
	}
	if err := dom.Close(); err != nil {
		t.Error(err)
	}
	if _, err := nic.Resolve(ctx, l.Addr().String()); !errors.Is(err, context.Canceled) {
		t.Errorf("resolve: %v, want that it was canceled", err)
	}
}

func TestRDMAWriteReadSend(t *testing.T) {
	nic := openLab(t)
	for _, inline := range []int{0, 64} {
		t.Run(fmt.Sprintf("inline %d", inline), func(t *testing.T) {
			l := connectLab(t, nic, labConfig{queue: QueueConfig{Inline: inline}, recvs: 4})
			testTransfer(t, l)
		})
	}
}

// testTransfer moves small and large pieces in all ways, over an offset on either side.
func testTransfer(t *testing.T, l *lab) {
	c, s := l.client, l.server
	for i, n := range []int{0, 1, 33, 64, 65, 4096, 70001} {
		want := bytes.Repeat([]byte{byte(i + 1)}, n)
		copy(c.mem[500:], want)
		clear(c.mem[300000:400000])
		c.post(c.work(OpWrite, 1, 500, n).onto(s, 100001).quiet(), c.work(OpRead, 2, 300000, n).onto(s, 100001))
		c.done(2)
		if !bytes.Equal(s.mem[100001:][:n], want) || !bytes.Equal(c.mem[300000:][:n], want) {
			t.Errorf("%d bytes do not arrive, or do not come back", n)
		}
	}
	for i, n := range []int{0, 17, 4096} {
		copy(c.mem, bytes.Repeat([]byte{byte('a' + i)}, n))
		c.post(c.work(OpSend, 7, 0, n))
		c.done(7)
		got := s.wait(1)[0]
		if got.Err != nil || got.Op != OpRecv || got.ID != uint64(100+i) || got.Bytes != n {
			t.Errorf("received %+v, want %d bytes by receive %d", got, n, 100+i)
		}
		if !bytes.Equal(s.mem[i*4096:][:n], c.mem[:n]) {
			t.Errorf("%d bytes do not arrive", n)
		}
	}
}

// A commit is two calls into C: one to post, and one when the completion is there.
func TestRDMACrossings(t *testing.T) {
	nic := openLab(t)
	l := connectLab(t, nic, labConfig{})
	c, s := l.client, l.server
	before := c.q.(*rdmaQueue).Crossings()
	const commits = 20
	for range commits {
		var chain []Work
		for i := range 16 {
			chain = append(chain, c.work(OpWrite, 0, i*4096, 4096).onto(s, i*4096).quiet())
		}
		chain = append(chain, c.work(OpRead, 9, 900000, 1).onto(s, 0))
		c.post(chain...)
		c.done(9)
	}
	if got := c.q.(*rdmaQueue).Crossings() - before; got != 2*commits {
		t.Errorf("%d crossings for %d commits, want %d", got, commits, 2*commits)
	}
}

// More completions than cross at once, or than the caller takes, are not lost, also when
// some are polled for.
func TestRDMAManyCompletions(t *testing.T) {
	nic := openLab(t)
	l := connectLab(t, nic, labConfig{queue: QueueConfig{Sends: 200}})
	c := l.client
	next := uint64(1)
	for _, taken := range []int{1, 7, 64, 65, 200} {
		chain := make([]Work, 200)
		for i := range chain {
			chain[i] = c.work(OpWrite, next+uint64(i), 0, 1).onto(l.server, i)
		}
		c.post(chain...)
		done := make([]Completion, taken)
		ctx := labContext(t)
		for left, polled := len(chain), false; left > 0; polled = !polled {
			n, err := c.q.Wait(ctx, done)
			if polled && err == nil && left > n {
				err = checkDone(done[:n], &next)
				left -= n
				if err == nil {
					n, err = c.q.Poll(done, time.Second)
				}
			}
			if err != nil || n == 0 {
				t.Fatalf("%d completions are missing: %v", left, err)
			}
			if err := checkDone(done[:n], &next); err != nil {
				t.Fatal(err)
			}
			left -= n
		}
	}
}

func checkDone(done []Completion, next *uint64) error {
	for _, c := range done {
		if c.Err != nil || c.ID != *next || c.Op != OpWrite {
			return fmt.Errorf("completion %+v, want %d", c, *next)
		}
		*next++
	}
	return nil
}

// Misuse is an error before it gets to the device.
func TestRDMAMisuse(t *testing.T) {
	nic := openLab(t)
	l := connectLab(t, nic, labConfig{queue: QueueConfig{Sends: 4}})
	c, s := l.client, l.server
	w := c.work(OpWrite, 1, 0, 8).onto(s, 0)
	tests := map[string]func() error{
		"too many":        func() error { return c.q.Post([]Work{w, w, w, w, w}) },
		"receive as send": func() error { return c.q.Post([]Work{c.work(OpRecv, 1, 0, 8)}) },
		"send as receive": func() error { return c.q.PostRecv([]Work{w}) },
		"no operation":    func() error { return c.q.Post([]Work{c.work(0, 1, 0, 8)}) },
		"no FLUSH":        func() error { return c.q.Post([]Work{Work{Op: OpFlush, Length: 8}.onto(s, 0)}) },
		"a large ID":      func() error { return c.q.Post([]Work{c.work(OpWrite, 1<<60, 0, 8)}) },
	}
	for name, post := range tests {
		if err := post(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	c.post(w)
	c.done(1)

	r := resolveLab(t, nic, l.listener.Addr())
	if _, _, err := r.Connect(labContext(t), c.dom, QueueConfig{Sends: 1 << 20}, nil); err == nil {
		t.Error("a queue pair of 1<<20 sends: no error")
	}
	if _, _, err := r.Connect(labContext(t), c.dom, QueueConfig{}, nil); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a route used twice: %v", err)
	}
	r = resolveLab(t, nic, l.listener.Addr())
	if _, _, err := r.Connect(labContext(t), c.dom, QueueConfig{}, make([]byte, MaxHello+1)); err == nil {
		t.Error("too much private data: no error")
	}
}

// An MR is reached with its key, by queue pairs of its domain, within its bounds, and as
// it allows; all else breaks the queue pair and changes nothing.
func TestRDMARefused(t *testing.T) {
	nic := openLab(t)
	tests := map[string]func(c, s *end) Work{
		"wrong key": func(c, s *end) Work {
			w := c.work(OpWrite, 1, 0, 8).onto(s, 0)
			w.RKey ^= 0x1234500
			return w
		},
		"behind the end":  func(c, s *end) Work { return c.work(OpWrite, 1, 0, 8).onto(s, len(s.mem)-7) },
		"before it":       func(c, s *end) Work { return c.work(OpWrite, 1, 0, 8).onto(s, -1) },
		"another domain":  func(c, s *end) Work { return c.work(OpWrite, 1, 0, 8).onto(newEnd(c.t, s.dev, nil, RemoteWrite), 0) },
		"not for writing": func(c, s *end) Work { return c.work(OpWrite, 1, 0, 8).onto(&end{mr: registered(s, RemoteRead)}, 0) },
		"not for reading": func(c, s *end) Work { return c.work(OpRead, 1, 0, 8).onto(&end{mr: registered(s, RemoteWrite)}, 0) },
		"closed": func(c, s *end) Work {
			mr := registered(s, RemoteWrite)
			w := c.work(OpWrite, 1, 0, 8).onto(&end{mr: mr}, 0)
			if err := mr.Close(); err != nil {
				c.t.Error(err)
			}
			return w
		},
	}
	for name, work := range tests {
		t.Run(name, func(t *testing.T) {
			l := connectLab(t, nic, labConfig{})
			c, s := l.client, l.server
			c.t, s.t = t, t
			copy(c.mem, "xxxxxxxx")
			before := bytes.Clone(s.mem)
			c.post(work(c, s), c.work(OpWrite, 2, 0, 8).onto(s, 0))
			for i, got := range c.wait(2) {
				if !errors.Is(got.Err, ErrBroken) || got.ID != uint64(i+1) || got.Op == 0 {
					t.Errorf("completion %+v, want %d with ErrBroken", got, i+1)
				}
			}
			if !bytes.Equal(s.mem, before) {
				t.Error("memory changed")
			}
			if n, err := c.q.Wait(labContext(t), make([]Completion, 1)); !errors.Is(err, ErrBroken) {
				t.Errorf("Wait = %d, %v, want ErrBroken", n, err)
			}
		})
	}
}

// registered is the memory of e once more, until the test is over.
func registered(e *end, access Access) MR {
	mr, err := e.dom.Register(e.mem, access)
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() {
		if err := mr.Close(); err != nil {
			e.t.Error(err)
		}
	})
	return mr
}
