package verbs

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/rpmemfs/rpmemfs/rdmacache"
)

// serve lets the client in and answers its messages, until the connection ends, the
// session, or ctx.
func (s *server) serve(ctx context.Context, k *serverLink, r Request, c choice, welcomed func()) error {
	session := k.name.session
	k.window.access = c.access
	if err := session.Expose(k.window); err != nil {
		return s.reject(r, err)
	}
	defer session.Withdraw(k.window)
	m := session.Medium()
	w := welcome{method: c.method, volatile: m.Volatile, readOnly: session.ReadOnly(), credits: serverCredits, kind: m.Kind}
	recvs := make([]Work, serverCredits)
	for i := range recvs {
		recvs[i] = k.receive(i)
	}
	cfg := QueueConfig{Sends: 2 * serverCredits, Recvs: serverCredits, Inline: 0, Flush: c.method == ByFlush}
	greet, cancel := context.WithTimeout(ctx, handshakeTimeout)
	q, err := r.Accept(greet, k.domain, cfg, recvs, w.encode())
	cancel()
	if err != nil {
		return fmt.Errorf("accept: %w", err)
	}
	if err := k.window.attach(q); err != nil {
		return err
	}
	welcomed()
	ctx, cancel = context.WithCancel(ctx)
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-ctx.Done():
		case <-session.Done():
		}
		k.window.End()
	})
	defer watch.Wait()
	defer cancel()
	a := answers{s: s, k: k, q: q}
	for i := range 2 * serverCredits {
		a.free = append(a.free, serverCredits+i)
	}
	return a.loop(ctx)
}

// receive is the work request that takes message i.
func (k *serverLink) receive(i int) Work {
	return Work{Op: OpRecv, ID: uint64(i), Local: k.buffer(i), LKey: k.mr.LKey()}
}

// answers deals with the messages of a connection, in one goroutine.
type answers struct {
	s       *server
	k       *serverLink
	q       Queue
	free    []int        // buffers to answer in
	pending []Completion // messages that wait for one; no more than are received into
}

func (a *answers) loop(ctx context.Context) error {
	var done [2 * serverMessages]Completion
	for {
		for len(a.pending) > 0 && len(a.free) > 0 {
			c := a.pending[0]
			a.pending = a.pending[1:]
			if err := a.answer(c); err != nil {
				return err
			}
		}
		n, err := a.q.Wait(ctx, done[:])
		for i := range done[:n] {
			if err := a.take(done[i]); err != nil {
				return err
			}
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
	}
}

func (a *answers) take(c Completion) error {
	switch {
	case c.Err != nil:
		return c.Err
	case c.Op == OpRecv:
		a.pending = append(a.pending, c)
	default:
		a.free = append(a.free, int(c.ID))
	}
	return nil
}

// answer answers one message. An error ends the connection.
func (a *answers) answer(c Completion) error {
	if c.ID >= serverCredits || c.Bytes < 0 || c.Bytes > messageSize {
		return fmt.Errorf("%w: receive %d of %d bytes", errProtocol, c.ID, c.Bytes)
	}
	var m message
	if err := m.decode(a.k.buffer(int(c.ID))[:c.Bytes]); err != nil {
		return err
	}
	reply := message{id: m.id}
	var err error
	switch m.kind {
	case kindMap:
		reply.kind = kindMapped
		reply.extent, err = a.s.reach(a.k.window, m.off)
		if err != nil {
			reply.fail(err, codeUnavailable)
		}
	case kindPersist:
		reply.kind = kindDone
		if err = a.k.persist(m.ranges); err != nil {
			reply.fail(err, codePoisoned)
		}
	default:
		return fmt.Errorf("%w: a request of kind %d", errProtocol, m.kind)
	}
	if err != nil {
		a.k.log.Info("RDMA request refused", "kind", m.kind, "err", err)
	}
	i := a.free[len(a.free)-1]
	a.free = a.free[:len(a.free)-1]
	b := a.k.buffer(i)
	b = b[:reply.encode(b)]
	// First: the client may send another message as soon as it has the answer.
	if err := a.q.PostRecv([]Work{a.k.receive(int(c.ID))}); err != nil {
		return err
	}
	return a.q.Post([]Work{{Op: OpSend, Signaled: true, ID: uint64(i), Local: b, LKey: a.k.mr.LKey()}})
}

// fail makes m an ERROR.
func (m *message) fail(err error, other code) {
	c := codeOf(err, other)
	if c == codeProtocol || c == codeOK {
		c = other
	}
	m.kind, m.code, m.text = kindError, c, textOf(err)
}

// reaches says that the session has p still: its windows hear of a loss a little later.
func (k *serverLink) reaches(p place) bool {
	_, end, err := k.name.session.Extent(p.off)
	return err == nil && p.end() <= end
}

// persist makes ranges persistent. They are what the client reaches: else it was told of
// memory that it has lost since.
func (k *serverLink) persist(ranges []place) error {
	for _, p := range ranges {
		if !k.window.holds(p) {
			return &refusal{codeStale, fmt.Sprintf("bytes %d to %d", p.off, p.end())}
		}
		err := k.name.session.Persist(p.off, p.n)
		switch {
		case err == nil:
		case errors.Is(err, rdmacache.ErrFenced):
			return err
		case !k.window.holds(p) || !k.reaches(p):
			return &refusal{codeStale, err.Error()}
		default:
			return fmt.Errorf("persist %d bytes at %d: %w", p.n, p.off, err)
		}
	}
	return nil
}
