package model_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rpmemfs/rpmemfs/rdmacache/verbs"
	"github.com/rpmemfs/rpmemfs/rdmacache/verbs/model"
)

// With the zero Config work is done when Post returns.
func TestWorkIsDoneAtOnce(t *testing.T) {
	l := connect(t, setup{recvs: 1})
	defer l.close()
	rng := rand.New(rand.NewPCG(*seed, 0))
	fill(l.client.mem, rng)
	back := l.op(verbs.OpRead, 1000, 5000)
	back.Local = l.client.mem[30000:35000]
	send := l.op(verbs.OpSend, 50000, 10)
	if err := l.client.queue.Post([]verbs.Work{l.write(1000, 5000), back, send}); err != nil {
		t.Fatal(err)
	}
	done := make([]verbs.Completion, 8)
	if n, err := l.client.queue.Poll(done, 0); n != 3 || err != nil || done[1].Op != verbs.OpRead || done[2].ID != 50000 {
		t.Errorf("Poll = %d, %v: %v", n, err, done[:n])
	}
	if !bytes.Equal(l.server.mem[1000:6000], l.client.mem[1000:6000]) || !bytes.Equal(l.client.mem[30000:35000], l.client.mem[1000:6000]) {
		t.Error("a Write, or the Read after it, has other bytes")
	}
	if n, err := l.server.queue.Poll(done, 0); n != 1 || err != nil || done[0].Op != verbs.OpRecv || done[0].Bytes != 10 {
		t.Errorf("the server's Poll = %d, %v: %v", n, err, done[:n])
	}
	if !bytes.Equal(l.server.mem[:10], l.client.mem[50000:50010]) {
		t.Error("a Send has other bytes")
	}
}

// A completion stands for all before it, and their places in the queue.
func TestQueueLimit(t *testing.T) {
	l := connect(t, setup{queue: verbs.QueueConfig{Sends: 4, Recvs: 2}})
	defer l.close()
	w := l.write(0, 8)
	quiet := w
	quiet.Signaled = false
	done := make([]verbs.Completion, 8)
	for range 5 {
		if err := l.client.queue.Post([]verbs.Work{quiet, quiet, quiet, w}); err != nil {
			t.Fatal(err)
		}
		if n, err := l.client.queue.Poll(done, 0); n != 1 || err != nil {
			t.Fatalf("Poll = %d, %v, want 1 completion", n, err)
		}
	}
	if err := l.client.queue.Post([]verbs.Work{quiet, quiet, quiet, quiet}); err != nil {
		t.Fatal(err)
	}
	if err := l.client.queue.Post([]verbs.Work{w}); !errors.Is(err, verbs.ErrBroken) {
		t.Errorf("a work request too many: %v, want ErrBroken", err)
	}
	l.broken(l.client)
	recv := verbs.Work{Local: l.server.mem[:8], LKey: l.server.mr.LKey()}
	if err := l.server.queue.PostRecv([]verbs.Work{recv, recv, recv}); !errors.Is(err, verbs.ErrBroken) {
		t.Errorf("a receive too many: %v, want ErrBroken", err)
	}
}

