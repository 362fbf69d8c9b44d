package remote

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"

	"github.com/rpmemfs/rpmemfs/node/nodepb"
	"github.com/rpmemfs/rpmemfs/rdmacache"
)

// A call that was not answered is repeated after a pause that doubles from
// pauseMin to pauseMax; connections are tried about as often.
const (
	pauseMin = 10 * time.Millisecond
	pauseMax = 250 * time.Millisecond

	// connectIn is how long gRPC waits for a connection before it tries another.
	connectIn = 5 * time.Second

	// pingEvery is how long a connection may let a call wait in silence before gRPC
	// asks whether it lives, and again for the answer. It is for what KeepAlive does
	// not watch: an Open that waits for its turn, a connection that is being left.
	pingEvery = 10 * time.Second

	// maxCalls is how many calls are under way at a time. It is below what a memory
	// node takes of one connection, so that KeepAlive never waits for others.
	maxCalls = 128
)

func newClient(cfg Config, l *link) (*grpc.ClientConn, error) {
	security := insecure.NewCredentials()
	if cfg.TLS != nil {
		security = credentials.NewTLS(cfg.TLS)
	}
	return grpc.NewClient("passthrough:///"+cfg.Address,
		grpc.WithContextDialer(l.dial),
		grpc.WithTransportCredentials(security),
		grpc.WithNoProxy(),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingEvery, Timeout: pingEvery}),
		grpc.WithDisableRetry(), // Pool repeats calls itself
		grpc.WithDisableServiceConfig(),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: pauseMin, Multiplier: 2, Jitter: 0.2, MaxDelay: pauseMax},
			MinConnectTimeout: connectIn,
		}),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallSendMsgSize(nodepb.MaxRequestBytes),
			grpc.MaxCallRecvMsgSize(nodepb.MaxResponseBytes),
		),
	)
}

// A method is a method of nodepb.NodeClient that answers once.
type method[Req, Resp any] func(context.Context, *Req, ...grpc.CallOption) (*Resp, error)

// ask does a call that changes nothing.
func ask[Req, Resp any](ctx context.Context, p *Pool, call method[Req, Resp], req *Req) (resp *Resp, err error) {
	err = p.repeat(ctx, func(ctx context.Context) (err error) {
		resp, err = call(ctx, req, grpc.WaitForReady(true))
		return err
	})
	return resp, err
}

// change does a call that changes something. number makes the request, given its
// number. Once begun it does not look at ctx: nobody could tell whether the change
// was made.
func change[Req, Resp any](ctx context.Context, p *Pool, call method[Req, Resp], number func(id uint64) *Req) (resp *Resp, err error) {
	id, err := p.requests.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer p.requests.end(id)
	req := number(id)
	err = p.repeat(context.WithoutCancel(ctx), func(ctx context.Context) (err error) {
		resp, err = call(ctx, req, grpc.WaitForReady(true))
		return err
	})
	return resp, err
}

// repeat does call until it is answered or the session is over. The errors of call
// are gRPC's, its own are decoded.
func (p *Pool) repeat(ctx context.Context, call func(context.Context) error) error {
	pause := pauseMin
	for {
		if err := p.check(); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		select {
		case p.calls <- struct{}{}:
		case <-p.done:
			return p.Err()
		case <-ctx.Done():
			return ctx.Err()
		}
		err := call(metadata.NewOutgoingContext(ctx, p.identity))
		<-p.calls
		if err == nil {
			return nil
		}
		err = decode(err)
		switch {
		case errors.Is(err, rdmacache.ErrFenced):
			p.end(err)
			return p.Err()
		case !unanswered(err) || ctx.Err() != nil:
			return err
		}
		wait := time.NewTimer(pause)
		select {
		case <-wait.C:
		case <-ctx.Done():
		case <-p.done:
		}
		wait.Stop()
		pause = min(2*pause, pauseMax)
	}
}
