package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/rpmemfs/rpmemfs/control/controlpb"
)

// A Client calls a Server. Its errors match the sentinels that the server's
// matched; see Error. It is safe for concurrent use.
type Client struct {
	controlpb.ControlClient
	conn *grpc.ClientConn
}

// Dial returns a client of the server that listens on a unix socket. It does not
// connect: a dead daemon shows at the first call, as ErrUnavailable.
func Dial(socket string) (*Client, error) {
	return NewClient(func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	})
}

// NewClient returns a client over connections that dial makes. They must be of
// unix sockets.
func NewClient(dial func(context.Context) (net.Conn, error)) (*Client, error) {
	d := &dialer{dial: dial}
	conn, err := grpc.NewClient("passthrough:///control",
		grpc.WithContextDialer(d.dialContext),
		grpc.WithTransportCredentials(peerCredentials{}),
		grpc.WithNoProxy(),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingEvery, Timeout: pingEvery}),
		grpc.WithIdleTimeout(0), // a Pipe cannot be dialled twice
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxResponseBytes)),
		grpc.WithUnaryInterceptor(d.unary),
		grpc.WithStreamInterceptor(d.stream),
	)
	if err != nil {
		return nil, err
	}
	return &Client{controlpb.NewControlClient(conn), conn}, nil
}

// Close ends the connection; calls under way fail.
func (c *Client) Close() error { return c.conn.Close() }

// A dialer makes connections, and Go errors of the errors of calls.
type dialer struct {
	dial func(context.Context) (net.Conn, error)

	mu  sync.Mutex
	err error // of the last dial; gRPC keeps only its text
}

func (d *dialer) dialContext(ctx context.Context, _ string) (net.Conn, error) {
	conn, err := d.dial(ctx)
	d.mu.Lock()
	d.err = err
	d.mu.Unlock()
	return conn, err
}

// callError makes a Go error of the error of a call. A socket that the caller may
// not open is ErrPermission, like a call that the server refuses.
func (d *dialer) callError(err error) error {
	err = clientError(err)
	d.mu.Lock()
	defer d.mu.Unlock()
	if errors.Is(err, ErrUnavailable) && errors.Is(d.err, fs.ErrPermission) {
		return fmt.Errorf("%w: %w", ErrPermission, d.err)
	}
	return err
}

func (d *dialer) unary(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if err := invoke(ctx, method, req, reply, conn, opts...); err != nil {
		return d.callError(err)
	}
	return nil
}

func (d *dialer) stream(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, stream grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := stream(ctx, desc, conn, method, opts...)
	if err != nil {
		return nil, d.callError(err)
	}
	return errorStream{s, d}, nil
}

// errorStream makes Go errors of the errors of a stream.
type errorStream struct {
	grpc.ClientStream
	dialer *dialer
}

func (s errorStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	return s.dialer.callError(err)
}
