package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/rpmemfs/rpmemfs/internal/pki"
)

// patience is how long anything may take before calling it a failure.
const patience = 30 * time.Second

// A served is a memory node in a child process.
type served struct {
	t       *testing.T
	cmd     *exec.Cmd
	log     bytes.Buffer
	line    string            // what it said when it was ready
	address map[string]string // of "listen", "data", "metrics"
	waited  chan error
}

// program is this program with arguments.
func program(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, os.Args[0], args...)
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "NOTIFY_SOCKET=") }), mainEnv+"=1")
	return cmd
}

var readyLine = regexp.MustCompile(`^serving (\S+) on (\S+), data on (\S+): .* metrics on (\S+)$`)

// startServe starts a memory node on free ports and waits until it is ready.
func startServe(t *testing.T, env []string, args ...string) *served {
	t.Helper()
	args = append([]string{"serve", "--listen", "127.0.0.1:0", "--data", "127.0.0.1:0", "--metrics", "127.0.0.1:0"}, args...)
	s := &served{t: t, cmd: program(context.Background(), args...), waited: make(chan error, 1)}
	s.cmd.Env = append(s.cmd.Env, env...)
	s.cmd.Stderr = &s.log
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make(chan string, 1)
	go func() {
		r := bufio.NewReader(out)
		l, _ := r.ReadString('\n') // an empty line tells of the error
		line <- strings.TrimSuffix(l, "\n")
		_, _ = io.Copy(io.Discard, r) // until it ends
		s.waited <- s.cmd.Wait()
	}()
	t.Cleanup(func() { _ = s.stop(unix.SIGKILL) }) // nothing if it has ended
	select {
	case s.line = <-line:
	case <-time.After(patience):
		t.Fatal("serve says nothing")
	}
	m := readyLine.FindStringSubmatch(s.line)
	if m == nil {
		t.Fatalf("serve: got %q, want a line of what is served; %v; log:\n%s", s.line, s.stop(unix.SIGKILL), s.log.String())
	}
	s.address = map[string]string{"listen": m[2], "data": m[3], "metrics": m[4]}
	return s
}

// stop sends a signal and returns how the process ended; nil if it had before.
func (s *served) stop(sig unix.Signal) error {
	if s.waited == nil {
		return nil
	}
	_ = s.cmd.Process.Signal(sig) // it may have ended
	defer func() { s.waited = nil }()
	select {
	case err := <-s.waited:
		return err
	case <-time.After(patience):
		_ = s.cmd.Process.Kill() // the error tells
		<-s.waited
		return errors.New("serve did not end")
	}
}

// healthy asks the health service.
func healthy(t *testing.T, address string, creds credentials.TransportCredentials) error {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(creds), grpc.WithNoProxy())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() // nothing is under way
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	resp, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
	if err == nil && resp.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		err = errors.New(resp.GetStatus().String())
	}
	return err
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// A device holds the data of a pool, which finds it again without being told.
func TestServeDevice(t *testing.T) {
	device := filepath.Join(t.TempDir(), "device")
	pool := filepath.Join(t.TempDir(), "pool")
	if err := os.WriteFile(device, make([]byte, 16<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"--device", device}, nil} {
		s := startServe(t, nil, append(append([]string{"--insecure"}, args...), pool)...)
		if !strings.Contains(s.line, "size 16 MiB") {
			t.Errorf("with %q: got %q, want the size of the device", args, s.line)
		}
		if err := s.stop(unix.SIGTERM); err != nil {
			t.Error(err)
		}
	}
	other := filepath.Join(t.TempDir(), "other")
	out, err := program(t.Context(), "serve", "--insecure", "--listen", "127.0.0.1:0", "--data", "127.0.0.1:0", "--device", device, other).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "pool exists on the device") {
		t.Errorf("another pool on the device: got %v, %s; want that there is one", err, out)
	}
	if target, err := os.Readlink(filepath.Join(pool, "data")); err != nil || target != device {
		t.Errorf("data of the pool: got %q, %v; want a link to %s", target, err, device)
	}
}

// A memory node makes its pool, tells systemd, answers, ends cleanly on SIGTERM,
// and comes again.
func TestServe(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "notify")
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notify.Close()
	told := func(want string) {
		t.Helper()
		if err := notify.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 4096)
		n, err := notify.Read(b)
		if err != nil || !strings.HasPrefix(string(b[:n]), want) {
			t.Errorf("systemd was told %q, %v; want %s", b[:n], err, want)
		}
	}
	pool := filepath.Join(dir, "pool")
	for _, generation := range []string{"generation 1", "generation 2"} {
		s := startServe(t, []string{"NOTIFY_SOCKET=" + socket}, "--insecure", "--size", "16MiB", pool)
		told("READY=1\nSTATUS=serving ")
		if !strings.Contains(s.line, "INSECURE") || !strings.Contains(s.line, "size 16 MiB") || !strings.Contains(s.line, generation+";") {
			t.Errorf("got %q, want INSECURE, the size and %s", s.line, generation)
		}
		if err := healthy(t, s.address["listen"], insecure.NewCredentials()); err != nil {
			t.Errorf("health: %v", err)
		}
		if code, body := get(t, "http://"+s.address["metrics"]+"/healthz"); code != http.StatusOK {
			t.Errorf("/healthz: got %d %s", code, body)
		}
		_, body := get(t, "http://"+s.address["metrics"]+"/metrics")
		for _, want := range []string{"\nrpmemfs_pool_size_bytes 1.677312e+07\n", "\nrpmemfs_leases 0\n", "\nrpmemfs_flush_seconds_count 0\n", "\nrpmemfs_shares 0\n", "\nrpmemfs_snapshot_errors_total{source=\"pool\"} 0\n"} {
			if !strings.Contains(body, want) {
				t.Errorf("metrics lack %q", want)
			}
		}
		c, err := net.Dial("tcp", s.address["data"])
		if err != nil {
			t.Errorf("data path: %v", err)
		} else {
			_ = c.Close() // it was there
		}
		if err := s.stop(unix.SIGTERM); err != nil || !strings.Contains(s.log.String(), "stopped") || !strings.Contains(s.log.String(), "without TLS") {
			t.Errorf("SIGTERM: got %v, want a clean end, and a warning before; log:\n%s", err, s.log.String())
		}
		told("STOPPING=1")
	}
}

