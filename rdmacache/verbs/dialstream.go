package verbs

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"

	"golang.org/x/sys/unix"
)

// DialStream makes a connection whose bytes all go in messages, to be used as any other:
// for a pool that a device does not reach (ErrMessage). It makes one try, within ctx.
// Patience, Window and Queues of cfg mean nothing to it.
//
// The connection belongs to the caller, who closes it. It takes 1.2 MiB of registered memory.
func DialStream(ctx context.Context, cfg Config) (net.Conn, error) {
	cfg.defaults()
	mem, err := unix.Mmap(-1, 0, streamSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("verbs: map %d bytes: %w", streamSize, err)
	}
	a := &arena{mem: mem}
	release := func() {
		if err := a.close(); err != nil {
			cfg.Log.Error("RDMA memory cannot be given back", "err", err)
		}
	}
	d := dialer{cfg: &cfg, hello: hello{wants: true, stream: rand.Uint64(), attempt: 1}, sends: streamSends, recvs: streamRecvs}
	q, w, err := d.dial(ctx, a)
	if err != nil {
		release()
		return nil, err
	}
	lkey := a.mr.LKey()
	if err = q.PostRecv(streamReceives(mem, lkey)); err == nil && w.method != ByMessage {
		err = fmt.Errorf("%w: method %v for a stream", errProtocol, w.method)
	}
	if err != nil {
		if cerr := q.Close(); cerr != nil {
			return nil, errors.Join(err, cerr) // the device may still use the memory
		}
		release()
		return nil, fmt.Errorf("verbs: connect to %s: %w", cfg.Address, err)
	}
	s := newStream(ctx, &stream{
		q: q, end: q.Close, mem: mem, lkey: lkey, local: address(a.device.Name()), remote: address(cfg.Address), release: release,
	}, min(w.credits, streamCredits))
	s.greet()
	return s, nil
}

// greet tells the peer of the receives that are posted here.
func (s *stream) greet() {
	s.mu.Lock()
	s.owed = streamCredits
	s.mu.Unlock()
	s.giveBack()
}

// stream lets the client in, and hands its connection over. It returns when that is
// closed, after ctx ended at the latest.
func (s *server) stream(ctx context.Context, k *serverLink, r Request, welcomed func()) error {
	m := k.name.session.Medium()
	w := welcome{method: ByMessage, volatile: m.Volatile, readOnly: k.name.session.ReadOnly(), credits: streamCredits, kind: m.Kind}
	cfg := QueueConfig{Sends: streamSends, Recvs: streamRecvs}
	greet, cancel := context.WithTimeout(ctx, handshakeTimeout)
	q, err := r.Accept(greet, k.domain, cfg, streamReceives(k.mem, k.mr.LKey()), w.encode())
	cancel()
	if err != nil {
		return fmt.Errorf("accept: %w", err)
	}
	if err := k.window.attach(q); err != nil {
		return err
	}
	welcomed()
	// The peer tells of its receives by its first frame.
	nc := newStream(ctx, &stream{
		q: q, mem: k.mem, lkey: k.mr.LKey(), local: address(r.Device().Name()), remote: address(r.Peer()), release: func() {},
		end: func() error { k.window.End(); return nil },
	}, 0)
	s.cfg.Stream(nc)
	select {
	case <-ctx.Done():
		_ = nc.Close() // unless it was
	case <-nc.done:
	}
	<-nc.done
	return nil
}
