// Peer is the other end of a bare connection, which the bench compares the data path
// of a memory node with: the same bytes over the same loopback, without anything that
// checks, fences or remembers them.
//
//	peer [-pki DIR] BYTES ANSWER [FILE]
//
// It prints "serving ADDRESS". Of every connection it takes BYTES, copies them to FILE
// (mapped, BYTES long) if there is one, answers with ANSWER bytes, and so on. With -pki
// it does so over TLS, with the certificates that a memory node would use.
package main

import (
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/internal/pki"
)

// piece is how much is received at once.
const piece = 1 << 20

func main() {
	dir := flag.String("pki", "", "certificates, as of a memory node; none: no TLS")
	flag.Parse()
	fmt.Fprintln(os.Stderr, "peer:", run(*dir, flag.Args())) // it serves until it is killed
	os.Exit(1)
}

func run(dir string, args []string) error {
	if len(args) < 2 || len(args) > 3 {
		return fmt.Errorf("usage: peer [-pki DIR] BYTES ANSWER [FILE]")
	}
	size, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	answer, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	var file []byte
	if len(args) == 3 {
		if file, err = mapFile(args[2], size); err != nil {
			return err
		}
	}
	options := pki.Options{Pki: dir, Insecure: dir == ""}
	security, err := options.ServerConfig()
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println("serving", l.Addr())
	if security != nil {
		l = tls.NewListener(l, security)
	}
	for {
		nc, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer func() { _ = nc.Close() }()
			if err := serve(nc, size, answer, file); err != nil {
				fmt.Fprintln(os.Stderr, "peer:", err)
			}
		}()
	}
}

// serve takes what comes and answers until the other end closes.
func serve(nc net.Conn, size, answer int, file []byte) error {
	buf := make([]byte, max(min(size, piece), answer))
	for {
		for at := 0; at < size; {
			p := buf[:min(piece, size-at)]
			if _, err := io.ReadFull(nc, p); err == io.EOF && at == 0 {
				return nil
			} else if err != nil {
				return err
			}
			if file != nil {
				copy(file[at:], p)
			}
			at += len(p)
		}
		if _, err := nc.Write(buf[:answer]); err != nil {
			return err
		}
	}
}

func mapFile(path string, size int) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // the mapping stays
	if err := f.Truncate(int64(size)); err != nil {
		return nil, err
	}
	return unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
}
