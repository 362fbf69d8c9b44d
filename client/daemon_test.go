package client

import (
	"errors"
	"flag"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/attach/ring"
	"github.com/rpmemfs/rpmemfs/attach/wire"
)

var seed = flag.Uint64("seed", 1, "seed of the random tests")

// patience bounds every wait of a test.
const patience = 20 * time.Second

// A daemon is the other end of the protocol for one member, message by message, so
// that a test decides what comes when. The file is on tmpfs: nothing here can wait
// for itself.
type daemon struct {
	t     *testing.T
	conn  *net.UnixConn
	hello *wire.Hello
	ring  *ring.Consumer
	n     uint64
	epoch uint64

	sealed uint64 // barrier that sealed the last epoch

	messages chan wire.Message

	// What came through the ring: the newest copy of each page, and its time.
	image map[uint64][]byte
	when  map[uint64]int64
}

// attached makes a file of so many bytes and attaches the process to it.
func attached(t *testing.T, size int64, opts Options) (*Region, *daemon) {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "rpmemfs-client-")
	if err != nil {
		t.Skipf("no tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	file, err := os.OpenFile(filepath.Join(dir, "file"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := file.Truncate(size); err != nil {
		t.Fatal(err)
	}
	at := place{filepath.Join(dir, "socket"), 7}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: at.socket, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	d := &daemon{t: t, messages: make(chan wire.Message, 64), n: 4, epoch: 10,
		image: make(map[uint64][]byte), when: make(map[uint64]int64)}
	accepted := make(chan error, 1)
	go func() { accepted <- d.accept(l) }()
	if opts.Reserve == 0 {
		opts.Reserve = 1 << 30
	}
	if opts.Frames == 0 {
		opts.Frames = 1024
	}
	r, err := attach(file, at, opts)
	if err != nil {
		_ = l.Close()
		t.Fatal(errors.Join(err, <-accepted))
	}
	if err := <-accepted; err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(d.receive)
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		_ = d.conn.Close()
		wg.Wait()
		if err := d.ring.Close(); err != nil {
			t.Error(err)
		}
	})
	return r, d
}

// accept takes a member and welcomes it.
func (d *daemon) accept(l *net.UnixListener) error {
	conn, err := l.AcceptUnix()
	if err != nil {
		return err
	}
	d.conn = conn
	b, oob := make([]byte, wire.MaxMessage), make([]byte, 256)
	n, oobn, _, _, err := conn.ReadMsgUnix(b, oob)
	if err != nil {
		return err
	}
	m, err := wire.Decode(b[:n])
	if err != nil {
		return err
	}
	d.hello = m.(*wire.Hello)
	control, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return err
	}
	fds, err := unix.ParseUnixRights(&control[0])
	if err != nil {
		return err
	}
	defer unix.Close(fds[0])
	if d.ring, err = ring.Open(fds[0], d.hello.Frames); err != nil {
		return err
	}
	return d.trySend(&wire.Welcome{Member: 1, N: d.n, Epoch: d.epoch})
}

func (d *daemon) trySend(m wire.Message) error {
	b, err := wire.Append(nil, m)
	if err == nil {
		_, err = d.conn.Write(b)
	}
	return err
}

func (d *daemon) send(m wire.Message) {
	d.t.Helper()
	if err := d.trySend(m); err != nil {
		d.t.Fatal(err)
	}
}

// receive hands the member's messages over until the connection ends.
func (d *daemon) receive() {
	defer close(d.messages)
	b := make([]byte, wire.MaxMessage)
	for {
		n, err := d.conn.Read(b)
		if err != nil || n == 0 {
			return
		}
		m, err := wire.Decode(b[:n])
		if err != nil {
			d.t.Error(err)
			return
		}
		if _, ok := m.(*wire.Kick); !ok {
			d.messages <- m
		}
	}
}

// next returns the member's next message other than Kick, and empties the ring
// meanwhile.
func (d *daemon) next() wire.Message {
	d.t.Helper()
	for limit := time.Now().Add(patience); time.Now().Before(limit); {
		select {
		case m, ok := <-d.messages:
			if !ok {
				d.t.Fatal("the member hung up")
			}
			return m
		case <-time.After(200 * time.Microsecond):
			d.take()
		}
	}
	d.t.Fatal("no message")
	return nil
}

// want returns the next message, which has to be a T.
func want[T wire.Message](d *daemon) T {
	d.t.Helper()
	m := d.next()
	got, ok := m.(T)
	if !ok {
		d.t.Fatalf("got %T %+v, want %T", m, m, got)
	}
	return got
}

// due begins the next barrier.
func (d *daemon) due(timeout time.Duration) {
	d.t.Helper()
	d.n++
	d.send(&wire.Due{N: d.n, Timeout: uint64(timeout)})
}

// park runs a barrier until all are parked and copied. Nobody stores after it.
func (d *daemon) park(extra ...uint64) *wire.Done {
	d.t.Helper()
	d.due(patience)
	if m := want[*wire.Ready](d); m.N != d.n {
		d.t.Fatalf("ready for %d, want %d", m.N, d.n)
	}
	return d.collect(&wire.Go{N: d.n, Epoch: d.epoch + 1, Pages: extra})
}

// collect sends GO and takes the pages.
func (d *daemon) collect(m *wire.Go) *wire.Done {
	d.t.Helper()
	d.send(m)
	done := want[*wire.Done](d)
	if done.N != d.n || done.Errno != 0 {
		d.t.Fatalf("got %+v", done)
	}
	if d.take(); d.ring.Pos() != done.Upto {
		d.t.Fatalf("the ring ends at %d, DONE says %d", d.ring.Pos(), done.Upto)
	}
	return done
}

// take takes what is in the ring; all of it is of the barrier that is under way.
func (d *daemon) take() {
	d.t.Helper()
	for {
		var e ring.Entry
		p := make([]byte, pageSize)
		ok, err := d.ring.Next(&e, p)
		if err != nil {
			d.t.Fatal(err)
		}
		if !ok {
			return
		}
		if e.Tag >= d.n || e.Tag < d.sealed {
			d.t.Fatalf("page %d: tag %d in barrier %d after %d", e.Page, e.Tag, d.n, d.sealed)
		}
		if e.When >= d.when[e.Page] {
			d.image[e.Page], d.when[e.Page] = p, e.When
		}
	}
}

// release ends the barrier with success.
func (d *daemon) release() {
	d.t.Helper()
	d.epoch++
	d.sealed = d.n
	d.send(&wire.Release{N: d.n, Epoch: d.epoch})
	d.send(&wire.Committed{Epoch: d.epoch})
}

// barrier is park and release.
func (d *daemon) barrier() {
	d.t.Helper()
	d.park()
	d.release()
}

// same fails the test unless what came through the ring is what memory holds.
func (d *daemon) same(mem []byte) {
	d.t.Helper()
	zero := make([]byte, pageSize)
	for at := 0; at < len(mem); at += pageSize {
		got := d.image[uint64(at/pageSize)]
		if got == nil {
			got = zero
		}
		if string(got[:min(pageSize, len(mem)-at)]) != string(mem[at:min(at+pageSize, len(mem))]) {
			d.t.Fatalf("barrier %d: page %d is not what memory holds", d.n, at/pageSize)
		}
	}
}

// tracks skips a test that needs a kernel that tracks stores.
func (d *daemon) tracks() {
	d.t.Helper()
	if d.hello.Flags&wire.Tracks == 0 {
		d.t.Skip("this kernel has no asynchronous userfaultfd write protection (Linux 6.7)")
	}
}
