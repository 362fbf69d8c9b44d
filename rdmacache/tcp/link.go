package tcp

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rpmemfs/rpmemfs/rdmacache"
)

// slowBytes bounds the READs of a connection that wait for a slow medium.
const slowBytes = 2 << 20

// drainTime bounds how long a connection goes on when the server stops. A flush takes
// milliseconds, and on a disk that is busy some hundred. It is less than calls of the
// API get then (package node), so that nobody waits for it alone, and less than the third
// of the usual lease after which a client would not wait for the answer.
const drainTime = 2 * time.Second

// A link is one connection of a client, at the server.
//
// Requests are applied in their order by one goroutine. Where the medium waits for
// a device, READs and FLUSHes wait beside it: a FLUSH takes along the writes before
// it, and a READ sees them.
type link struct {
	nc        *direct // immutable, as all up to drained
	session   Session
	medium    rdmacache.Medium
	hello     hello
	before    <-chan struct{} // drained of the connection before; nil: none
	drained   chan struct{}   // closed when no write of it is applied any more
	drainOnce func()

	rx      *receiver // of serve
	out     *answers
	seq     uint64 // of the last request
	failed  error  // a write failed: no FLUSH succeeds from now on
	noSpace error  // a write since the last FLUSH found no space

	slow  sync.WaitGroup
	room  chan struct{} // tokens of slowUnit bytes, for READs beside
	flush chan struct{} // one token: FLUSHes beside come one after the other
	busy  atomic.Int64  // requests at work; statistics, publishes nothing
}

// slowUnit is what a token of link.room stands for.
const slowUnit = 64 << 10

func newLink(nc *direct, session Session, h hello) *link {
	k := &link{
		nc: nc, session: session, medium: session.Medium(), hello: h, drained: make(chan struct{}),
		room: make(chan struct{}, slowBytes/slowUnit), flush: make(chan struct{}, 1),
	}
	k.drainOnce = sync.OnceFunc(func() { close(k.drained) })
	return k
}

// serve answers requests until the connection or the session ends. When ctx ends it takes
// those that have arrived, answers them, and is done.
func (k *link) serve(ctx context.Context) error {
	k.rx, k.out = newReceiver(k.nc), newAnswers(k.nc)
	stop := context.AfterFunc(ctx, k.drain)
	defer stop()
	served, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var watch sync.WaitGroup
	watch.Go(func() { k.watch(served, ctx) })
	defer watch.Wait()
	defer cancel()
	defer k.slow.Wait()
	err := k.loop()
	k.drainOnce()
	if c := codeOf(err, codeOK); c != codeOK {
		k.out.add(header{kind: kindError, code: c}, err.Error())
		_ = k.out.send()
	}
	return err
}

// drain lets nothing come but what is there. Neither a client that goes on sending, nor
// one that does not take its answers, nor a medium that does not answer, has more than
// drainTime.
func (k *link) drain() {
	time.AfterFunc(drainTime, k.nc.cut) // which has ended by then
	k.nc.CloseRead()
}

// loop takes requests until one breaks the protocol, the session is over, or the
// connection.
func (k *link) loop() error {
	for {
		if !k.rx.ready() {
			// Answers go out before the wait for more, and together.
			if err := k.out.send(); err != nil {
				return err
			}
		}
		h, err := k.rx.header()
		if err == nil && h.kind != kindWrite {
			err = h.verify(nil)
		}
		if err != nil {
			return err
		}
		if h.sequence != k.seq+1 {
			return fmt.Errorf("%w: request %d after %d", errProtocol, h.sequence, k.seq)
		}
		k.seq++
		switch h.kind {
		case kindWrite:
			err = k.write(h)
		case kindRead:
			k.busy.Add(1)
			k.beside(int(h.length), func() { k.read(h) })
		case kindFlush:
			k.busy.Add(1)
			err = k.takeFlush(h)
		default:
			err = fmt.Errorf("%w: a request of kind %d", errProtocol, h.kind)
		}
		if err != nil {
			return err
		}
	}
}

