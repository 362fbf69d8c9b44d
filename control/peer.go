package control

import (
	"context"
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// peerCredentials is the transport security of a unix socket: no encryption, and
// the kernel's word (SO_PEERCRED) on who is at the other end.
type peerCredentials struct{}

// A peerInfo is who called, as of connect(2).
type peerInfo struct {
	credentials.CommonAuthInfo
	uid uint32
	pid int32
}

func (peerInfo) AuthType() string { return "unix-peer" }

func (peerCredentials) ClientHandshake(_ context.Context, _ string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return handshake(conn)
}

func (peerCredentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return handshake(conn)
}

func handshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	cred, err := peerOf(conn)
	if err != nil {
		return nil, nil, fmt.Errorf("control: peer credentials: %w", err)
	}
	return conn, peerInfo{
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
		uid:            cred.Uid,
		pid:            cred.Pid,
	}, nil
}

func peerOf(conn net.Conn) (*unix.Ucred, error) {
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, errors.New("not a unix socket")
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	return cred, errors.Join(err, credErr)
}

func (peerCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "unix-peer"}
}

func (c peerCredentials) Clone() credentials.TransportCredentials { return c }

func (peerCredentials) OverrideServerName(string) error { return nil }

// authorize admits root and the owner of the mount.
func authorize(ctx context.Context, owner uint32) error {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return fmt.Errorf("%w: the caller is unknown", ErrPermission)
	}
	info, ok := p.AuthInfo.(peerInfo)
	if !ok {
		return fmt.Errorf("%w: the caller is unknown", ErrPermission)
	}
	if info.uid != 0 && info.uid != owner {
		return fmt.Errorf("%w: user %d asks; only root and the owner of the mount (user %d) may", ErrPermission, info.uid, owner)
	}
	return nil
}
