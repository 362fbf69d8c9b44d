package verbs_test

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/rdmacache/conntest"
	"github.com/rpmemfs/rpmemfs/rdmacache/verbs"
)

// A raw is an end that says what it likes.
type raw struct {
	t   *testing.T
	q   verbs.Queue
	mem []byte // 8 receives of 4 KiB, then what is sent
	mr  verbs.MR
}

func newRaw(t *testing.T, d verbs.Device) (*raw, verbs.Domain) {
	t.Helper()
	domain, err := d.NewDomain()
	if err != nil {
		t.Fatal(err)
	}
	r := &raw{t: t, mem: make([]byte, 64<<10)}
	if r.mr, err = domain.Register(r.mem, verbs.RemoteWrite); err != nil {
		t.Fatal(err)
	}
	return r, domain
}

var rawConfig = verbs.QueueConfig{Sends: 4096, Recvs: 8}

func (r *raw) receives() []verbs.Work {
	var recvs []verbs.Work
	for i := range 8 {
		recvs = append(recvs, verbs.Work{Op: verbs.OpRecv, ID: uint64(i), Local: r.mem[i<<12 : (i+1)<<12], LKey: r.mr.LKey()})
	}
	return recvs
}

// connectRaw connects with any private data.
func connectRaw(t *testing.T, f *fabric, private []byte) (*raw, error) {
	t.Helper()
	r, domain := newRaw(t, f.client)
	route, err := f.client.Resolve(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	r.q, _, err = route.Connect(t.Context(), domain, rawConfig, private)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = r.q.Close() })
	return r, r.q.PostRecv(r.receives())
}

// say sends b.
func (r *raw) say(b []byte) error {
	copy(r.mem[32<<10:], b)
	return r.q.Post([]verbs.Work{{Op: verbs.OpSend, ID: 100, Local: r.mem[32<<10:][:len(b)], LKey: r.mr.LKey()}})
}

// hear returns the next message.
func (r *raw) hear() (verbs.Decoded, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var done [1]verbs.Completion
	for {
		n, err := r.q.Wait(ctx, done[:])
		switch {
		case err != nil:
			return verbs.Decoded{}, err
		case n == 0:
			return verbs.Decoded{}, ctx.Err()
		case done[0].Err != nil:
			return verbs.Decoded{}, done[0].Err
		case done[0].Op != verbs.OpRecv:
			continue
		}
		m, err := verbs.Decode(r.mem[done[0].ID<<12:][:done[0].Bytes])
		if err == nil {
			err = r.q.PostRecv(r.receives()[done[0].ID : done[0].ID+1])
		}
		return m, err
	}
}

// ask says b and returns the answer.
func (r *raw) ask(b []byte) (verbs.Decoded, error) {
	if err := r.say(b); err != nil {
		return verbs.Decoded{}, err
	}
	return r.hear()
}

// works says that the node serves a client that behaves.
func (f *fabric) works(t *testing.T) {
	t.Helper()
	c := f.dial(f.config())
	if err := errors.Join(c.Write(t.Context(), []byte("x"), 0), c.Flush(t.Context()), c.Close()); err != nil {
		t.Errorf("after that: %v", err)
	}
}

// Who does not greet as agreed is rejected, and so is a token that was used.
func TestHostileHello(t *testing.T) {
	f := newFabric(t, friendly(), conntest.NewStore(8<<20, rdmacache.Medium{Kind: "dax"}), ways(false)[2])
	f.serve()
	token, _ := f.tokens.give(t.Context())
	good := verbs.EncodeHello(token, 1, 1)
	version := bytes.Clone(good)
	version[4] = 2
	for name, private := range map[string][]byte{
		"nothing": nil, "short": good[:20], "noise": bytes.Repeat([]byte{0xa5}, 56), "version": version,
		"token": verbs.EncodeHello([32]byte{31: 1}, 1, 1),
	} {
		var rejected *verbs.RejectedError
		if _, err := connectRaw(t, f, private); !errors.As(err, &rejected) || len(rejected.Private) == 0 {
			t.Errorf("%s: connect = %v, want a rejection that says why", name, err)
		}
	}
	if _, err := connectRaw(t, f, good); err != nil {
		t.Errorf("a good token: %v", err)
	}
	if _, err := connectRaw(t, f, verbs.EncodeHello(token, 1, 2)); err == nil {
		t.Error("a token opened two connections")
	}
	other, _ := f.tokens.give(t.Context())
	if _, err := connectRaw(t, f, verbs.EncodeHello(other, 1, 1)); err == nil {
		t.Error("an attempt that is not larger took the place of the one before")
	}
	f.works(t)
}

