package node

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/rpmemfs/rpmemfs/control/controlpb"
	"github.com/rpmemfs/rpmemfs/internal/rpcerr"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/node/nodepb"
)

// A method is a call of the service, made without its generated client.
type method struct {
	name    string // as in FullMethod
	request protoreflect.MessageType
	reply   protoreflect.MessageType
	stream  bool
}

// methods returns all calls of the service.
func methods(t *testing.T) (out []method) {
	t.Helper()
	typeOf := func(d protoreflect.MessageDescriptor) protoreflect.MessageType {
		mt, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
		if err != nil {
			t.Fatal(err)
		}
		return mt
	}
	all := nodepb.File_node_proto.Services().ByName("Node").Methods()
	for i := range all.Len() {
		m := all.Get(i)
		out = append(out, method{servicePrefix + string(m.Name()), typeOf(m.Input()), typeOf(m.Output()), m.IsStreamingServer()})
	}
	return out
}

// call makes the call with any message and returns its decoded error.
func (m method) call(ctx context.Context, conn *grpc.ClientConn, req proto.Message) error {
	if !m.stream {
		return decode(conn.Invoke(ctx, m.name, req, m.reply.New().Interface()))
	}
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, m.name)
	if err != nil {
		return decode(err)
	}
	if err := errors.Join(s.SendMsg(req), s.CloseSend()); err != nil {
		return decode(err)
	}
	for {
		if err := s.RecvMsg(m.reply.New().Interface()); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return decode(err)
		}
	}
}

func decode(err error) error {
	if err == nil {
		return nil
	}
	return wire.Decode(err)
}

func (n *testNode) conn() *grpc.ClientConn {
	n.t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+n.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = conn.Close() }) // nothing waits for it
	return conn
}

// Every call of a session needs one that lives, and every change one that may write.
func TestEveryCallNeedsASession(t *testing.T) {
	n := newNode(t, Config{})
	s := n.open(&nodepb.OpenRequest{Share: "a", Create: true})
	if _, err := s.node.Close(s.ctx, &nodepb.CloseRequest{Session: s.GetSession(), Token: s.GetToken()}); err != nil {
		t.Fatal(err)
	}
	reader := n.open(&nodepb.OpenRequest{Share: "a", ReadOnly: true})
	conn := n.conn()
	changes := 0
	for _, m := range methods(t) {
		if withoutSession[m.name] {
			continue
		}
		empty := m.request.New().Interface()
		wantReason(t, m.name+" without a session", m.call(t.Context(), conn, empty), controlpb.Reason_REASON_PERMISSION)
		short := sessionContext(t.Context(), s.GetSession(), s.GetToken()[1:])
		wantReason(t, m.name+" with half a token", m.call(short, conn, empty), controlpb.Reason_REASON_PERMISSION)
		twice := sessionContext(sessionContext(t.Context(), reader.GetSession(), reader.GetToken()), reader.GetSession(), reader.GetToken())
		wantReason(t, m.name+" with two sessions", m.call(twice, conn, empty), controlpb.Reason_REASON_PERMISSION)
		wantReason(t, m.name+" with a session that is over", m.call(s.ctx, conn, empty), controlpb.Reason_REASON_FENCED)
		forged := sessionContext(t.Context(), reader.GetSession(), s.GetToken())
		wantReason(t, m.name+" with another's token", m.call(forged, conn, empty), controlpb.Reason_REASON_FENCED)

		_, isChange := empty.(change)
		if named := m.request.Descriptor().Fields().ByName("request_id") != nil; named != isChange {
			t.Errorf("%s: a request id %v, a change %v", m.name, named, isChange)
		}
		err := m.call(reader.ctx, conn, empty)
		if got := reasonOf(err) == controlpb.Reason_REASON_READ_ONLY; got != (isChange || m.name == nodepb.Node_Watch_FullMethodName) {
			t.Errorf("%s by a reader: %v", m.name, err)
		}
		if isChange {
			changes++
		}
	}
	if changes != 15 {
		t.Errorf("%d changes, want 15", changes)
	}
}

// Random requests of a session, of any size and with any numbers, are answered, and
// leave a sound pool with nothing of others touched.
func TestRandomRequests(t *testing.T) {
	seed := *seed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	n := newNode(t, Config{})
	other := n.open(&nodepb.OpenRequest{Share: "other", Create: true})
	ino := n.file(other, "f")
	n.grant(other, ino)
	before, err := other.node.Locate(other.ctx, &nodepb.LocateRequest{Ino: ino})
	if err != nil {
		t.Fatal(err)
	}
	s := n.open(&nodepb.OpenRequest{Share: "mine", Create: true})
	conn := n.conn()
	known := []uint64{0, 1, 2, ino, n.file(s, "mine"), n.file(s, "too"), 1 << 47, 1 << 63}
	done := 0
	for range 40 {
		for _, m := range methods(t) {
			if withoutSession[m.name] || m.name == nodepb.Node_Watch_FullMethodName { // it would not end
				continue
			}
			req := m.request.New()
			fill(rng, req, known)
			err := m.call(s.ctx, conn, req.Interface())
			var e *rpcerr.Error
			switch {
			case err == nil:
				done++
			case !errors.As(err, &e):
				t.Fatalf("%s %v: %v", m.name, req, err)
			case e.Code == codes.Unavailable || e.Code == codes.Internal || e.Code == codes.DataLoss:
				t.Fatalf("%s %v: %v: %v", m.name, req, e.Code, err)
			}
		}
	}
	if done < 40 {
		t.Errorf("only %d requests made sense", done)
	}
	after, err := other.node.Locate(other.ctx, &nodepb.LocateRequest{Ino: ino})
	if err != nil || !proto.Equal(before, after) {
		t.Errorf("the other's file: %v, %v, want %v", after, err, before)
	}
	if err := n.pool.Check(t.Context(), func(problem string) { t.Error(problem) }); err != nil {
		t.Error(err)
	}
}

