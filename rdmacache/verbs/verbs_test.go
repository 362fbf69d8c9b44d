package verbs_test

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/rdmacache/conntest"
	"github.com/rpmemfs/rpmemfs/rdmacache/verbs"
	"github.com/rpmemfs/rpmemfs/rdmacache/verbs/model"
)

var seed = flag.Uint64("seed", 1, "seed of the random tests")

// testLog logs to stderr under -v.
func testLog() *slog.Logger {
	if testing.Verbose() {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return nil
}

// A session is a Store that a token opens.
type session struct {
	*conntest.Store
	readOnly bool
	none     bool // not memory
	// scattered: no two pages are in one extent.
	scattered bool
}

func (s *session) ReadOnly() bool { return s.readOnly }

func (s *session) Extent(off int64) (start, end int64, err error) {
	start, end, err = s.Store.Extent(off)
	if err == nil && s.scattered {
		start = off &^ (rdmacache.PageSize - 1)
		end = start + rdmacache.PageSize
	}
	return start, end, err
}

func (s *session) Bytes() []byte {
	if s.none {
		return nil
	}
	return s.Store.Bytes()
}

// tokens gives out tokens of one session, each good once.
type tokens struct {
	session *session

	mu    sync.Mutex
	next  uint64
	valid map[[32]byte]bool
}

func (k *tokens) give(context.Context) ([32]byte, error) {
	select {
	case <-k.session.Done():
		return [32]byte{}, rdmacache.ErrFenced
	default:
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.next++
	var token [32]byte
	binary.LittleEndian.PutUint64(token[:], k.next)
	if k.valid == nil {
		k.valid = make(map[[32]byte]bool)
	}
	k.valid[token] = true
	return token, nil
}

func (k *tokens) Take(token [32]byte) (verbs.Session, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.valid[token] {
		return nil, errors.New("no such token")
	}
	delete(k.valid, token)
	return k.session, nil
}

// A fabric is a memory node and a compute node.
type fabric struct {
	t       testing.TB
	model   *model.Fabric
	client  *model.Host
	server  *model.Host
	opts    model.HostOptions // of the server
	session *session
	tokens  *tokens
	cfg     verbs.ServerConfig
	stop    func()
}

// A way is how a test reaches the memory node.
type way struct {
	method      verbs.Method
	persistence verbs.Persistence
	flush       bool // the devices have FLUSH
	readsDo     bool // a Read makes persistent
}

// ways are those to a medium that is memory.
func ways(volatile bool) []way {
	if volatile {
		return []way{
			{method: verbs.ByRead, flush: true, readsDo: true},
			{method: verbs.ByCPU, persistence: verbs.CPUOnly, flush: true},
		}
	}
	return []way{
		{method: verbs.ByFlush, flush: true},
		{method: verbs.ByRead, persistence: verbs.ADRNoDDIO, readsDo: true},
		{method: verbs.ByCPU},
	}
}

// friendly has no surprises.
func friendly() model.Config { return model.Config{} }

func newFabric(t testing.TB, cfg model.Config, s *conntest.Store, w way) *fabric {
	f := &fabric{
		t: t, model: model.New(cfg), session: &session{Store: s},
		opts: model.HostOptions{Flush: w.flush, ReadPersists: w.readsDo, Media: []model.Medium{s.Device()}},
		cfg:  verbs.ServerConfig{Persistence: w.persistence, Log: testLog()},
	}
	f.tokens = &tokens{session: f.session}
	f.client = f.model.Host("client", model.HostOptions{Flush: w.flush})
	return f
}

const address = "node:7472"

// serve starts the memory node, or one life of it.
func (f *fabric) serve() {
	f.t.Helper()
	f.server = f.model.Host("node", f.opts)
	l, err := f.server.Listen(":7472")
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- verbs.Serve(ctx, l, f.tokens, f.cfg) }()
	f.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			f.t.Error("Serve does not end")
		}
	})
	f.t.Cleanup(f.stop)
}

func (f *fabric) config() verbs.Config {
	return verbs.Config{NIC: f.client, Address: address, Token: f.tokens.give, Log: testLog()}
}

func (f *fabric) dial(cfg verbs.Config) *verbs.Conn {
	f.t.Helper()
	c, err := verbs.Dial(context.Background(), cfg)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = c.Close() })
	return c
}

// connect serves s, and dials.
func connect(t testing.TB, cfg model.Config, s *conntest.Store, w way, change func(*verbs.Config)) (*fabric, *verbs.Conn) {
	t.Helper()
	f := newFabric(t, cfg, s, w)
	f.serve()
	dial := f.config()
	if change != nil {
		change(&dial)
	}
	c := f.dial(dial)
	for _, m := range c.Methods() {
		if m != w.method {
			t.Fatalf("method %v, want %v", m, w.method)
		}
	}
	return f, c
}

// without names what cannot be injected below a transport.
func (w way) without() []conntest.Without {
	none := []conntest.Without{{Test: "WriteFails", Why: "a device stores without asking anybody"}}
	if w.method != verbs.ByCPU {
		none = append(none,
			conntest.Without{Test: "FlushFails", Why: "the device flushes without asking anybody"},
			conntest.Without{Test: "FlushCovers", Why: "the device flushes without asking anybody"})
	}
	return none
}

// A pool on a file is not memory: see TestStreamConformance.
func TestConformance(t *testing.T) {
	for _, m := range []rdmacache.Medium{{Kind: "dax"}, {Kind: "tmpfs", Volatile: true}} {
		for _, w := range ways(m.Volatile) {
			t.Run(fmt.Sprintf("%s/%v", m.Kind, w.method), func(t *testing.T) {
				t.Parallel()
				conformance(t, m, w, nil)
			})
		}
	}
}

// A window of a few pages makes every Write wait for room.
func TestConformanceSmallWindow(t *testing.T) {
	for _, w := range []way{ways(false)[0], ways(false)[2]} {
		t.Run(w.method.String(), func(t *testing.T) {
			conformance(t, rdmacache.Medium{Kind: "dax"}, w, func(c *verbs.Config) { c.Window = 32 << 10 })
		})
	}
}

func TestConformanceQueues(t *testing.T) {
	conformance(t, rdmacache.Medium{Kind: "dax"}, ways(false)[0], func(c *verbs.Config) { c.Queues = 3 })
}

func conformance(t *testing.T, m rdmacache.Medium, w way, change func(*verbs.Config)) {
	conntest.Run(t, *seed, func(t *testing.T, s *conntest.Store) rdmacache.Conn {
		if s.Medium() != m {
			t.Skip("another medium")
		}
		_, c := connect(t, friendly(), s, w, change)
		return c
	}, w.without()...)
}

// modelOptions are those of a client.
func modelOptions(flush bool) model.HostOptions { return model.HostOptions{Flush: flush} }
