//go:build linux && cgo && rdma

package verbs

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Nothing that arrives changes memory when Close of its MR has returned, whatever is under
// way. The same of the queue pair.
func TestRDMACloseUnderLoad(t *testing.T) {
	nic := openLab(t)
	tests := map[string]func(s *end) error{
		"MR":         func(s *end) error { return s.mr.Close() },
		"queue pair": func(s *end) error { return s.q.Close() },
	}
	for name, end := range tests {
		t.Run(name, func(t *testing.T) {
			for range 5 {
				l := connectLab(t, nic, labConfig{})
				written, broken := make(chan struct{}), make(chan int, 1)
				go func() { broken <- load(l.client, l.server, written) }()
				select {
				case <-written:
				case <-time.After(within):
					t.Fatal("nothing is written")
				}
				if err := end(l.server); err != nil {
					t.Fatal(err)
				}
				before := bytes.Clone(l.server.mem)
				select {
				case done := <-broken: // so everything that was under way is over
					t.Logf("after %d writes", done)
				case <-time.After(within):
					t.Fatal("the writer does not notice")
				}
				if !bytes.Equal(before, l.server.mem) {
					t.Error("memory changed after Close")
				}
			}
		})
	}
}

// load writes as fast as it goes until that fails. It closes written when the first ones
// arrived, and returns how many did.
func load(c, s *end, written chan struct{}) int {
	const flight = 32
	var (
		next, done uint64
		batch      [flight]Work
		got        [flight]Completion
	)
	for room := flight; ; {
		for i := range room {
			next++
			page := int(next%flight) * 4096
			c.mem[page], c.mem[page+4095] = byte(next>>5), byte(next>>5)
			batch[i] = c.work(OpWrite, next, page, 4096).onto(s, int(next%200)*4096)
		}
		if err := c.q.Post(batch[:room]); err != nil {
			return int(done)
		}
		n, err := c.q.Wait(labContext(c.t), got[:])
		if err != nil || n == 0 {
			return int(done)
		}
		for _, comp := range got[:n] {
			if comp.Err != nil {
				return int(done)
			}
			if done++; done == flight {
				close(written)
			}
		}
		room = n
	}
}

func TestRDMAWaitEnds(t *testing.T) {
	nic := openLab(t)
	t.Run("context", func(t *testing.T) {
		l := connectLab(t, nic, labConfig{})
		ctx, cancel := context.WithCancel(labContext(t))
		time.AfterFunc(time.Millisecond, cancel)
		var done [1]Completion
		for range 3 { // also when it is done before
			if n, err := l.client.q.Wait(ctx, done[:]); n != 0 || err != nil {
				t.Errorf("Wait = %d, %v, want none", n, err)
			}
		}
		l.client.post(l.client.work(OpWrite, 5, 0, 8).onto(l.server, 0))
		l.client.done(5)
	})
	t.Run("close", func(t *testing.T) {
		l := connectLab(t, nic, labConfig{})
		ended := make(chan error, 1)
		go func() {
			_, err := l.client.q.Wait(context.Background(), make([]Completion, 1))
			ended <- err
		}()
		if err := errors.Join(l.client.q.Close(), l.client.q.Close()); err != nil {
			t.Error(err)
		}
		checkEnds(t, ended)
		w := []Work{l.client.work(OpWrite, 1, 0, 8).onto(l.server, 0)}
		if err := l.client.q.Post(w); !errors.Is(err, ErrBroken) {
			t.Errorf("Post = %v, want ErrBroken", err)
		}
		if _, err := l.client.q.Poll(make([]Completion, 1), 0); !errors.Is(err, ErrBroken) {
			t.Errorf("Poll = %v, want ErrBroken", err)
		}
	})
	t.Run("peer", func(t *testing.T) {
		l := connectLab(t, nic, labConfig{recvs: 2})
		ended := make(chan error, 1)
		go func() {
			done, n := make([]Completion, 4), 0
			for {
				m, err := l.server.q.Wait(context.Background(), done)
				for _, c := range done[:m] {
					if c.Err == nil || c.Op != OpRecv {
						t.Errorf("completion %+v, want a failed receive", c)
					}
				}
				if n += m; err != nil || n > 2 {
					ended <- err
					return
				}
			}
		}()
		if err := l.client.q.Close(); err != nil {
			t.Error(err)
		}
		checkEnds(t, ended)
	})
	t.Run("listener", func(t *testing.T) {
		l := listenLab(t, nic)
		ended := make(chan error, 1)
		go func() {
			_, err := l.Accept()
			ended <- err
		}()
		if err := errors.Join(l.Close(), l.Close()); err != nil {
			t.Error(err)
		}
		select {
		case err := <-ended:
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("Accept: %v, want net.ErrClosed", err)
			}
		case <-time.After(within):
			t.Fatal("Accept does not end")
		}
	})
}