// Each access that does not pass changes nothing, and breaks both queue pairs; all work
// after it fails.
func TestAccessIsChecked(t *testing.T) {
	for name, c := range map[string]struct {
		setup
		spoil func(l *link, w *verbs.Work)
	}{
		"wrong rkey":          {spoil: func(_ *link, w *verbs.Work) { w.RKey += 2 }},
		"lkey for rkey":       {spoil: func(l *link, w *verbs.Work) { w.RKey = l.server.mr.LKey() }},
		"before the MR":       {spoil: func(_ *link, w *verbs.Work) { w.Remote -= 1001 }},
		"after the MR":        {spoil: func(_ *link, w *verbs.Work) { w.Remote += size - 1000 - 7 }},
		"far away":            {spoil: func(_ *link, w *verbs.Work) { w.Remote = ^uint64(0) - 3 }},
		"closed MR":           {spoil: func(l *link, _ *verbs.Work) { l.server.mr.Close() }},
		"no right to write":   {setup: setup{access: verbs.RemoteRead}, spoil: func(*link, *verbs.Work) {}},
		"no right to read":    {setup: setup{access: verbs.RemoteWrite}, spoil: func(_ *link, w *verbs.Work) { w.Op = verbs.OpRead }},
		"wrong lkey":          {spoil: func(_ *link, w *verbs.Work) { w.LKey += 2 }},
		"not in its local MR": {spoil: func(_ *link, w *verbs.Work) { w.Local = make([]byte, 8) }},
		"other domain": {spoil: func(l *link, w *verbs.Work) {
			d, _ := l.server.host.NewDomain()
			m, err := d.Register(l.server.mem, verbs.RemoteWrite)
			if err != nil {
				l.t.Fatal(err)
			}
			w.RKey = m.RKey()
		}},
	} {
		t.Run(name, func(t *testing.T) {
			l := connect(t, c.setup)
			fill(l.client.mem, rand.New(rand.NewPCG(*seed, 0)))
			bad := l.write(1000, 8)
			c.spoil(l, &bad)
			bad.Signaled, bad.ID = false, 7
			if err := l.client.queue.Post([]verbs.Work{bad, l.write(2000, 8), l.write(3000, 8)}); err != nil {
				t.Fatal(err)
			}
			if err := l.client.queue.Post([]verbs.Work{l.write(4000, 8)}); err != nil {
				t.Fatal(err)
			}
			for i, d := range l.finish(l.client, 4) {
				if !errors.Is(d.Err, verbs.ErrBroken) || i == 0 && d.ID != 7 {
					t.Errorf("completion %d = %+v", i, d)
				}
			}
			l.broken(l.client)
			if name != "wrong lkey" && name != "not in its local MR" { // these do not leave the client
				l.broken(l.server)
			}
			if !bytes.Equal(l.server.mem, make([]byte, size)) {
				t.Error("the server's memory has changed")
			}
		})
	}
}

// FLUSH needs devices that have it, memory that is known to be persistent, and queues and
// MRs that were made for it.
func TestFlushNeedsAll(t *testing.T) {
	medium := model.Plain(make([]byte, size))
	with := model.HostOptions{Flush: true, Media: []model.Medium{medium}}
	queue := verbs.QueueConfig{Sends: 4, Recvs: 4, Flush: true}
	const all = verbs.RemoteWrite | verbs.RemoteFlush
	f := model.New(model.Config{})
	for name, c := range map[string]struct {
		opts model.HostOptions
		mem  []byte
		ok   bool
	}{
		"all there":       {with, medium[4096:8192], true},
		"ordinary memory": {with, make([]byte, size), false},
		"no device":       {model.HostOptions{Media: with.Media}, medium, false},
	} {
		d, err := f.Host("h", c.opts).NewDomain()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Register(c.mem, all); (err == nil) != c.ok || err != nil && !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: Register = %v", name, err)
		}
	}
	if f.Host("h", with).Flushes() == f.Host("h", model.HostOptions{}).Flushes() {
		t.Error("Flushes does not tell")
	}
	for name, c := range map[string]struct {
		setup
		ok bool
	}{
		"all there":      {setup{client: with, server: with, queue: queue, mem: medium, access: all}, true},
		"no access":      {setup{client: with, server: with, queue: queue, mem: medium, access: verbs.RemoteWrite}, false},
		"client's queue": {setup{client: with, server: with, mem: medium, access: all}, false},
		"server's queue": {setup{client: with, server: with, queue: queue, noFlush: true, mem: medium, access: all}, false},
	} {
		l := connect(t, c.setup)
		if err := l.client.queue.Post([]verbs.Work{l.op(verbs.OpFlush, 0, 4096)}); err != nil {
			t.Fatal(err)
		}
		if d := l.finish(l.client, 1); (d[0].Err == nil) != c.ok {
			t.Errorf("%s: FLUSH = %v", name, d[0].Err)
		}
		l.close()
	}
	d, _ := f.Host("h", model.HostOptions{}).NewDomain()
	route, err := f.Host("h", model.HostOptions{}).Resolve(context.Background(), "h:1")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := route.Connect(context.Background(), d, queue, nil); err == nil {
		t.Error("a device without FLUSH made a queue with it")
	}
}

