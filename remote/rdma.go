package remote

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/rpmemfs/rpmemfs/node/nodepb"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/rdmacache/verbs"
)

// ErrNoRDMA reports a memory node that serves no RDMA.
var ErrNoRDMA = errors.New("remote: the memory node serves no RDMA: start it with --rdma, or mount tcp://")

// dialRDMA opens the data path over RDMA. Where a device does not reach the memory node's
// medium that is a stream of messages, over which package tcp's protocol goes, in TLS if
// the control API does.
func (p *Pool) dialRDMA(ctx context.Context, cfg Config, host string) (rdmacache.Conn, error) {
	port := p.opened.GetRdmaPort()
	if port == 0 || port > 0xffff {
		return nil, ErrNoRDMA
	}
	vc := verbs.Config{
		NIC:      cfg.NIC,
		Address:  net.JoinHostPort(host, strconv.Itoa(int(port))),
		Token:    p.dataToken,
		Patience: p.lease.patience,
		Queues:   cfg.Queues,
		Log:      p.log,
	}
	c, err := verbs.Dial(ctx, vc)
	if err == nil {
		return c, nil
	}
	if !errors.Is(err, verbs.ErrMessage) {
		return nil, err
	}
	p.transport = transportOf("rdma, messages that the memory node's processor stores", cfg.TLS)
	return p.dialStream(ctx, cfg.TLS, host, func(ctx context.Context) (net.Conn, error) { return verbs.DialStream(ctx, vc) })
}

// persistentBy says how bytes go over RDMA, for people: "rdma, persistent by flush".
func persistentBy(c *verbs.Conn) string {
	var names []string
	for _, m := range c.Methods() {
		if name := m.String(); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return "rdma, persistent by " + strings.Join(names, ", ")
}

// RDMA returns what the data path has counted; false where it is not over RDMA, or goes
// by messages.
func (p *Pool) RDMA() (verbs.Stats, bool) {
	if c, ok := p.dataPath().Conn.(*verbs.Conn); ok {
		return c.Stats(), true
	}
	return verbs.Stats{}, false
}

// dataToken asks for the right to one connection of the RDMA data path. It ends nothing,
// as over.
func (p *Pool) dataToken(ctx context.Context) (t [32]byte, err error) {
	if err := p.over(); err != nil {
		return t, err
	}
	resp, err := p.node.DataToken(metadata.NewOutgoingContext(ctx, p.identity), &nodepb.DataTokenRequest{}, grpc.WaitForReady(true))
	switch {
	case err != nil:
		return t, decode(err)
	case len(resp.GetToken()) != len(t):
		return t, fmt.Errorf("%w: a token of %d bytes", ErrProtocol, len(resp.GetToken()))
	}
	return [32]byte(resp.GetToken()), nil
}
