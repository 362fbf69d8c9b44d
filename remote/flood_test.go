package remote_test

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rpmemfs/rpmemfs/internal/pki"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/region"
	"github.com/rpmemfs/rpmemfs/remote"
)

// idlers is how many connections a flood holds open at a time: both
// ends are in this process, but the node keeps few of them.
const idlers = 10_000

// A flood makes connections, each by say, and holds the newest of them open, until it
// is stopped.
type flood struct {
	name    string
	address string
	hold    int
	say     func(net.Conn) // its errors mean nothing: the node cuts these off

	made atomic.Int64
}

func (f *flood) run(stop <-chan struct{}) {
	const makers = 4
	var all sync.WaitGroup
	for range makers {
		all.Go(func() { f.make(stop, f.hold/makers) })
	}
	all.Wait()
}

// make makes connections, and holds the last n.
func (f *flood) make(stop <-chan struct{}, n int) {
	ring := make([]net.Conn, n)
	closeAt := func(i int) {
		if ring[i] != nil {
			_ = ring[i].Close()
			ring[i] = nil
		}
	}
	dialer := net.Dialer{Timeout: patience}
	for i := 0; ; i = (i + 1) % n {
		select {
		case <-stop:
			for i := range ring {
				closeAt(i)
			}
			return
		default:
		}
		closeAt(i)
		nc, err := dialer.Dial("tcp", f.address)
		if err != nil {
			continue // the node's backlog is full of us
		}
		ring[i] = nc
		f.made.Add(1)
		if f.say != nil {
			_ = nc.SetDeadline(time.Now().Add(patience))
			f.say(nc)
		}
	}
}

// trickle says b byte by byte, and never the last one.
func trickle(b []byte) func(net.Conn) {
	return func(nc net.Conn) {
		go func() {
			for i := range b[:len(b)-1] {
				if _, err := nc.Write(b[i : i+1]); err != nil {
					return
				}
				time.Sleep(50 * time.Millisecond) // slowness is the attack
			}
		}()
	}
}

