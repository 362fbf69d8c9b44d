// Package remote is a compute node's end of a memory node: a pool, or a share of
// one, that another machine owns. Pool is what a mount needs of a pool (names,
// attributes, space) over the memory node's API, and Conn the way to its bytes.
//
// Dial opens a session, which has the share's lease: nobody else writes to it.
// Pool asks for the lease to last on every third of its time, and counts from when
// it asked, so that it never believes in its lease longer than the memory node
// does. When the memory node says that the lease is over, or does not answer for a
// whole lease, everything returns rdmacache.ErrFenced for good, and Done tells.
// What was acknowledged is durable, nothing later reaches the pool, and a new
// session is the way on.
//
// Until then a connection that breaks is made again, and calls are repeated, with
// a number by which the memory node knows a change that it did already, also after it
// was killed and started again.
package remote

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/node/nodepb"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/rdmacache/verbs"
	"github.com/rpmemfs/rpmemfs/region"
)

// A Config says what to open where. The zero value of an optional field is
// documented with it.
type Config struct {
	Address string      // of the control API: host:port
	TLS     *tls.Config // who we are and whom we trust; nil: nothing is encrypted
	// Share is the name of a share, or nodepb.WholePool; empty: what the memory
	// node has for this caller.
	Share    string
	Create   bool          // make the share if it is missing
	ReadOnly bool          // change nothing; the lease is needed all the same
	Reader   bool          // read only, without the lease, beside whoever has it: see Pin
	Steal    bool          // end the session that has the lease, instead of waiting
	Wait     time.Duration // for the lease, at most
	Lease    time.Duration // wanted; 0: as the memory node says
	// Patience is how long calls wait for a memory node that does not answer, before the
	// session is over, if that is longer than the lease. Beyond the lease the session ends as
	// soon as anybody else wants the share, or the memory node restarts and is not reached for as
	// long as the lease; what was not acknowledged is lost then.
	Patience  time.Duration
	Heartbeat time.Duration // between renewals of the lease, at most half of it; 0: a third
	Holder    string        // who opens, for people: "host:/mountpoint"
	Log       *slog.Logger  // nil discards
	// NIC makes the connections of the data path, which is not encrypted then; nil: they
	// are as those of the API.
	NIC    verbs.NIC
	Queues int // queue pairs of NIC; 0: a default
	// Dial makes the connections, which TLS then encrypts; nil is TCP.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// answerIn bounds in Dial and Close what is not waiting for a lease, leaveIn what a
// Dial that is given up does for others.
const (
	answerIn = 10 * time.Second
	leaveIn  = time.Second
)

// A Pool is a session on a memory node. It is safe for concurrent use. Every call
// ends by the end of the lease, or of Config.Patience.
//
// It is live, then over: by the end of its lease or by Close.
type Pool struct {
	node     nodepb.NodeClient // immutable, as all up to lease
	grpc     *grpc.ClientConn  // owned
	link     *link
	address  string
	log      *slog.Logger
	identity metadata.MD // what calls of the session carry
	session  []byte
	token    []byte
	opened   *nodepb.OpenResponse
	// transport is how the data path goes, for people, unless it is a verbs.Conn, which knows;
	// set before Dial returns.
	transport string

	lease    lease
	calls    chan struct{} // holds an element for each call under way
	requests requests
	inodes   inodeCache
	traffic  trafficCache

	closing sync.Once
	stop    chan struct{} // closed by Close; ends the keeper
	kept    chan struct{} // closed when the keeper has ended

	done chan struct{} // closed when the session is over
	mu   sync.Mutex    // guards the fields below
	err  error         // why it is over; set once
	data *conn         // owned; set once, before Dial returns
}

var (
	_ namespace.Directory = (*Pool)(nil)
	_ region.Space        = (*Pool)(nil)
)

// Dial opens a session and connects to the pool's bytes.
//
// It returns ErrLeased if the lease is not free within Wait, ErrUnavailable if the
// memory node cannot be reached, ErrPermission, namespace.ErrNotExist if there is
// no such share.
func Dial(ctx context.Context, cfg Config) (*Pool, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Dial == nil {
		cfg.Dial = dialTCP
	}
	host, _, err := net.SplitHostPort(cfg.Address)
	if err != nil {
		return nil, err
	}
	p := &Pool{
		link:    &link{connect: cfg.Dial},
		address: cfg.Address,
		log:     cfg.Log,
		calls:   make(chan struct{}, maxCalls),
		stop:    make(chan struct{}),
		kept:    make(chan struct{}),
		done:    make(chan struct{}),
	}
	p.inodes.off = cfg.Reader
	if p.grpc, err = newClient(cfg, p.link); err != nil {
		return nil, err
	}
	p.node = nodepb.NewNodeClient(p.grpc)
	if err := p.open(ctx, cfg); err != nil {
		return nil, errors.Join(err, p.grpc.Close())
	}
	go p.keep()
	if err := p.connect(ctx, cfg, host); err != nil {
		return nil, errors.Join(fmt.Errorf("open the data path: %w", err), p.Close())
	}
	return p, nil
}

// open gets the session. It repeats itself when an answer was lost, but gives up
// at once on a memory node that was never there.
func (p *Pool) open(ctx context.Context, cfg Config) error {
	ctx, cancel := context.WithTimeout(ctx, cfg.Wait+answerIn)
	defer cancel()
	req := &nodepb.OpenRequest{
		Share:    cfg.Share,
		Steal:    cfg.Steal,
		Wait:     uint64(max(cfg.Wait, 0)),
		Holder:   cfg.Holder,
		Lease:    uint64(max(cfg.Lease, 0)),
		Create:   cfg.Create,
		ReadOnly: cfg.ReadOnly,
		Reader:   cfg.Reader,
		Patience: uint64(max(cfg.Patience, 0)),
		Nonce:    make([]byte, nodepb.NonceSize),
	}
	_, _ = rand.Read(req.Nonce) // never fails
	begun := time.Now()
	for sent := false; ; {
		var at peer.Peer
		resp, err := p.node.Open(ctx, req, grpc.Peer(&at))
		if err == nil {
			return p.begin(resp, cfg)
		}
		err = decode(err)
		sent = sent || at.Addr != nil
		if !unanswered(err) || !sent {
			return err
		}
		select {
		case <-time.After(pauseMax):
		case <-ctx.Done():
			p.leave(req)
			return err
		}
		req.Wait = uint64(max(cfg.Wait-time.Since(begun), 0))
	}
}

// leave ends the session that a request may have got just as nobody waited for it any
// more: nobody would keep its lease alive, and others would wait for the end of that.
// The request itself, repeated, tells which session it is.
func (p *Pool) leave(req *nodepb.OpenRequest) {
	ctx, cancel := context.WithTimeout(context.Background(), leaveIn)
	defer cancel()
	req.Wait, req.Steal = 0, false
	for {
		resp, err := p.node.Open(ctx, req, grpc.WaitForReady(true))
		if err == nil {
			_, err = p.node.Close(ctx, &nodepb.CloseRequest{Session: resp.GetSession(), Token: resp.GetToken()})
		}
		if err == nil || !unanswered(decode(err)) {
			return
		}
		select {
		case <-time.After(pauseMin):
		case <-ctx.Done():
			p.log.Warn("a lease may be held in vain for its time", "node", p.address, "err", err)
			return
		}
	}
}

// begin takes over what the memory node says of the new session.
func (p *Pool) begin(resp *nodepb.OpenResponse, cfg Config) error {
	length := time.Duration(min(resp.GetLease(), uint64(maxLease)))
	switch {
	case len(resp.GetSession()) != nodepb.SessionSize || len(resp.GetToken()) != nodepb.TokenSize:
		return fmt.Errorf("%w: a session of %d bytes and a token of %d", ErrProtocol, len(resp.GetSession()), len(resp.GetToken()))
	case length < minLease:
		return fmt.Errorf("%w: a lease of %v", ErrProtocol, length)
	case resp.GetDataPort() == 0 || resp.GetDataPort() > 0xffff:
		return fmt.Errorf("%w: data port %d", ErrProtocol, resp.GetDataPort())
	case resp.GetSizeBytes() > uint64(region.MaxSlot.Offset()):
		return fmt.Errorf("%w: a pool of %d bytes", ErrProtocol, resp.GetSizeBytes())
	}
	p.opened = resp
	p.session, p.token = resp.GetSession(), resp.GetToken()
	p.identity = metadata.Pairs(nodepb.SessionKey, string(p.session), nodepb.TokenKey, string(p.token))
	p.lease.begin(length, cfg.Patience, cfg.Heartbeat)
	return nil
}

// Generation is the number of the session's lease: that of every record that it
// writes.
func (p *Pool) Generation() uint64 { return p.opened.GetGeneration() }

// Share is the name of what is open; nodepb.WholePool for the pool itself.
func (p *Pool) Share() string { return p.opened.GetShare() }

// ID is the pool's UUID in text.
func (p *Pool) ID() string { return p.opened.GetPool() }

// Lease is how long the lease lasts without a word of ours.
func (p *Pool) Lease() time.Duration { return p.lease.length }

// Transport says how bytes go now, for people: "tcp, TLS", "rdma, persistent by flush".
func (p *Pool) Transport() string {
	if c, ok := p.dataPath().Conn.(*verbs.Conn); ok {
		return persistentBy(c)
	}
	return p.transport
}

// ReadOnly reports a session that cannot change anything.
func (p *Pool) ReadOnly() bool { return p.opened.GetReadOnly() }

// Conn is the way to the pool's bytes: those of the session's regions. Its calls
// return rdmacache.ErrFenced when the session is over. The pool owns it.
func (p *Pool) Conn() rdmacache.Conn { return p.dataPath() }

func (p *Pool) dataPath() *conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.data
}