func checkEnds(t *testing.T, ended <-chan error) {
	t.Helper()
	select {
	case err := <-ended:
		if !errors.Is(err, ErrBroken) {
			t.Errorf("Wait: %v, want ErrBroken", err)
		}
	case <-time.After(within):
		t.Fatal("Wait does not end")
	}
}

// Connections that come and go, or do not come about, leave no descriptor behind.
func TestRDMANoLeak(t *testing.T) {
	nic := openLab(t)
	cycle := func(t *testing.T) {
		l := connectLab(t, nic, labConfig{})
		l.client.post(l.client.work(OpWrite, 5, 0, 8).onto(l.server, 0))
		l.client.done(5)
		r := resolveLab(t, nic, l.listener.Addr())
		if _, _, err := r.Connect(labContext(t), l.client.dom, QueueConfig{Sends: 30000, Recvs: 30000}, make([]byte, 100)); err == nil {
			t.Error("too much private data: no error")
		}
		r = resolveLab(t, nic, l.listener.Addr())
		if err := errors.Join(r.Close(), r.Close()); err != nil {
			t.Error(err)
		}
		go func() {
			if req, err := l.listener.Accept(); err == nil {
				_ = req.Reject([]byte("no")) // seen by the peer
			}
		}()
		checkRejected(t, resolveLab(t, nic, l.listener.Addr()), "no")
	}
	t.Run("first", cycle)
	before := descriptors(t)
	for range 30 {
		if !t.Run("again", cycle) {
			break
		}
	}
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

func descriptors(t *testing.T) int {
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// A domain outlives its MRs and queue pairs; nothing is closed by closing it too early.
func TestRDMADomainInUse(t *testing.T) {
	nic := openLab(t)
	l := connectLab(t, nic, labConfig{})
	if err := l.server.dom.Close(); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("close a domain in use: %v, want EBUSY", err)
	}
	l.client.post(l.client.work(OpWrite, 5, 0, 8).onto(l.server, 0))
	l.client.done(5)
}

// mapLab maps device-dax memory, or skips.
func mapLab(t testing.TB, size int) []byte {
	if *labDevice == "" {
		t.Skip("no -lab.device")
	}
	return mapFile(t, *labDevice, size)
}

func mapFile(t testing.TB, name string, size int) []byte {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	mem, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(mem) })
	return mem
}

// Which memory may be registered for persistent flushes is the kernel's knowledge; what
// it refuses is reported as unsupported, and may be registered without.
func TestRDMARegister(t *testing.T) {
	nic := openLab(t)
	dev := resolveLab(t, nic, listenLab(t, nic).Addr()).Device()
	const size = 4 << 20
	tmp := filepath.Join("/dev/shm", "rdma_test")
	if err := os.WriteFile(tmp, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(tmp) })
	tests := []struct {
		name    string
		mem     func(t testing.TB) []byte
		flushes bool
	}{
		{"DRAM", func(t testing.TB) []byte { return mapAnonymous(t, size) }, false},
		{"tmpfs", func(t testing.TB) []byte { return mapFile(t, tmp, size) }, false},
		{"devdax", func(t testing.TB) []byte { return mapLab(t, size) }, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			mem := test.mem(t)
			dom, err := dev.NewDomain()
			if err != nil {
				t.Fatal(err)
			}
			mr, err := dom.Register(mem, RemoteRead|RemoteWrite)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(mr.Close(), mr.Close()); err != nil {
				t.Error(err)
			}
			mr, err = dom.Register(mem, RemoteRead|RemoteWrite|RemoteFlush)
			t.Log(err)
			switch {
			case err == nil && !(test.flushes && dev.Flushes()):
				t.Error("registered for persistent flushes")
			case err != nil && !errors.Is(err, errors.ErrUnsupported):
				t.Errorf("%v does not match ErrUnsupported", err)
			case err != nil && test.flushes && dev.Flushes():
				t.Error(err)
			}
			if err == nil {
				err = mr.Close()
			} else {
				err = nil
			}
			if err := errors.Join(err, dom.Close(), dom.Close()); err != nil {
				t.Error(err)
			}
			if _, err := dom.Register(mem, 0); err == nil {
				t.Error("registered in a closed domain")
			}
		})
	}
}