// connectGood connects as agreed.
func connectGood(t *testing.T, f *fabric, stream uint64) *raw {
	t.Helper()
	token, err := f.tokens.give(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r, err := connectRaw(t, f, verbs.EncodeHello(token, stream, 1))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

const (
	kindMap, kindMapped, kindError = 1, 2, 5
	codeRange, codeStale           = 4, 9
)

// Messages that make no sense end the connection; what is not the client's is refused.
func TestHostileMessages(t *testing.T) {
	f := newFabric(t, friendly(), conntest.NewStore(8<<20, rdmacache.Medium{Kind: "dax"}), ways(false)[2])
	f.serve()
	damaged := verbs.EncodeMap(1, 0)
	damaged[8] ^= 1
	stream := uint64(10) // of its own for each, since the connection before may not have been forgotten yet
	for name, b := range map[string][]byte{
		"noise": bytes.Repeat([]byte{0xa5}, 100), "short": {1}, "an answer": verbs.EncodeDone(1), "damaged": damaged,
		"nothing": {},
	} {
		stream++
		if m, err := connectGood(t, f, stream).ask(b); err == nil {
			t.Errorf("%s: answered with %+v", name, m)
		}
	}
	r := connectGood(t, f, 2)
	for _, off := range []int64{8 << 20, 1 << 62} {
		if m, err := r.ask(verbs.EncodeMap(1, off)); err != nil || m.Kind != kindError || m.Code != codeRange {
			t.Errorf("MAP of %d = %+v, %v, want ERROR RANGE", off, m, err)
		}
	}
	if m, err := r.ask(verbs.EncodePersist(2, 0, 64)); err != nil || m.Code != codeStale {
		t.Errorf("PERSIST of what was not mapped = %+v, %v, want ERROR STALE", m, err)
	}
	for i := range uint64(3000) { // the same answer, and no memory for it
		m, err := r.ask(verbs.EncodeMap(i, int64(i*4096%(8<<20))))
		if err != nil || m.Kind != kindMapped || m.ID != i {
			t.Fatalf("MAP %d = %+v, %v", i, m, err)
		}
	}
	flood := connectGood(t, f, 3)
	ask := verbs.EncodeMap(1, 0)
	err := flood.say(ask)
	for i := 0; i < 3000 && err == nil; i++ { // without hearing the answers: it runs out of receives
		err = flood.q.Post([]verbs.Work{{Op: verbs.OpSend, ID: 100, Local: flood.mem[32<<10:][:len(ask)], LKey: flood.mr.LKey()}})
	}
	f.works(t)
}

// The rkeys of one client are worth nothing to another.
func TestKeysAreOfOneConnection(t *testing.T) {
	s := conntest.NewStore(8<<20, rdmacache.Medium{Kind: "dax"})
	f := newFabric(t, friendly(), s, ways(false)[2])
	f.serve()
	a, b := connectGood(t, f, 1), connectGood(t, f, 2)
	m, err := a.ask(verbs.EncodeMap(1, 0))
	if err != nil || m.Kind != kindMapped {
		t.Fatalf("MAP = %+v, %v", m, err)
	}
	if err := b.write("stolen", m); err == nil {
		t.Error("a client wrote with the rkey of another")
	}
	if got := s.Visible(0, 6); !bytes.Equal(got, make([]byte, 6)) {
		t.Errorf("memory is %q", got)
	}
	if err := a.write("mine", m); err != nil {
		t.Error(err)
	}
}

// write writes p to where m says.
func (r *raw) write(p string, m verbs.Decoded) error {
	copy(r.mem[40<<10:], p)
	err := r.q.Post([]verbs.Work{{
		Op: verbs.OpWrite, Signaled: true, Local: r.mem[40<<10:][:len(p)], LKey: r.mr.LKey(), RKey: m.RKey, Remote: m.Address,
	}})
	var done [1]verbs.Completion
	for err == nil && done[0].Op != verbs.OpWrite && done[0].Err == nil {
		_, err = r.q.Wait(context.Background(), done[:])
	}
	return errors.Join(err, done[0].Err)
}

// When a stream has a new connection nothing of the old one arrives any more, though its
// client did not close it.
func TestNewConnectionEndsOld(t *testing.T) {
	s := conntest.NewStore(8<<20, rdmacache.Medium{Kind: "dax"})
	f := newFabric(t, friendly(), s, ways(false)[2])
	f.serve()
	old := connectGood(t, f, 1)
	m, err := old.ask(verbs.EncodeMap(1, 0))
	if err != nil || m.Kind != kindMapped {
		t.Fatalf("MAP = %+v, %v", m, err)
	}
	if err := old.write("old", m); err != nil {
		t.Fatal(err)
	}
	token, _ := f.tokens.give(t.Context())
	if _, err := connectRaw(t, f, verbs.EncodeHello(token, 1, 2)); err != nil {
		t.Fatal(err)
	}
	if err := old.write("late", m); err == nil || string(s.Visible(0, 3)) != "old" {
		t.Errorf("a write of the old connection: %v; memory is %q", err, s.Visible(0, 4))
	}
}

// A memory node that lies: no call of the client hangs or panics, and none succeeds.
func TestHostileNode(t *testing.T) {
	for name, answer := range map[string]func(*raw, verbs.Decoded) []byte{
		"elsewhere": func(_ *raw, m verbs.Decoded) []byte { return verbs.EncodeMapped(m.ID, 1<<30, 1<<31, 0, 1) },
		"no key":    func(_ *raw, m verbs.Decoded) []byte { return verbs.EncodeMapped(m.ID, 0, 1<<62, 0, 99) },
		"other id": func(r *raw, m verbs.Decoded) []byte {
			if m.Kind == kindMap {
				return verbs.EncodeMapped(m.ID, 0, 64<<10, r.mr.Address(), r.mr.RKey())
			}
			return verbs.EncodeDone(m.ID + 16)
		},
		"unasked":    func(_ *raw, m verbs.Decoded) []byte { return verbs.EncodeDone(m.ID + 16) },
		"wrong kind": func(_ *raw, m verbs.Decoded) []byte { return verbs.EncodeDone(m.ID) },
		"noise":      func(*raw, verbs.Decoded) []byte { return bytes.Repeat([]byte{0xa5}, 4096) },
		"short":      func(*raw, verbs.Decoded) []byte { return []byte{1} },
		"other code": func(_ *raw, m verbs.Decoded) []byte { return verbs.EncodeError(m.ID, 77) },
		"not now":    func(_ *raw, m verbs.Decoded) []byte { return verbs.EncodeError(m.ID, 6) },
		"silence":    func(*raw, verbs.Decoded) []byte { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFabric(t, friendly(), conntest.NewStore(1<<20, rdmacache.Medium{Kind: "dax"}), way{})
			f.lie(answer)
			cfg := f.config()
			cfg.Patience = 300 * time.Millisecond
			c := f.dial(cfg)
			err := c.Write(t.Context(), []byte("x"), 5)
			if err == nil {
				err = c.Flush(t.Context())
			}
			if !errors.Is(err, verbs.ErrLost) {
				t.Errorf("write and flush = %v, want ErrLost", err)
			}
			if s := c.Stats(); s.Messages > 2*s.Connections {
				t.Errorf("%d messages on %d connections: a node that lies is believed", s.Messages, s.Connections)
			}
			if err := c.Read(t.Context(), make([]byte, 1), 0); err == nil {
				t.Error("read: no error")
			}
		})
	}
}

// lie serves connections by answering every message with answer.
func (f *fabric) lie(answer func(*raw, verbs.Decoded) []byte) {
	t := f.t.(*testing.T)
	f.server = f.model.Host("node", f.opts)
	l, err := f.server.Listen(":7472")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			req, err := l.Accept()
			if err != nil {
				return
			}
			r, domain := newRaw(t, req.Device())
			if r.q, err = req.Accept(ctx, domain, rawConfig, r.receives(), verbs.EncodeWelcome(verbs.ByCPU)); err != nil {
				continue
			}
			for {
				m, err := r.hear()
				if err != nil {
					break
				}
				if b := answer(r, m); b == nil || r.say(b) != nil {
					break
				}
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		_ = l.Close()
		<-done
	})
}