// Strangers that flood both ports of a memory node, as their kind may, keep nobody out:
// a session goes on committing, new ones are opened, and nothing of the pool changes
// but what these do.
func TestFlood(t *testing.T) {
	raiseFiles(t, idlers+5000) // the node holds few of them
	dir := certificates(t, pki.Request{Name: "alice"}, pki.Request{Name: "bob"}, pki.Request{Name: "mallory"})
	files, err := pki.Find(dir+"/node", pki.Server)
	if err != nil {
		t.Fatal(err)
	}
	n := &memoryNode{TB: t, lease: long}
	if n.tls, err = pki.ServerConfig(files); err != nil {
		t.Fatal(err)
	}
	n.create()
	alice := n.open(remote.Config{TLS: clientTLS(t, dir, "alice"), Create: true})
	f := mustCreate(t, alice, "f", fileInode())
	g, err := alice.Grant(ctx, region.ID(f.Ino), 10, 10)
	if err != nil {
		t.Fatal(err)
	}
	bob := n.open(remote.Config{TLS: clientTLS(t, dir, "bob"), Create: true})
	quiet := mustCreate(t, bob, "quiet", fileInode())
	theirs, err := bob.Grant(ctx, region.ID(quiet.Ino), 10, 10)
	if err != nil {
		t.Fatal(err)
	}
	if err := bob.Close(); err != nil {
		t.Fatal(err)
	}
	untouched := poolBytes(t, n, theirs.Runs[0])

	wrong := clientTLS(t, certificates(t, pki.Request{Name: "alice"}), "alice")
	wrong.InsecureSkipVerify = true
	none := &tls.Config{InsecureSkipVerify: true}
	mallory := clientTLS(t, dir, "mallory")
	mallory.ServerName = host
	shake := func(cfg *tls.Config, then func(net.Conn)) func(net.Conn) {
		return func(nc net.Conn) {
			c := tls.Client(nc, cfg)
			if c.Handshake() == nil && then != nil {
				then(c)
			}
		}
	}
	preface := append([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 0, 0, 0, 4, 0, 0, 0, 0, 0)
	whole := func(b []byte, then func(net.Conn)) func(net.Conn) {
		return func(nc net.Conn) {
			if _, err := nc.Write(b); err == nil && then != nil {
				then(nc)
			}
		}
	}
	for _, attack := range [][]*flood{
		{{name: "idle", address: n.control, hold: idlers / 2}, {name: "idle", address: n.data, hold: idlers / 2}},
		{{name: "no certificate", address: n.control, hold: 300, say: shake(none, nil)}, {name: "no certificate", address: n.data, hold: 300, say: shake(none, nil)}},
		{{name: "wrong certificate", address: n.control, hold: 300, say: shake(wrong, nil)}, {name: "wrong certificate", address: n.data, hold: 300, say: shake(wrong, nil)}},
		{
			{name: "slow handshake", address: n.control, hold: 1000, say: trickle(clientHello(t))},
			{name: "slow handshake", address: n.data, hold: 1000, say: trickle(clientHello(t))},
		},
		{
			// Who has a certificate comes further.
			{name: "silent after the preface", address: n.control, hold: 2000, say: shake(mallory, whole(preface, nil))},
			{name: "slow frames", address: n.control, hold: 500, say: shake(mallory, whole(preface, trickle(make([]byte, 2000))))},
			{name: "slow hello", address: n.data, hold: 500, say: shake(mallory, trickle(make([]byte, 80)))},
			{name: "a hello of nobody", address: n.data, hold: 500, say: shake(mallory, whole(make([]byte, 80), nil))},
		},
	} {
		t.Run(attack[0].name, func(t *testing.T) {
			stop := make(chan struct{})
			var floods sync.WaitGroup
			for _, f := range attack {
				floods.Go(func() { f.run(stop) })
			}
			defer floods.Wait()
			defer close(stop)
			deadline := time.Now().Add(patience)
			for _, f := range attack {
				for f.made.Load() < int64(f.hold) && time.Now().Before(deadline) {
					time.Sleep(time.Millisecond)
				}
			}
			page := bytes.Repeat([]byte{byte(attack[0].hold)}, region.PageSize)
			for i := range 20 {
				page[0] = byte(i)
				if err := alice.Conn().Write(ctx, page, g.Runs[0].Start.Offset()); err != nil {
					t.Fatal(err)
				}
				if err := alice.Conn().Flush(ctx); err != nil {
					t.Fatal(err)
				}
				if _, err := alice.Lookup(ctx, namespace.Root, "f"); err != nil {
					t.Fatal(err)
				}
			}
			for i := range 3 {
				begun := time.Now()
				var p *remote.Pool
				var err error
				// Strangers drop each other, and on a busy machine him with them.
				for p == nil && time.Since(begun) < patience {
					p, err = remote.Dial(ctx, remote.Config{Address: n.control, TLS: clientTLS(t, dir, "bob")})
				}
				if err != nil {
					t.Fatalf("the %dth new session: %v", i, err)
				}
				t.Logf("a new session took %v", time.Since(begun))
				if err := p.Close(); err != nil {
					t.Error(err)
				}
			}
			if got := poolBytes(t, n, g.Runs[0])[:region.PageSize]; !bytes.Equal(got, page) {
				t.Error("what was flushed is not there")
			}
			for _, f := range attack {
				t.Logf("%s on %s: %d connections", f.name, f.address, f.made.Load())
			}
		})
	}
	if !bytes.Equal(poolBytes(t, n, theirs.Runs[0]), untouched) {
		t.Error("bytes of others changed")
	}
	if err := alice.Err(); err != nil {
		t.Error(err)
	}
}

// raiseFiles lets this process have n open files.
func raiseFiles(t *testing.T, n uint64) {
	t.Helper()
	var had syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &had); err != nil {
		t.Fatal(err)
	}
	if had.Cur >= n {
		return
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: n, Max: max(n, had.Max)}); err != nil {
		t.Skipf("%d open files: %v", n, err)
	}
	t.Cleanup(func() { _ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &had) })
}

// poolBytes reads a run of slots past all sessions.
func poolBytes(t *testing.T, n *memoryNode, r region.Run) []byte {
	t.Helper()
	b := make([]byte, r.N*region.PageSize)
	if err := n.pool.ReadAt(b, r.Start.Offset()); err != nil {
		t.Fatal(err)
	}
	return b
}

// clientHello returns the first message of a TLS handshake.
func clientHello(t *testing.T) []byte {
	t.Helper()
	here, there := net.Pipe()
	defer there.Close()
	go func() {
		defer here.Close()
		_ = tls.Client(here, &tls.Config{InsecureSkipVerify: true}).Handshake()
	}()
	head := make([]byte, 5)
	if _, err := io.ReadFull(there, head); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, int(head[3])<<8|int(head[4]))
	if _, err := io.ReadFull(there, body); err != nil {
		t.Fatal(err)
	}
	return append(head, body...)
}
