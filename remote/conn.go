package remote

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strconv"
	"sync/atomic"

	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/rdmacache/tcp"
	"github.com/rpmemfs/rpmemfs/rdmacache/verbs"
)

// A conn is the data path of a session. It is over when the session is, and the
// other way round: without its bytes a pool is of no use.
type conn struct {
	rdmacache.Conn
	pool *Pool

	// Each publishes only itself.
	written atomic.Uint64 // Writes that returned
	flushed atomic.Uint64 // of these, how many a Flush covered at least
}

// connect opens the data path on the port that the memory node named.
func (p *Pool) connect(ctx context.Context, cfg Config, host string) error {
	ctx, cancel := context.WithTimeout(ctx, answerIn)
	defer cancel()
	dial := p.dialTCP
	if cfg.NIC != nil {
		dial = p.dialRDMA
	}
	data, err := dial(ctx, cfg, host)
	if err != nil {
		return err
	}
	p.mu.Lock()
	over := p.err
	p.data = &conn{Conn: data, pool: p}
	p.mu.Unlock()
	if over != nil {
		_ = data.Close() // end came too early to do it
	}
	return over
}

// dialTCP opens the data path over TCP.
func (p *Pool) dialTCP(ctx context.Context, cfg Config, host string) (rdmacache.Conn, error) {
	address := net.JoinHostPort(host, strconv.Itoa(int(p.opened.GetDataPort())))
	p.transport = transportOf("tcp", cfg.TLS)
	return p.dialStream(ctx, cfg.TLS, host, func(ctx context.Context) (net.Conn, error) { return cfg.Dial(ctx, "tcp", address) })
}

// dialStream opens the data path over connections that connect makes.
func (p *Pool) dialStream(ctx context.Context, security *tls.Config, host string, connect func(context.Context) (net.Conn, error)) (rdmacache.Conn, error) {
	if security != nil && security.ServerName == "" {
		security = security.Clone()
		security.ServerName = host
	}
	c, err := tcp.Dial(ctx, tcp.Config{
		Connect: func(ctx context.Context) (net.Conn, error) {
			if err := p.over(); err != nil {
				return nil, err
			}
			return secured(ctx, connect, security)
		},
		Token:    [32]byte(p.token),
		Patience: p.lease.patience,
		Log:      p.log,
	})
	if err != nil {
		return nil, err // not a nil *tcp.Conn
	}
	return c, nil
}

// secured makes a connection, with TLS unless security is nil.
func secured(ctx context.Context, connect func(context.Context) (net.Conn, error), security *tls.Config) (net.Conn, error) {
	nc, err := connect(ctx)
	if err != nil || security == nil {
		return nc, err
	}
	secure := tls.Client(nc, security)
	if err := secure.HandshakeContext(ctx); err != nil {
		_ = nc.Close() // nothing was sent over it
		return nil, err
	}
	return secure, nil
}

// transportOf is a transport for people.
func transportOf(name string, security *tls.Config) string {
	if security != nil {
		name += ", TLS"
	}
	return name
}

func (c *conn) Read(ctx context.Context, b []byte, off int64) error {
	if err := c.pool.check(); err != nil {
		return err
	}
	return c.result(c.Conn.Read(ctx, b, off))
}

func (c *conn) Write(ctx context.Context, b []byte, off int64) error {
	if err := c.pool.check(); err != nil {
		return err
	}
	err := c.Conn.Write(ctx, b, off)
	c.written.Add(1)
	return c.result(err)
}

func (c *conn) Flush(ctx context.Context) error {
	if err := c.pool.check(); err != nil {
		return err
	}
	written := c.written.Load()
	if err := c.Conn.Flush(ctx); err != nil {
		return c.result(err)
	}
	c.flushed.Store(written)
	return nil
}

// settle waits until no Write is on its way. What loses slots calls it before: a
// Write to them that came later would end the data path.
func (c *conn) settle(ctx context.Context) error {
	if c.flushed.Load() == c.written.Load() {
		return nil
	}
	return c.Flush(ctx)
}

// result is what a call returns whose transport returned err.
func (c *conn) result(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, rdmacache.ErrFenced) || errors.Is(err, tcp.ErrLost) || errors.Is(err, verbs.ErrLost) {
		c.pool.end(fenced(err))
	}
	if over := c.pool.Err(); over != nil {
		return over
	}
	return err
}