// fill sets the fields of m to what a hostile or a confused client might send.
func fill(rng *rand.Rand, m protoreflect.Message, known []uint64) {
	number := func() uint64 {
		switch rng.IntN(4) {
		case 0:
			return rng.Uint64()
		case 1:
			return uint64(rng.IntN(64))
		}
		return known[rng.IntN(len(known))]
	}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if rng.IntN(8) == 0 {
			continue
		}
		switch {
		case f.Name() == "mode" && rng.IntN(2) == 0:
			m.Set(f, protoreflect.ValueOfUint32([]uint32{0o100644, 0o40755, 0o120777}[rng.IntN(3)]))
			continue
		case f.IsList():
			list := m.Mutable(f).List()
			for range rng.IntN(3) {
				fill(rng, list.AppendMutable().Message(), known)
			}
			continue
		}
		switch f.Kind() {
		case protoreflect.MessageKind:
			fill(rng, m.Mutable(f).Message(), known)
		case protoreflect.BytesKind:
			names := []string{"mine", "too", "user.a", "..", "", "a/b", "\x00", "\xff", strings.Repeat("x", 256), strings.Repeat("y", 70<<10)}
			m.Set(f, protoreflect.ValueOfBytes([]byte(names[rng.IntN(len(names))])))
		case protoreflect.Uint64Kind:
			m.Set(f, protoreflect.ValueOfUint64(number()))
		case protoreflect.Int64Kind:
			m.Set(f, protoreflect.ValueOfInt64(int64(number())))
		case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
			m.Set(f, protoreflect.ValueOfUint32(uint32(number())))
		}
	}
}

// Requests that are too large, or ask for what cannot be, are refused.
func TestRefusedRequests(t *testing.T) {
	n := newNode(t, Config{})
	s := n.open(&nodepb.OpenRequest{Share: "a", Create: true})
	c := n.client(nil)
	_, err := c.SetXattr(s.ctx, &nodepb.SetXattrRequest{Ino: 1, Name: []byte("user.a"), Value: make([]byte, nodepb.MaxRequestBytes)})
	var e *rpcerr.Error
	if !errors.As(err, &e) || e.Code != codes.ResourceExhausted {
		t.Errorf("a request over the limit: got %v", err)
	}
	_, err = c.Return(s.ctx, &nodepb.ReturnRequest{Ino: 1, Runs: make([]*nodepb.Run, nodepb.MaxReturnRuns+1)})
	wantReason(t, "too many runs", err, controlpb.Reason_REASON_INVALID)
	if !strings.Contains(err.Error(), "65537 runs") {
		t.Errorf("too many runs: got %v", err)
	}
	for name, req := range map[string]*nodepb.OpenRequest{
		"a short lease":    {Share: "a", Lease: 1},
		"an endless lease": {Share: "a", Lease: 1 << 63},
		"half a nonce":     {Share: "a", Nonce: []byte("12345678")},
		"a long holder":    {Share: "a", Holder: strings.Repeat("x", 256)},
		"a garbled holder": {Share: "a", Holder: "a\nb"},
		"a bad share":      {Share: "a/b", Create: true},
	} {
		_, err := c.Open(t.Context(), req)
		wantReason(t, name, err, controlpb.Reason_REASON_INVALID)
	}
	_, err = c.Open(t.Context(), &nodepb.OpenRequest{Share: "absent"})
	wantReason(t, "no such share", err, controlpb.Reason_REASON_NOT_EXIST)
	_, err = c.KeepAlive(t.Context(), &nodepb.KeepAliveRequest{Session: s.GetSession()})
	wantReason(t, "keep alive without a token", err, controlpb.Reason_REASON_PERMISSION)
	_, err = c.EndSession(t.Context(), &nodepb.EndSessionRequest{Share: "a", Session: []byte{1}})
	wantReason(t, "a short session", err, controlpb.Reason_REASON_INVALID)
}

// A directory that is no share cannot be leased.
func TestNotAShare(t *testing.T) {
	n := newNode(t, Config{})
	whole := n.open(&nodepb.OpenRequest{})
	if _, err := whole.node.Create(whole.ctx, &nodepb.CreateRequest{Parent: 1, Name: []byte("plain"), Inode: &nodepb.Inode{Mode: 0o40755}}); err != nil {
		t.Fatal(err)
	}
	_, err := n.tryOpen(whole.node, &nodepb.OpenRequest{Share: "plain"})
	wantReason(t, "a plain directory", err, controlpb.Reason_REASON_NOT_EXIST)
	_, err = n.tryOpen(whole.node, &nodepb.OpenRequest{Share: "new", Create: true})
	wantReason(t, "a new share under the holder of all", err, controlpb.Reason_REASON_LEASED)
	if _, err := n.pool.Share(t.Context(), "new"); !errors.Is(err, namespace.ErrNotExist) {
		t.Errorf("it was made all the same: %v", err)
	}
}