// Memory that is locked beyond the limit is refused with what to raise.
func TestRDMARegisterLimit(t *testing.T) {
	err := &registerError{4096, RemoteWrite, syscall.ENOMEM}
	if errors.Is(err, errors.ErrUnsupported) || !errors.Is(err, syscall.ENOMEM) || !strings.Contains(err.Error(), "LimitMEMLOCK") {
		t.Errorf("%v", err)
	}
}

// FLUSH goes with writes before it, by one doorbell; a READ after it, too.
func TestRDMAFlush(t *testing.T) {
	nic := openLab(t)
	dev := resolveLab(t, nic, listenLab(t, nic).Addr()).Device()
	if !dev.Flushes() {
		dom, err := dev.NewDomain()
		if err != nil {
			t.Fatal(err)
		}
		r := resolveLab(t, nic, listenLab(t, nic).Addr())
		if _, _, err := r.Connect(labContext(t), dom, QueueConfig{Flush: true}, nil); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("a queue pair with FLUSH: %v, want ErrUnsupported", err)
		}
		if err := dom.Close(); err != nil {
			t.Error(err)
		}
		t.Skip(dev.Name(), "has no FLUSH, or the library has not")
	}
	mem := mapLab(t, 4<<20)
	l := connectLab(t, nic, labConfig{
		queue:  QueueConfig{Flush: true, Inline: 64},
		mem:    mem,
		access: RemoteRead | RemoteWrite | RemoteFlush,
		recvs:  4,
	})
	testTransfer(t, l)
	c, s := l.client, l.server
	flush := func(id uint64, off, n int) Work {
		return Work{Op: OpFlush, Signaled: true, ID: id, Length: uint32(n)}.onto(s, off)
	}
	for round := range 10 {
		copy(c.mem, bytes.Repeat([]byte{byte(round + 1)}, 16*4096))
		before := c.q.(*rdmaQueue).Crossings()
		var chain []Work
		for i := range 16 {
			chain = append(chain, c.work(OpWrite, 0, i*4096, 4096).onto(s, i*8192).quiet())
		}
		for i := range 16 { // several are under way at once
			chain = append(chain, flush(uint64(i), i*8192, 4096).quiet())
		}
		chain = append(chain, flush(77, 0, 16*8192))
		c.post(chain...)
		c.done(77)
		if got := c.q.(*rdmaQueue).Crossings() - before; got != 2 {
			t.Errorf("%d crossings, want 2", got)
		}
		for i := range 16 {
			if !bytes.Equal(s.mem[i*8192:][:4096], c.mem[i*4096:][:4096]) {
				t.Fatalf("round %d: page %d is not there", round, i)
			}
		}
	}
	// A flush of what is not registered for it breaks the queue pair.
	w := flush(5, 0, 4096)
	w.RKey = registered(s, RemoteWrite|RemoteRead).RKey()
	c.post(w)
	if got := c.wait(1)[0]; !errors.Is(got.Err, ErrBroken) || got.Op != OpFlush {
		t.Errorf("completion %+v, want a broken queue pair", got)
	}
}

func TestRDMADevices(t *testing.T) {
	devices, err := Devices()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range devices {
		t.Logf("%+v", d)
	}
	nic := openLab(t)
	dev := resolveLab(t, nic, listenLab(t, nic).Addr()).Device()
	for _, d := range devices {
		if d.Name != dev.Name() {
			continue
		}
		if d.Err != nil || d.Flush != dev.Flushes() || d.QueueDepth <= 0 || d.MaxMR == 0 || len(d.Ports) == 0 {
			t.Fatalf("%+v", d)
		}
		if p := d.Ports[0]; p.State != "active" || p.MTU < 256 || p.LinkLayer == "" {
			t.Errorf("%+v", p)
		}
		return
	}
	t.Errorf("%s is not listed", dev.Name())
}
