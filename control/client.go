package control

import (
	"context"
	"errors"
	"io"
	"net"

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
	conn, err := grpc.NewClient("passthrough:///control",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return dial(ctx) }),
		grpc.WithTransportCredentials(peerCredentials{}),
		grpc.WithNoProxy(),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingEvery, Timeout: pingEvery}),
		grpc.WithIdleTimeout(0), // a Pipe cannot be dialled twice
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxResponseBytes)),
		grpc.WithUnaryInterceptor(clientUnary),
		grpc.WithStreamInterceptor(clientStream),
	)
	if err != nil {
		return nil, err
	}
	return &Client{controlpb.NewControlClient(conn), conn}, nil
}

// Close ends the connection; calls under way fail.
func (c *Client) Close() error { return c.conn.Close() }

func clientUnary(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if err := invoke(ctx, method, req, reply, conn, opts...); err != nil {
		return clientError(err)
	}
	return nil
}

func clientStream(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, stream grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := stream(ctx, desc, conn, method, opts...)
	if err != nil {
		return nil, clientError(err)
	}
	return errorStream{s}, nil
}

// errorStream makes Go errors of the errors of a stream.
type errorStream struct{ grpc.ClientStream }

func (s errorStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	return clientError(err)
}