// With certificates strangers get no answer.
func TestServeTLS(t *testing.T) {
	dir := t.TempDir()
	authority := func(name string) string {
		ca := filepath.Join(dir, name)
		if err := pki.Init(ca); err != nil {
			t.Fatal(err)
		}
		for _, r := range []pki.Request{{Name: "node", Hosts: []string{"127.0.0.1"}}, {Name: "compute"}} {
			if _, err := pki.Issue(ca, r); err != nil {
				t.Fatal(err)
			}
		}
		return ca
	}
	own, other := authority("own"), authority("other")
	client := func(certificate, trusts string) credentials.TransportCredentials {
		f, err := pki.Find(certificate, pki.Client)
		if err != nil {
			t.Fatal(err)
		}
		c, err := pki.ClientConfig(f)
		if err != nil {
			t.Fatal(err)
		}
		f.CA = filepath.Join(trusts, "ca.crt")
		if t, err := pki.ClientConfig(pki.Files{Cert: trusts + "/compute.crt", Key: trusts + "/compute.key", CA: f.CA}); err == nil {
			c.RootCAs = t.RootCAs
		}
		return credentials.NewTLS(c)
	}
	s := startServe(t, nil, "--pki", own, "--size", "16MiB", filepath.Join(dir, "pool"))
	if strings.Contains(s.line, "INSECURE") {
		t.Errorf("got %q, want TLS", s.line)
	}
	if err := healthy(t, s.address["listen"], client(own, own)); err != nil {
		t.Errorf("with a certificate: %v", err)
	}
	for name, creds := range map[string]credentials.TransportCredentials{
		"plain": insecure.NewCredentials(), "foreign client": client(other, own), "foreign server": client(own, other),
	} {
		if err := healthy(t, s.address["listen"], creds); err == nil {
			t.Errorf("%s: got an answer", name)
		}
	}
	// A mount that does without is told what may be wrong, and leaves nothing.
	if _, err := os.Stat("/dev/fuse"); err == nil {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		out, err := program(ctx, "mount", "--insecure", "--wait", "1s", "tcp://"+s.address["listen"], t.TempDir()).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "do both ends use TLS") {
			t.Errorf("mount without TLS: got %v, %s", err, out)
		}
	}
	if err := s.stop(unix.SIGINT); err != nil {
		t.Errorf("SIGINT: %v", err)
	}
}

// What is wrong with the flags shows before there is a pool.
func TestServeRefuses(t *testing.T) {
	loopback := []string{"--listen", "127.0.0.1:0", "--data", "[::1]:0"}
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"--insecure", "--listen", ":0"}, "--listen :0: with --insecure"},
		{[]string{"--insecure", "--listen", "0.0.0.0:0"}, "with --insecure"},
		{[]string{"--insecure", "--listen", "[::]:0"}, "with --insecure"},
		{[]string{"--insecure", "--listen", "127.0.0.1:0", "--data", "0.0.0.0:0"}, "--data 0.0.0.0:0: with --insecure"},
		{loopback, "TLS needs certificates"},
		{append([]string{"--insecure", "--pki", "/"}, loopback...), "give one of"},
		{append([]string{"--insecure", "--lease", "999ms"}, loopback...), "--lease 999ms: want 1s to 10m0s"},
		{append([]string{"--insecure", "--lease", "11m"}, loopback...), "--lease 11m0s"},
		{[]string{"--insecure", "--listen", "127.0.0.1:99999"}, "--listen 127.0.0.1:99999"},
		{append([]string{"--insecure", "--metrics", "nowhere"}, loopback...), "--metrics nowhere"},
		{nil, "accepts 1 arg"},
	} {
		pool := filepath.Join(t.TempDir(), "pool")
		args := append([]string{"serve"}, tt.args...)
		if tt.args != nil {
			args = append(args, pool)
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		out, err := program(ctx, args...).CombinedOutput()
		cancel()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != exitError || !strings.Contains(string(out), tt.want) {
			t.Errorf("%q: got %v, %s; want exit code 1 and %q", tt.args, err, out, tt.want)
		}
		if _, err := os.Stat(pool); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%q: it made a pool", tt.args)
		}
	}
}

// Two memory nodes cannot have one pool.
func TestServeLocked(t *testing.T) {
	pool := filepath.Join(t.TempDir(), "pool")
	s := startServe(t, nil, "--insecure", "--size", "16MiB", pool)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out, err := program(ctx, "serve", "--insecure", "--listen", "127.0.0.1:0", "--data", "127.0.0.1:0", pool).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "stop the memory node that serves it") {
		t.Errorf("second: got %v, %s", err, out)
	}
	// A node that dies leaves nothing that keeps the next from starting.
	if err := s.stop(unix.SIGKILL); err == nil {
		t.Error("SIGKILL: got a clean end")
	}
	s = startServe(t, nil, "--insecure", pool)
	if err := s.stop(unix.SIGTERM); err != nil {
		t.Error(err)
	}
}
