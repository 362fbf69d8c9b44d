package node

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/rpmemfs/rpmemfs/memnode"
	"github.com/rpmemfs/rpmemfs/node/nodepb"
)

const servicePrefix = "/rpmemfs.node.v1.Node/"

// withoutSession names the calls that no session makes.
var withoutSession = map[string]bool{
	nodepb.Node_Open_FullMethodName:       true,
	nodepb.Node_KeepAlive_FullMethodName:  true,
	nodepb.Node_Close_FullMethodName:      true,
	nodepb.Node_Shares_FullMethodName:     true,
	nodepb.Node_MakeShare_FullMethodName:  true,
	nodepb.Node_SetQuota_FullMethodName:   true,
	nodepb.Node_EndSession_FullMethodName: true,
}

// A change is a request that changes something.
type change interface {
	proto.Message
	GetRequestId() uint64
}

// sessionKey is the context key of a call's *session.
type sessionKey struct{}

// viewOf returns the pool as the caller's session sees it.
func viewOf(ctx context.Context) *memnode.View {
	return ctx.Value(sessionKey{}).(*session).view
}

func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	reply, err := s.call(ctx, req, info.FullMethod, handle)
	if err != nil {
		return nil, s.fail(info.FullMethod, err)
	}
	return reply, nil
}

func (s *Server) call(ctx context.Context, req any, method string, handle grpc.UnaryHandler) (any, error) {
	// Everything else here is gRPC's own: health.
	if !strings.HasPrefix(method, servicePrefix) || withoutSession[method] {
		return handle(ctx, req)
	}
	session, t, err := s.sessionOf(ctx)
	if err != nil {
		return nil, err
	}
	c, ok := req.(change)
	if !ok {
		ctx, cancel := session.bind(ctx)
		defer cancel()
		reply, err := handle(ctx, req)
		return reply, session.blame(err)
	}
	if t.readOnly() {
		return nil, errReadOnly
	}
	id := c.GetRequestId()
	d, err := digestOf(method, c)
	if err != nil {
		return nil, err
	}
	waiting, cancel := session.bind(ctx)
	defer cancel()
	reply, err := session.answers.do(waiting, id, d, func() (proto.Message, error) {
		// A change goes on when its caller's connection breaks: the caller comes again
		// for the answer.
		ctx, cancel := session.bind(context.WithoutCancel(ctx))
		defer cancel()
		// The answers are lost with this process. What it did is in the pool.
		ctx = memnode.WithRequest(ctx, memnode.Request{ID: id, Generation: session.lease.Generation, Digest: d})
		reply, err := handle(ctx, req)
		if err != nil {
			return nil, session.blame(err)
		}
		return reply.(proto.Message), nil
	})
	if err != nil {
		return nil, session.blame(err)
	}
	return reply, nil
}

func (s *Server) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	if !strings.HasPrefix(info.FullMethod, servicePrefix) {
		return handle(srv, stream) // reflection
	}
	session, t, err := s.sessionOf(stream.Context())
	if err == nil && info.FullMethod == nodepb.Node_Watch_FullMethodName && t.readOnly() {
		err = errReadOnly // it can pin nothing
	}
	if err == nil {
		ctx, cancel := session.bind(stream.Context())
		defer cancel()
		err = session.blame(handle(srv, sessionStream{stream, ctx}))
	}
	return s.fail(info.FullMethod, err)
}

// A sessionStream is a stream with its session in the context.
type sessionStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s sessionStream) Context() context.Context { return s.ctx }

// bind returns ctx with the session in it, done when the session ends too.
func (s *session) bind(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.WithValue(ctx, sessionKey{}, s))
	stop := context.AfterFunc(s.life, cancel)
	return ctx, func() {
		stop()
		cancel()
	}
}

// blame returns why the session ended instead of that the call was cancelled.
func (s *session) blame(err error) error {
	if errors.Is(err, context.Canceled) && s.life.Err() != nil {
		return context.Cause(s.life)
	}
	return err
}

// sessionOf returns the session that a call's metadata names, with its token.
func (s *Server) sessionOf(ctx context.Context) (*session, token, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	one := func(key string) []byte {
		if values := md.Get(key); len(values) == 1 {
			return []byte(values[0])
		}
		return nil
	}
	id, t, err := credentialsOf(one(nodepb.SessionKey), one(nodepb.TokenKey))
	if err != nil {
		return nil, token{}, err
	}
	found, err := s.sessions.session(id, t)
	return found, t, err
}

// credentialsOf takes a session's number and token from what a caller sent.
func credentialsOf(id, secret []byte) (sessionID, token, error) {
	if len(id) != nodepb.SessionSize || len(secret) != nodepb.TokenSize {
		return sessionID{}, token{}, fmt.Errorf("%w: the call names no session", errPermission)
	}
	return sessionID(id), token(secret), nil
}

func (s *Server) fail(method string, err error) error {
	if err == nil {
		return nil
	}
	s.log.Debug("call failed", "method", method, "error", err)
	return wire.Encode(err)
}
