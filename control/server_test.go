package control

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/peer"

	"github.com/rpmemfs/rpmemfs/control/controlpb"
)

// Only root and the owner of the mount may call.
func TestAuthorize(t *testing.T) {
	for _, tt := range []struct {
		uid, owner uint32
		want       error
	}{
		{0, 1000, nil},
		{1000, 1000, nil},
		{1001, 1000, ErrPermission},
		{1000, 0, ErrPermission},
	} {
		ctx := peer.NewContext(t.Context(), &peer.Peer{AuthInfo: peerInfo{uid: tt.uid}})
		if err := authorize(ctx, tt.owner); !errors.Is(err, tt.want) {
			t.Errorf("user %d on a mount of %d: got %v, want %v", tt.uid, tt.owner, err, tt.want)
		}
	}
	if err := authorize(t.Context(), 0); !errors.Is(err, ErrPermission) {
		t.Errorf("an unknown caller: got %v, want ErrPermission", err)
	}
}

// socketEnv makes this binary call the socket of that name as another user.
const socketEnv = "RPMEMFS_TEST_SOCKET"

func TestMain(m *testing.M) {
	if socket := os.Getenv(socketEnv); socket != "" {
		os.Exit(callAsNobody(socket))
	}
	flag.Parse()
	os.Exit(m.Run())
}

// callAsNobody prints the error of a call, and succeeds if it is ErrPermission.
func callAsNobody(socket string) int {
	if err := syscall.Setuid(65534); err != nil {
		fmt.Println(err)
		return 2
	}
	c, err := Dial(socket)
	if err != nil {
		fmt.Println(err)
		return 2
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, err = c.Status(ctx, &controlpb.StatusRequest{})
	if stream, streamErr := c.Check(ctx, &controlpb.CheckRequest{}); streamErr == nil {
		_, streamErr = stream.Recv()
		err = errors.Join(err, streamErr)
	}
	fmt.Println(err)
	if strings.Count(fmt.Sprint(err), "user 65534 asks") != 2 || !errors.Is(err, ErrPermission) {
		return 1
	}
	return 0
}

// A caller who may not is told so, on every kind of call.
func TestPermissionTravels(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to become somebody else")
	}
	socket := fmt.Sprintf("@rpmemfs-test-%d", os.Getpid()) // no file, so no permissions of one
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- newTestServer(newFake()).Run(ctx, l) }()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), socketEnv+"="+socket)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("call as another user: %v: %s", err, out)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// The service works over a socket in the file system, and a stopped one is
// unavailable.
func TestSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- newTestServer(newFake()).Run(ctx, l) }()
	c, err := Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Status(t.Context(), &controlpb.StatusRequest{}); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
	if _, err := c.Status(t.Context(), &controlpb.StatusRequest{}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("after the end: got %v, want ErrUnavailable", err)
	}
}

// A socket that the caller may not open is a matter of permission, not a dead
// daemon.
func TestSocketPermission(t *testing.T) {
	refuse := func(context.Context) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "unix", Err: os.NewSyscallError("connect", syscall.EACCES)}
	}
	c, err := NewClient(refuse)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Status(t.Context(), &controlpb.StatusRequest{}); !errors.Is(err, ErrPermission) {
		t.Errorf("got %v, want ErrPermission", err)
	}
}

// A call under way ends when the server stops, and Run waits for it.
func TestStopCancelsCalls(t *testing.T) {
	v := newFake()
	v.block, v.enter = make(chan struct{}), make(chan struct{}, 1)
	s := newTestServer(v)
	s.grace = 100 * time.Millisecond
	l, dial, err := Pipe()
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewClient(dial)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithCancel(t.Context())
	ran, called := make(chan error, 1), make(chan error, 1)
	go func() { ran <- s.Run(ctx, l) }()
	go func() {
		_, err := c.CommitAll(t.Context(), &controlpb.CommitAllRequest{})
		called <- err
	}()
	<-v.enter
	cancel()
	if err := <-ran; err != nil {
		t.Errorf("Run: %v", err)
	}
	if err := <-called; err == nil {
		t.Error("the call went well, want an error")
	}
}

// A closed pipe listener leaves nothing open and accepts nothing.
func TestPipeClose(t *testing.T) {
	l, dial, err := Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept: got %v, want net.ErrClosed", err)
	}
	if _, err := dial(t.Context()); err == nil {
		t.Error("dialling a closed pipe went well, want an error")
	}
}

// A server that nobody calls stops at once.
func TestStopUncalled(t *testing.T) {
	l, _, err := Pipe()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	s := newTestServer(newFake())
	s.grace = time.Hour
	go func() { ran <- s.Run(ctx, l) }()
	cancel()
	if err := <-ran; err != nil {
		t.Error(err)
	}
}
