package tcp

import (
	"context"
	"io"
	"net"
	"testing"
	"time"

	"github.com/rpmemfs/rpmemfs/rdmacache"
)

// Whatever a memory node answers, the client neither panics nor hangs, and takes no
// FLUSH for done that it did not send.
func FuzzClient(f *testing.F) {
	for _, m := range messages() {
		f.Add(m, true)
		f.Add(m, false)
	}
	f.Add(append(sealed(header{kind: kindDone, sequence: 1}, nil), sealed(header{kind: kindData, length: 8, sequence: 2}, make([]byte, 8))...), false)
	f.Fuzz(func(t *testing.T, say []byte, seal bool) {
		if seal {
			say = sealAll(say)
		}
		dials := 0
		cfg := Config{Patience: minPatience, Connect: func(context.Context) (net.Conn, error) {
			if dials++; dials > 1 {
				return nil, rdmacache.ErrFenced // do not try again
			}
			here, there := net.Pipe()
			go func() {
				defer func() { _ = there.Close() }()
				_ = there.SetDeadline(time.Now().Add(5 * time.Second))
				if _, err := io.ReadFull(there, make([]byte, helloSize)); err != nil {
					return
				}
				_, _ = there.Write((&welcome{kind: "dax"}).encode())
				go func() { _, _ = io.Copy(io.Discard, there) }()
				_, _ = there.Write(say)
			}()
			return here, nil
		}}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		c, err := Dial(ctx, cfg)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Write(ctx, make([]byte, 100), 0)
		_ = c.Read(ctx, make([]byte, 8), 0)
		_ = c.Flush(ctx)
		if ctx.Err() != nil {
			t.Error("a call hangs")
		}
		_ = c.Close()
	})
}

// A memory node that acknowledges what it was not asked is not believed.
func TestUnaskedAnswers(t *testing.T) {
	for name, say := range map[string][]byte{
		"done early":        sealed(header{kind: kindDone, sequence: 1}, nil),
		"done of nothing":   sealed(header{kind: kindDone}, nil),
		"data of nothing":   sealed(header{kind: kindData, length: 100, sequence: 1}, make([]byte, 100)),
		"error of nothing":  sealed(header{kind: kindError, code: codeNoSpace, sequence: 7}, nil),
		"a request":         sealed(header{kind: kindFlush, sequence: 1}, nil),
		"damaged":           append(sealed(header{kind: kindData, length: 1, sequence: 1}, []byte{1})[:headerSize], 2),
		"end in a message":  sealed(header{kind: kindDone, sequence: 1}, nil)[:7],
		"end in the middle": nil,
	} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		n := newNode("dax")
		served := make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			defer close(served)
			nc, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.ReadFull(nc, make([]byte, helloSize))
			_, _ = nc.Write(append((&welcome{kind: "dax"}).encode(), say...))
			time.Sleep(20 * time.Millisecond)
			_ = nc.Close()
			_ = Serve(ctx, l, n, ServerConfig{}) // an honest one comes in its place
		}()
		c, err := Dial(ctx, Config{Connect: func(ctx context.Context) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
		}})
		if err != nil {
			t.Fatal(err)
		}
		p := []byte{7, 8, 9}
		if err := c.Write(ctx, p, 0); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := c.Flush(ctx); err != nil || n.bytes[0] != 7 {
			t.Errorf("%s: flush = %v, stored %v", name, err, n.bytes[:3])
		}
		_ = c.Close()
		cancel()
		<-served
	}
}
