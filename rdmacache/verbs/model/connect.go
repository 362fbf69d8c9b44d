package model

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/rpmemfs/rpmemfs/rdmacache/verbs"
)

// backlog is how many requests a listener keeps.
const backlog = 64

type route struct {
	host       *Host
	peer, port string
}

// Resolve finds a host by its name, or the address that its listeners have.
func (h *Host) Resolve(ctx context.Context, address string) (verbs.Route, error) {
	peer, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	f := h.fabric
	f.mu.Lock()
	known, dead, d := f.hosts[peer] != nil, h.dead, f.delay(0, 0)
	f.mu.Unlock()
	if err := sleep(ctx, d); err != nil {
		return nil, err
	}
	switch {
	case dead:
		return nil, errDead
	case !known:
		return nil, fmt.Errorf("model: resolve %s: no such host", address)
	}
	return &route{h, peer, port}, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *route) Device() verbs.Device { return r.host }
func (r *route) Close() error         { return nil }

// A request is a connection that is being made. What is not immutable is guarded by
// Fabric.mu.
type request struct {
	host    *Host // the listener's
	client  *queue
	private []byte

	answered bool // by the listener's side
	given    bool // up, by the client
	answer   chan answer
}

type answer struct {
	welcome []byte
	err     error
}

// Connect asks the listener at the route's end.
func (r *route) Connect(ctx context.Context, d verbs.Domain, cfg verbs.QueueConfig, private []byte) (verbs.Queue, []byte, error) {
	f := r.host.fabric
	if len(private) > verbs.MaxHello {
		return nil, nil, fmt.Errorf("model: connect with %d bytes of private data", len(private))
	}
	q, err := r.host.newQueue(d, cfg)
	if err != nil {
		return nil, nil, err
	}
	req := &request{client: q, private: append([]byte(nil), private...), answer: make(chan answer, 1)}
	f.mu.Lock()
	f.later(f.delay(0, 0), func() { r.ask(req) })
	f.mu.Unlock()
	select {
	case a := <-req.answer:
		if err = a.err; err == nil {
			return q, a.welcome, nil
		}
	case <-ctx.Done():
		err = ctx.Err()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	req.given = true
	q.destroy(true)
	return nil, nil, err
}

// ask brings the request to the listener, as soon as something passes.
func (r *route) ask(req *request) {
	f := r.host.fabric
	h := f.hosts[r.peer]
	if req.given {
		return
	}
	if h == nil || !r.host.passes(h) {
		f.later(f.cfg.Timeout/16+1, func() { r.ask(req) })
		return
	}
	req.host = h
	port, _ := strconv.Atoi(r.port) // 0: nobody listens there
	l := h.listeners[port]
	if l == nil {
		req.reply(answer{err: &verbs.RejectedError{}})
		return
	}
	select {
	case l.queue <- req:
	default:
		req.reply(answer{err: &verbs.RejectedError{}})
	}
}

// reply brings an answer to the client, as soon as something passes. mu is held.
func (req *request) reply(a answer) {
	f := req.host.fabric
	req.answered = true
	var try func()
	try = func() {
		switch {
		case req.given || req.host.dead:
		case !req.host.passes(req.client.host):
			f.later(f.cfg.Timeout/16+1, try)
		default:
			req.answer <- a
			req.client.advance()
		}
	}
	f.later(f.delay(0, 0), try)
}

type listener struct {
	host   *Host
	port   int
	queue  chan *request
	closed chan struct{}
	over   bool // closed is; guarded by Fabric.mu
}

// Listen takes requests for a port; 0 stands for one that is free.
func (h *Host) Listen(address string) (verbs.Listener, error) {
	_, text, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		return nil, err
	}
	f := h.fabric
	f.mu.Lock()
	defer f.mu.Unlock()
	if h.dead {
		return nil, errDead
	}
	if port == 0 {
		f.lastPort++
		port = 20000 + f.lastPort
	}
	if h.listeners[port] != nil {
		return nil, fmt.Errorf("model: listen %s: address in use", address)
	}
	l := &listener{host: h, port: port, queue: make(chan *request, backlog), closed: make(chan struct{})}
	h.listeners[port] = l
	return l, nil
}

func (l *listener) Addr() net.Addr { return &net.TCPAddr{IP: l.host.ip, Port: l.port} }

func (l *listener) Accept() (verbs.Request, error) {
	select {
	case <-l.closed:
		return nil, net.ErrClosed
	default:
	}
	select {
	case req := <-l.queue:
		return req, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.host.fabric.mu.Lock()
	defer l.host.fabric.mu.Unlock()
	l.close()
	return nil
}

func (l *listener) close() {
	if l.over {
		return
	}
	l.over = true
	close(l.closed)
	delete(l.host.listeners, l.port)
	for {
		select {
		case req := <-l.queue:
			req.reply(answer{err: &verbs.RejectedError{}})
		default:
			return
		}
	}
}

func (req *request) Device() verbs.Device { return req.host }
func (req *request) Peer() string         { return req.client.host.name + ":0" }
func (req *request) Private() []byte      { return req.private }

// Accept connects the queue pairs. Work may arrive before it returns.
func (req *request) Accept(ctx context.Context, d verbs.Domain, cfg verbs.QueueConfig, recvs []verbs.Work, welcome []byte) (verbs.Queue, error) {
	if len(welcome) > verbs.MaxWelcome {
		return nil, fmt.Errorf("model: accept with %d bytes of private data", len(welcome))
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	q, err := req.host.newQueue(d, cfg)
	if err != nil {
		return nil, err
	}
	if err := q.PostRecv(recvs); err != nil {
		_ = q.Close() // the first error counts
		return nil, err
	}
	f := req.host.fabric
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := req.usable(); err != nil {
		q.destroy(false)
		return nil, err
	}
	q.peer, req.client.peer = req.client, q
	req.reply(answer{welcome: append([]byte(nil), welcome...)})
	return q, nil
}

// Reject refuses the client.
func (req *request) Reject(private []byte) error {
	if len(private) > verbs.MaxReject {
		return fmt.Errorf("model: reject with %d bytes of private data", len(private))
	}
	f := req.host.fabric
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := req.usable(); err != nil {
		return err
	}
	req.reply(answer{err: &verbs.RejectedError{Private: append([]byte(nil), private...)}})
	return nil
}

func (req *request) usable() error {
	switch {
	case req.answered:
		return errors.New("model: request answered twice")
	case req.given:
		return errors.New("model: the client gave up")
	case req.host.dead:
		return errDead
	}
	return nil
}