// A Send waits for a Recv, what is behind it too; then the queue pair breaks.
func TestSendWaitsForRecv(t *testing.T) {
	for _, recv := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			l := connect(t, setup{})
			defer l.close()
			fill(l.client.mem, rand.New(rand.NewPCG(*seed, 0)))
			if err := l.client.queue.Post([]verbs.Work{l.op(verbs.OpSend, 0, 8), l.write(1000, 8)}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second / 2)
			l.look(func() {
				if l.server.mem[1000] != 0 {
					t.Error("a Write overtook a Send")
				}
			})
			if got := l.fabric.String(); !strings.Contains(got, "posted 2, first operation 4, 8 bytes, stuck for 500ms") {
				t.Errorf("the fabric does not say what the client waits for: %s", got)
			}
			if recv {
				if err := l.server.queue.PostRecv([]verbs.Work{{ID: 9, Local: l.server.mem[:64], LKey: l.server.mr.LKey()}}); err != nil {
					t.Fatal(err)
				}
			}
			began := time.Now()
			for _, d := range l.finish(l.client, 2) {
				if (d.Err == nil) != recv {
					t.Errorf("completion %+v, with a Recv: %v", d, recv)
				}
			}
			if got := time.Since(began); !recv && got != time.Second/2 {
				t.Errorf("it broke after %v more", got)
			}
			if recv && (l.finish(l.server, 1)[0].ID != 9 || !bytes.Equal(l.server.mem[:8], l.client.mem[:8])) {
				t.Error("the Recv has something else")
			}
		})
	}
}

func TestRecvTooSmall(t *testing.T) {
	l := connect(t, setup{recvs: 1})
	defer l.close()
	if err := l.client.queue.Post([]verbs.Work{l.op(verbs.OpSend, 0, 65)}); err != nil {
		t.Fatal(err)
	}
	if d := append(l.finish(l.client, 1), l.finish(l.server, 1)...); d[0].Err == nil || d[1].Err == nil {
		t.Errorf("completions %v", d)
	}
	l.broken(l.server)
}

// Who closes a queue pair is noticed, and what the other posts fails. What a dead host
// says nothing of is noticed by who wants something of it.
func TestCloseIsNoticed(t *testing.T) {
	for _, crash := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			l := connect(t, setup{})
			if crash {
				l.client.host.Crash()
			} else if err := l.client.queue.Close(); err != nil {
				t.Error(err)
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
			defer cancel()
			_, err := l.server.queue.Wait(ctx, make([]verbs.Completion, 1))
			if heard := errors.Is(err, verbs.ErrBroken); heard == crash {
				t.Errorf("crashed: %v: Wait = %v", crash, err)
			}
			send := verbs.Work{Op: verbs.OpSend, Local: l.server.mem[:8], LKey: l.server.mr.LKey()}
			if err := l.server.queue.Post([]verbs.Work{send}); err != nil {
				t.Fatal(err)
			}
			if !crash {
				l.broken(l.server) // it knows already
			} else if d := l.finish(l.server, 1); d[0].Err == nil {
				t.Error("a Send to nobody succeeded")
			}
			l.close()
			if _, err := l.server.queue.Wait(ctx, make([]verbs.Completion, 1)); !errors.Is(err, verbs.ErrBroken) {
				t.Errorf("Wait after Close = %v", err)
			}
			if err := l.server.queue.Post([]verbs.Work{send}); !errors.Is(err, verbs.ErrBroken) {
				t.Errorf("Post after Close = %v", err)
			}
		})
	}
}