// write takes the data of a WRITE and applies it: in pieces, if it is long. Of one that
// is damaged some may be stored then. Nothing refers to that before the FLUSH, which
// never comes over this connection.
//
// What the medium refuses is the next FLUSH's error, unless the session is over.
func (k *link) write(h header) error {
	n, done, sum := int(h.length), 0, uint32(0)
	var failed error
	for done < n {
		p, upto, err := k.rx.some(min(n-done, longData), sum)
		if err != nil {
			return err
		}
		if sum = upto; done+len(p) == n && sum != h.sum {
			return errCorrupt
		}
		if failed == nil {
			k.busy.Add(1) // not while data is waited for: that it comes is the client's to show
			failed = k.session.WriteAt(p, h.offset+int64(done))
			k.busy.Add(-1)
		}
		done += len(p)
	}
	if failed == nil {
		return nil
	}
	failed = fmt.Errorf("write %d bytes at %d: %w", h.length, h.offset, failed)
	switch codeOf(failed, codePoisoned) {
	case codeFenced:
		return failed
	case codeNoSpace:
		k.noSpace = failed
	default:
		k.failed = failed
	}
	return nil
}

// takeFlush answers a FLUSH with what became of the writes before it.
func (k *link) takeFlush(h header) error {
	err := k.noSpace
	k.noSpace = nil
	if k.failed != nil {
		err = k.failed
	}
	if err != nil {
		k.busy.Add(-1)
		k.refuse(h, err, codePoisoned)
		return nil
	}
	// The client has one FLUSH under way; who sends more waits here.
	k.flush <- struct{}{}
	k.beside(0, func() {
		defer func() { <-k.flush }()
		if err := k.session.Flush(); err != nil {
			k.refuse(h, fmt.Errorf("flush: %w", err), codePoisoned)
			return
		}
		k.out.add(header{kind: kindDone, sequence: h.sequence}, "")
	})
	return nil
}

// read answers a READ.
func (k *link) read(h header) {
	var err error
	if k.waits() {
		err = k.out.readInto(make([]byte, headerSize+int(h.length)), h, k.session.ReadAt)
	} else {
		err = k.out.read(h, k.session.ReadAt)
	}
	if err != nil {
		k.refuse(h, fmt.Errorf("read %d bytes at %d: %w", h.length, h.offset, err), codeRead)
	}
}

func (k *link) refuse(h header, err error, other code) {
	c := codeOf(err, other)
	if c == codeNoSpace && h.kind == kindRead || c == codeProtocol || c == codeOK {
		c = other
	}
	k.out.add(header{kind: kindError, code: c, sequence: h.sequence}, err.Error())
}

// waits says that the medium may have to wait for its device.
func (k *link) waits() bool { return slow(k.medium) }

// beside does the work of a request of n bytes: at once, or in a goroutine where
// the medium waits.
func (k *link) beside(n int, work func()) {
	if !k.waits() {
		work()
		k.busy.Add(-1)
		return
	}
	tokens := (n + slowUnit - 1) / slowUnit
	for range tokens {
		k.room <- struct{}{}
	}
	k.slow.Go(func() {
		work()
		for range tokens {
			<-k.room
		}
		k.busy.Add(-1)
		_ = k.out.send() // the loop finds the connection closed
	})
}

// watch cuts the connection when the session is over, and tells the client that
// what it waits for is at work, until served ends. server is the context of the server.
func (k *link) watch(served, server context.Context) {
	tick := time.NewTicker(k.hello.alive)
	defer tick.Stop()
	heard := int64(0)
	for {
		select {
		case <-served.Done():
			return
		case <-k.session.Done():
			if server.Err() != nil {
				// A node that stops ends what waits in its sessions, though they go
				// on at the next one, which tells of those that do not.
				k.nc.cut()
				return
			}
			// A client that takes nothing is not told why.
			late := time.AfterFunc(time.Second, func() { _ = k.nc.Close() })
			defer late.Stop()
			k.out.add(header{kind: kindError, code: codeFenced}, "the session is over")
			_ = k.out.send()
			_ = k.nc.Close()
			return
		case <-tick.C:
			// A long message counts as work: it may take long to arrive.
			now := k.rx.heard.Load()
			if k.busy.Load() > 0 || now != heard {
				k.out.alive()
			}
			heard = now
		}
	}
}
