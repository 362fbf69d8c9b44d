package model_test

import (
	"context"
	"errors"
	"flag"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/rpmemfs/rpmemfs/rdmacache/verbs"
	"github.com/rpmemfs/rpmemfs/rdmacache/verbs/model"
)

var seed = flag.Uint64("seed", 1, "seed of the random tests")

const size = 64 << 10

// A side is one end of a connection, with memory that the peer may reach.
type side struct {
	host   *model.Host
	domain verbs.Domain
	queue  verbs.Queue
	mem    []byte
	mr     verbs.MR
}

type setup struct {
	cfg            model.Config
	client, server model.HostOptions
	queue          verbs.QueueConfig
	noFlush        bool         // in the server's queue
	mem            []byte       // the server's; nil: ordinary memory
	access         verbs.Access // to it; 0: reading and writing
	recvs          int          // that the server posts, of 64 bytes from byte 0 of its memory
}

// A link is two sides that are connected.
type link struct {
	t              *testing.T
	fabric         *model.Fabric
	client, server *side
}

func newSide(t *testing.T, h *model.Host, mem []byte, access verbs.Access) *side {
	t.Helper()
	s := &side{host: h, mem: mem}
	var err error
	if s.domain, err = h.NewDomain(); err != nil {
		t.Fatal(err)
	}
	if s.mr, err = s.domain.Register(mem, access); err != nil {
		t.Fatal(err)
	}
	return s
}

func connect(t *testing.T, s setup) *link {
	t.Helper()
	if s.queue.Sends == 0 {
		s.queue.Sends, s.queue.Recvs = 64, 64
	}
	if s.access == 0 {
		s.access = verbs.RemoteRead | verbs.RemoteWrite
	}
	if s.mem == nil {
		s.mem = make([]byte, size)
	}
	f := model.New(s.cfg)
	l := &link{t: t, fabric: f}
	l.server = newSide(t, f.Host("server", s.server), s.mem, s.access)
	l.client = newSide(t, f.Host("client", s.client), make([]byte, size), 0)
	listener, err := l.server.host.Listen(":7471")
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan error, 1)
	go func() {
		req, err := listener.Accept()
		if err == nil {
			var recvs []verbs.Work
			for i := range s.recvs {
				recvs = append(recvs, verbs.Work{ID: uint64(i), Local: s.mem[64*i : 64*i+64], LKey: l.server.mr.LKey()})
			}
			cfg := s.queue
			cfg.Flush = cfg.Flush && !s.noFlush
			l.server.queue, err = req.Accept(context.Background(), l.server.domain, cfg, recvs, nil)
		}
		accepted <- err
	}()
	route, err := l.client.host.Resolve(context.Background(), "server:7471")
	if err == nil {
		l.client.queue, _, err = route.Connect(context.Background(), l.client.domain, s.queue, nil)
	}
	if err := errors.Join(err, <-accepted, listener.Close()); err != nil {
		t.Fatal(err)
	}
	return l
}

// close closes what connect made, in order.
func (l *link) close() {
	l.t.Helper()
	for _, s := range []*side{l.client, l.server} {
		if err := errors.Join(s.queue.Close(), s.mr.Close(), s.domain.Close()); err != nil {
			l.t.Errorf("close %s: %v", s.host.Name(), err)
		}
	}
}

// write is a signaled Write of n bytes at byte at, the same on both sides.
func (l *link) write(at, n int) verbs.Work {
	return verbs.Work{
		Op: verbs.OpWrite, Signaled: true, ID: uint64(at), Local: l.client.mem[at : at+n], LKey: l.client.mr.LKey(),
		RKey: l.server.mr.RKey(), Remote: l.server.mr.Address() + uint64(at),
	}
}

func (l *link) op(op verbs.Op, at, n int) verbs.Work {
	w := l.write(at, n)
	w.Op = op
	if op == verbs.OpFlush {
		w.Local, w.Length = nil, uint32(n)
	}
	return w
}

// finish waits for n completions of a side.
func (l *link) finish(s *side, n int) []verbs.Completion {
	l.t.Helper()
	var all []verbs.Completion
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for len(all) < n {
		done := make([]verbs.Completion, 16)
		k, err := s.queue.Wait(ctx, done)
		if k == 0 || err != nil {
			l.t.Fatalf("Wait = %d, %v after %d of %d completions", k, err, len(all), n)
		}
		all = append(all, done[:k]...)
	}
	return all
}

// broken says that Wait of a side returns ErrBroken, with no completion left.
func (l *link) broken(s *side) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for {
		n, err := s.queue.Wait(ctx, make([]verbs.Completion, 16))
		if errors.Is(err, verbs.ErrBroken) {
			return
		}
		if n == 0 {
			l.t.Fatalf("Wait = %d, %v, want ErrBroken", n, err)
		}
	}
}

// look lets fn see memory as it is now. What lands does so before or after.
func (l *link) look(fn func()) {
	l.fabric.Stats()
	fn()
	l.fabric.Stats()
}

func fill(p []byte, rng *rand.Rand) {
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
}

func hostileConfig(seed uint64) model.Config {
	delays := rand.New(rand.NewPCG(seed, 7))
	return model.Config{
		Rand: rand.New(rand.NewPCG(seed, 8)),
		Late: 50 * time.Millisecond,
		Delay: func(verbs.Op, int) time.Duration {
			return time.Duration(delays.IntN(200)) * time.Microsecond
		},
	}
}