// Done is closed when the session is over.
func (p *Pool) Done() <-chan struct{} { return p.done }

// Err says why the session is over: what matches rdmacache.ErrFenced, or ErrClosed.
// It is nil before.
func (p *Pool) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// end makes the session over, unless it is.
func (p *Pool) end(why error) {
	p.mu.Lock()
	first, data := p.err == nil, p.data
	if first {
		p.err = why
		close(p.done)
	}
	p.mu.Unlock()
	if !first {
		return
	}
	// The calls under way fail, and return why.
	_ = p.grpc.Close()
	if data != nil {
		_ = data.Close()
	}
}

// Close ends the session and gives its lease back at once. It flushes nothing:
// what was acknowledged is durable, the rest is lost. Calls under way fail. It
// returns why the lease was over before, if it was.
func (p *Pool) Close() error {
	err := ErrClosed
	p.closing.Do(func() {
		close(p.stop)
		<-p.kept
		err = p.release()
		p.end(ErrClosed)
	})
	return err
}

// release gives the lease back.
func (p *Pool) release() error {
	ctx, cancel := context.WithTimeout(context.Background(), min(answerIn, p.lease.left()))
	defer cancel()
	_, err := ask(ctx, p, p.node.Close, &nodepb.CloseRequest{Session: p.session, Token: p.token})
	if err == nil {
		return nil
	}
	if over := p.check(); over != nil {
		err = over
	}
	return fmt.Errorf("give back the lease: %w", err)
}
