package tcp_test

import (
	"io"
	"net"
	"testing"

	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/rdmacache/conntest"
	"github.com/rpmemfs/rpmemfs/rdmacache/tcp"
)

// arena is a Session over memory, as fast as one can be.
type arena struct{ bytes []byte }

func (a arena) ReadAt(p []byte, off int64) error  { copy(p, a.bytes[off:]); return nil }
func (a arena) WriteAt(p []byte, off int64) error { copy(a.bytes[off:], p); return nil }
func (a arena) Flush() error                      { return nil }
func (a arena) Medium() rdmacache.Medium          { return rdmacache.Medium{Kind: "dax"} }
func (a arena) Done() <-chan struct{}             { return nil }

const page = rdmacache.PageSize

// A commit of one page and its record, against the same bytes there and few back
// over bare TCP.
func BenchmarkCommit(b *testing.B) {
	b.Run("echo", func(b *testing.B) {
		nc, peer := tcpPair(b)
		go func() {
			buf := make([]byte, 64<<10)
			for {
				if _, err := io.ReadFull(peer, buf[:page+200+3*32]); err != nil {
					return
				}
				if _, err := peer.Write(buf[:32]); err != nil {
					return
				}
			}
		}()
		p, got := make([]byte, page+200+3*32), make([]byte, 32)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := nc.Write(p); err != nil {
				b.Fatal(err)
			}
			if _, err := io.ReadFull(nc, got); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("tcp", func(b *testing.B) {
		c := dial(b, tcp.Config{Connect: dialer(serve(b, one{arena{make([]byte, 1<<20)}}, nil))})
		p := make([]byte, page)
		b.ReportAllocs()
		for b.Loop() {
			_ = c.Write(b.Context(), p, 0)
			_ = c.Write(b.Context(), p[:200], page)
			if err := c.Flush(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// A fault: one page is read. The kernel's read-ahead: 128 KiB are.
func BenchmarkRead(b *testing.B) {
	for name, size := range map[string]int{"page": page, "128KiB": 128 << 10} {
		b.Run(name, func(b *testing.B) {
			c := dial(b, tcp.Config{Connect: dialer(serve(b, one{arena{make([]byte, 1<<20)}}, nil))})
			p := make([]byte, size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				if err := c.Read(b.Context(), p, 0); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// 64 MiB are pushed in runs of a page and of a MiB, and flushed, against a loop of
// writev and read that copies them to their place.
func BenchmarkPush(b *testing.B) {
	const size = 64 << 20
	src := make([]byte, size)
	for i := range src {
		src[i] = byte(i % 251) // not the kernel's one page of zeros
	}
	b.Run("loop", func(b *testing.B) {
		nc, peer := tcpPair(b)
		a := arena{make([]byte, size)}
		go func() {
			buf := make([]byte, 1<<20)
			for {
				for off := 0; off < size; off += len(buf) {
					if _, err := io.ReadFull(peer, buf); err != nil {
						return
					}
					_ = a.WriteAt(buf, int64(off))
				}
				_, _ = peer.Write(buf[:32])
			}
		}()
		b.SetBytes(size)
		for b.Loop() {
			for off := 0; off < size; off += 1 << 20 {
				v := net.Buffers{src[off : off+1<<20]}
				if _, err := v.WriteTo(nc); err != nil {
					b.Fatal(err)
				}
			}
			if _, err := io.ReadFull(nc, make([]byte, 32)); err != nil {
				b.Fatal(err)
			}
		}
	})
	for name, run := range map[string]int{"1MiB": 1 << 20, "64KiB": 64 << 10, "page": page} {
		b.Run(name, func(b *testing.B) {
			c := dial(b, tcp.Config{Connect: dialer(serve(b, one{arena{make([]byte, size)}}, nil))})
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				for off := 0; off < size; off += run {
					if err := c.Write(b.Context(), src[off:off+run], int64(off)); err != nil {
						b.Fatal(err)
					}
				}
				if err := c.Flush(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func tcpPair(t testing.TB) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if a, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = a.Close()
		_ = b.Close()
	})
	return a, b
}

var _ tcp.Session = (*conntest.Store)(nil)