// The method is the best that devices, medium and operator allow.
func TestMethods(t *testing.T) {
	dax, tmpfs := rdmacache.Medium{Kind: "dax"}, rdmacache.Medium{Kind: "tmpfs", Volatile: true}
	for _, c := range []struct {
		name           string
		medium         rdmacache.Medium
		client, server bool // have FLUSH
		plain          bool // the medium is none that a device flushes
		persistence    verbs.Persistence
		want           verbs.Method
	}{
		{"both flush", dax, true, true, false, verbs.Auto, verbs.ByFlush},
		{"client does not", dax, false, true, false, verbs.Auto, verbs.ByCPU},
		{"server does not", dax, true, false, false, verbs.Auto, verbs.ByCPU},
		{"medium does not", dax, true, true, true, verbs.Auto, verbs.ByCPU},
		{"ADR", dax, false, false, false, verbs.ADRNoDDIO, verbs.ByRead},
		{"ADR and flush", dax, true, true, false, verbs.ADRNoDDIO, verbs.ByFlush},
		{"eADR", dax, true, true, true, verbs.EADR, verbs.ByRead},
		{"CPU", dax, true, true, false, verbs.CPUOnly, verbs.ByCPU},
		{"volatile", tmpfs, true, true, false, verbs.Auto, verbs.ByRead}, // though the model would flush it
		{"volatile, CPU", tmpfs, true, true, false, verbs.CPUOnly, verbs.ByCPU},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := conntest.NewStore(1<<20, c.medium)
			f := newFabric(t, friendly(), s, way{persistence: c.persistence})
			f.opts.Flush = c.server
			if c.plain {
				f.opts.Media = nil
			}
			f.client = f.model.Host("client", modelOptions(c.client))
			f.serve()
			if got := f.dial(f.config()).Methods()[0]; got != c.want {
				t.Errorf("method %v, want %v", got, c.want)
			}
		})
	}
}

// A session that reads only does not let anything be written.
func TestReadOnly(t *testing.T) {
	s := conntest.NewStore(1<<20, rdmacache.Medium{Kind: "dax"})
	f := newFabric(t, friendly(), s, ways(false)[0])
	f.session.readOnly = true
	f.serve()
	c := f.dial(f.config())
	if err := c.Write(t.Context(), []byte("x"), 0); err == nil {
		t.Error("write: no error")
	}
	if err := errors.Join(c.Read(t.Context(), make([]byte, 10), 0), c.Flush(t.Context())); err != nil {
		t.Error(err)
	}
	// Nor a client that does not ask itself.
	r := connectGood(t, f, 1)
	m, err := r.ask(verbs.EncodeMap(1, 0))
	if err != nil || m.Kind != kindMapped {
		t.Fatalf("MAP = %+v, %v", m, err)
	}
	if r.write("x", m) == nil {
		t.Error("a read-only session wrote")
	}
}