// A Wait under way ends with Close.
func TestCloseEndsWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := connect(t, setup{})
		defer l.close()
		ended := make(chan error)
		go func() {
			_, err := l.client.queue.Wait(context.Background(), make([]verbs.Completion, 1))
			ended <- err
		}()
		synctest.Wait()
		if err := l.client.queue.Close(); err != nil {
			t.Error(err)
		}
		if err := <-ended; !errors.Is(err, verbs.ErrBroken) {
			t.Errorf("Wait = %v", err)
		}
	})
}

func TestConnect(t *testing.T) {
	f := model.New(model.Config{})
	server, client := f.Host("server", model.HostOptions{}), f.Host("client", model.HostOptions{})
	sd, _ := server.NewDomain()
	cd, _ := client.NewDomain()
	cfg := verbs.QueueConfig{Sends: 1, Recvs: 1}
	listener, err := server.Listen("server:0")
	if err != nil {
		t.Fatal(err)
	}
	dial := func(ctx context.Context, address string, hello []byte) (verbs.Queue, []byte, error) {
		route, err := client.Resolve(ctx, address)
		if err != nil {
			return nil, nil, err
		}
		defer route.Close()
		return route.Connect(ctx, cd, cfg, hello)
	}
	go func() {
		for {
			req, err := listener.Accept()
			switch {
			case errors.Is(err, net.ErrClosed):
				return
			case err != nil:
				t.Error(err)
			case string(req.Private()) == "please":
				q, err := req.Accept(context.Background(), sd, cfg, nil, []byte("welcome"))
				if err != nil {
					t.Error(err)
					continue
				}
				if _, err := req.Accept(context.Background(), sd, cfg, nil, nil); err == nil {
					t.Error("a request was answered twice")
				}
				defer q.Close()
			default:
				if err := req.Reject([]byte("no " + string(req.Private()))); err != nil {
					t.Error(err)
				}
			}
		}
	}()
	address := listener.Addr().String()
	q, welcome, err := dial(context.Background(), address, []byte("please"))
	if err != nil || string(welcome) != "welcome" {
		t.Fatalf("Connect = %q, %v", welcome, err)
	}
	if err := q.Close(); err != nil {
		t.Error(err)
	}
	var rejected *verbs.RejectedError
	if _, _, err := dial(context.Background(), address, []byte("x")); !errors.As(err, &rejected) || string(rejected.Private) != "no x" {
		t.Errorf("Connect = %v, want to be rejected", err)
	}
	if _, _, err := dial(context.Background(), "server:9", nil); !errors.As(err, &rejected) || len(rejected.Private) != 0 {
		t.Errorf("Connect where nobody listens = %v", err)
	}
	if _, _, err := dial(context.Background(), "nobody:9", nil); err == nil || errors.As(err, &rejected) {
		t.Errorf("Connect to no host = %v", err)
	}
	if _, _, err := dial(context.Background(), address, make([]byte, verbs.MaxHello+1)); err == nil {
		t.Error("too long a hello was sent")
	}
	client.Hold(true, false)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if _, _, err := dial(ctx, address, []byte("please")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Connect without a network = %v", err)
	}
	client.Hold(false, false)
	if err := listener.Close(); err != nil {
		t.Error(err)
	}
	if err := cd.Close(); err != nil {
		t.Errorf("the client's domain has something left: %v", err)
	}
	server.Crash()
	if _, err := server.NewDomain(); err == nil {
		t.Error("a host that crashed works")
	}
}

// A domain is closed after what is in it.
func TestDomainOrder(t *testing.T) {
	l := connect(t, setup{})
	if err := l.client.domain.Close(); err == nil {
		t.Error("a domain with a queue and an MR was closed")
	}
	l.close()
	if _, err := l.client.domain.Register(make([]byte, 8), 0); err == nil {
		t.Error("memory was registered in a domain that is closed")
	}
}
