package tests

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const memcachedKeys = 10_000

// An unmodified memcached whose items live in a file of the mount: whatever is
// killed, in the middle of anything, the state saved last comes back with every
// key. Saving and restoring are those of examples/memcached/run.sh, and are cut
// off by kills too.
func TestMemcached(t *testing.T) {
	t.Parallel()
	rng, _ := newRand(t)
	s := newMemcached(t)
	want := makeItems(rng, memcachedKeys)
	s.start("cache")
	s.fill(want)
	s.stop()
	s.save("start")
	saved := "start"
	for i := range rounds(5) {
		s.start("cache") // warm
		s.mustHold(want)
		changed := s.killedWhileChanging(rng)
		t.Logf("round %d: killed after %d answered changes; restoring %s", i, changed, saved)
		s.restoreAcrossKills(rng, saved)
		s.start("cache")
		s.mustHold(want)

		// The next state to come back to, its save cut off by a kill at times.
		more := makeItems(rng, memcachedKeys/10)
		s.fill(more)
		s.stop()
		name := fmt.Sprintf("round-%d", i)
		if s.saveUnlessKilled(rng, name) {
			saved = name
			s.keepOnly(name)
			for key, it := range more {
				want[key] = it
			}
		} else {
			s.restore(saved)
		}
	}
}

// What a graceful stop wrote needs no checkpoint to survive the daemon's death:
// memcached calls msync, then writes the .meta.
func TestMemcachedStopped(t *testing.T) {
	t.Parallel()
	rng, _ := newRand(t)
	s := newMemcached(t)
	want := makeItems(rng, memcachedKeys)
	s.start("cache")
	s.fill(want)
	s.stop()
	s.m.kill()
	s.m.start()
	s.start("cache")
	s.mustHold(want)
}

// memcached alone is killed, without a daemon's death: what it stored since its
// last graceful stop is rolled back, so that the .meta of that stop fits again.
func TestMemcachedRollsBack(t *testing.T) {
	t.Parallel()
	rng, _ := newRand(t)
	s := newMemcached(t)
	want := makeItems(rng, memcachedKeys)
	s.start("cache")
	s.fill(want)
	s.stop()
	s.m.ctl("clone", s.file("cache.meta"), s.file("stop.meta"))
	s.start("cache")
	s.fill(makeItems(rng, memcachedKeys))
	s.child.kill()
	s.m.settle("cache/cache")
	s.m.ctl("clone", s.file("stop.meta"), s.file("cache.meta"))
	s.start("cache")
	s.mustHold(want)
}

// What memcached holds when it is killed cannot be started again, committed or
// not: there is no .meta. The start is cold, not wrong, and what was saved is
// still there.
func TestMemcachedLive(t *testing.T) {
	t.Parallel()
	rng, _ := newRand(t)
	s := newMemcached(t)
	want := makeItems(rng, memcachedKeys)
	s.start("cache")
	s.fill(want)
	s.stop()
	s.save("full")
	s.start("cache")
	s.fill(makeItems(rng, 100))
	s.m.ctl("checkpoint", s.file("cache"))
	s.child.kill()
	s.m.kill()
	s.m.start()
	s.start("cache")
	s.mustHold(nil)
	s.child.kill()
	s.m.settle("cache/cache")
	s.restore("full")
	s.start("cache")
	s.mustHold(want)
}

// A clone of a saved state runs in a second memcached while the first one
// changes; neither sees the other.
func TestMemcachedClone(t *testing.T) {
	t.Parallel()
	rng, _ := newRand(t)
	s := newMemcached(t)
	want := makeItems(rng, memcachedKeys)
	s.start("cache")
	s.fill(want)
	s.stop()
	s.save("full")

	s.start("cache")
	other := makeItems(rng, memcachedKeys)
	s.fill(other)
	s.m.ctl("clone", s.file("cache")+"@full", s.file("twin"))
	s.m.ctl("clone", s.file("full.meta"), s.file("twin.meta"))
	twin := &memcached{t: t, m: s.m, run: filepath.Join(s.m.dir, "run", "twin")}
	twin.start("twin")
	twin.mustHold(want)
	twin.fill(makeItems(rng, memcachedKeys))
	for key, it := range other {
		want[key] = it
	}
	s.mustHold(want)
	twin.stop()
	s.mustHold(want)
	s.stop()
}

// The example runs to its end.
func TestMemcachedExample(t *testing.T) {
	t.Parallel()
	need(t, "memcached", python, "/dev/fuse")
	cmd := exec.Command("../examples/memcached/run.sh", filepath.Dir(tool(t, "rpmemfs")))
	cmd.Env = append(os.Environ(), "TMPDIR="+shop.disk) // the path of a socket is short
	c := startCommand(t, cmd, nil)
	if out := c.mustFinish(3 * patience); !strings.HasSuffix(strings.TrimSpace(out), "Every key as it was saved.") {
		t.Errorf("the example wrote\n%s", out)
	}
}

// An item is a value as memcached holds it. The maps of items are the model.
type item struct {
	flags uint32
	value []byte
}

// makeItems makes n items with keys of one space, so that two calls overlap.
// Few are as large as memcached takes, in several chunks.
func makeItems(rng *rand.Rand, n int) map[string]item {
	items := make(map[string]item, n)
	for len(items) < n {
		key, size := fmt.Sprintf("key:%d", rng.IntN(2*memcachedKeys)), rng.IntN(700)
		switch large := len(items); {
		case large < 4:
			key, size = fmt.Sprintf("large:%d", large), 600_000+rng.IntN(400_000)
		case rng.IntN(200) == 0:
			size = rng.IntN(50_000)
		}
		value := make([]byte, size)
		for i := range value {
			value[i] = byte(rng.Uint32())
		}
		items[key] = item{rng.Uint32(), value}
	}
	return items
}

// A memcached is the server with its socket and the directory of the mount in
// which its files are.
type memcached struct {
	t     *testing.T
	m     *mount
	run   string // path of the socket
	child *child
	conn  *cacheConn
}

func newMemcached(t *testing.T) *memcached {
	t.Helper()
	need(t, "memcached")
	// Daemons that die young leave their grants half empty.
	m := newMount(t, fastDir(t), "--size", "4GiB")
	s := &memcached{t: t, m: m, run: filepath.Join(m.dir, "run", "memcached")}
	must(t, os.Mkdir(filepath.Dir(s.run), 0o755))
	m.run("mkdir", m.path("cache"))
	if os.Getuid() == 0 { // memcached does not run as root
		must(t, os.Chown(filepath.Dir(s.run), 65534, 65534))
		m.run("chown", "65534:65534", m.path("cache"))
	}
	return s
}

func (s *memcached) file(name string) string { return s.m.path("cache/" + name) }

// start starts memcached on a file; it is warm if there is a .meta beside it.
func (s *memcached) start(name string) {
	s.t.Helper()
	s.afterStopTime(name)
	args := []string{"-m", "64", "-M", "-s", s.run, "-e", s.file(name)}
	if os.Getuid() == 0 {
		args = append(args, "-u", "nobody")
	}
	s.child = s.m.program("memcached", args...)
	until(s.t, "memcached answers", func() bool {
		conn, err := net.Dial("unix", s.run)
		if err != nil {
			return false
		}
		s.conn = newCacheConn(conn)
		s.t.Cleanup(func() { _ = conn.Close() }) // perhaps closed by a kill
		return true
	})
}

// afterStopTime waits until the clock shows another second than that of the
// stop: in the same one memcached calls its .meta invalid.
func (s *memcached) afterStopTime(name string) {
	s.t.Helper()
	out, err := s.m.program("sed", "-n", "s/^Kstop_time //p", s.file(name)+".meta").finish(patience)
	if err != nil { // no .meta: a cold start
		return
	}
	stopped, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64)
	must(s.t, err)
	until(s.t, "the second of the stop is over", func() bool { return time.Now().Unix() > stopped })
}

// stop stops memcached gracefully, which writes the .meta.
func (s *memcached) stop() {
	s.t.Helper()
	must(s.t, syscall.Kill(s.child.cmd.Process.Pid, syscall.SIGUSR1))
	s.child.mustFinish(patience)
}

// save keeps the state of a stopped memcached under a name. The clone comes
// last: where it is, the checkpoint is too.
func (s *memcached) save(name string) {
	s.t.Helper()
	s.m.ctl("checkpoint", s.file("cache"), name)
	s.m.ctl("clone", s.file("cache.meta"), s.file(name+".meta"))
}

// saveUnlessKilled is save under a daemon that may be killed meanwhile. It
// reports whether the state was saved, as one finds it after mounting again.
func (s *memcached) saveUnlessKilled(rng *rand.Rand, name string) bool {
	s.t.Helper()
	s.killDuring(rng, func(ctl func(args ...string)) {
		ctl("checkpoint", s.file("cache"), name)
		ctl("clone", s.file("cache.meta"), s.file(name+".meta"))
	})
	return s.exists(name + ".meta")
}

// keepOnly drops all checkpoints but one, those that restore made too.
func (s *memcached) keepOnly(name string) {
	s.t.Helper()
	var list struct {
		Checkpoints []struct {
			Name string `json:"name"`
		} `json:"checkpoints"`
	}
	must(s.t, json.Unmarshal([]byte(s.m.ctl("checkpoints", s.file("cache"), "--json")), &list))
	for _, c := range list.Checkpoints {
		if c.Name != name {
			s.m.ctl("checkpoints", "rm", s.file("cache"), c.Name)
		}
	}
}

// restore makes the file that of the name; the .meta goes first and comes last.
func (s *memcached) restore(name string) {
	s.t.Helper()
	s.m.run("rm", "-f", s.file("cache.meta"))
	s.m.ctl("restore", s.file("cache"), name)
	s.m.ctl("clone", s.file(name+".meta"), s.file("cache.meta"))
}

// restoreAcrossKills restores under a daemon that is killed meanwhile. If the
// .meta is there afterwards all is restored; if not, it is done again.
func (s *memcached) restoreAcrossKills(rng *rand.Rand, name string) {
	s.t.Helper()
	s.killDuring(rng, func(ctl func(args ...string)) {
		ctl("rm", s.file("cache.meta"))
		ctl("restore", s.file("cache"), name)
		ctl("clone", s.file(name+".meta"), s.file("cache.meta"))
	})
	if !s.exists("cache.meta") {
		s.restore(name)
	}
}

// killDuring kills the daemon at a random moment of steps, whose rpmemctl may
// therefore fail, and mounts again. Every other time it does not kill.
func (s *memcached) killDuring(rng *rand.Rand, steps func(ctl func(args ...string))) {
	s.t.Helper()
	daemon := s.m.daemon
	killed := make(chan struct{})
	if rng.IntN(2) == 0 {
		time.AfterFunc(time.Duration(rng.IntN(150_000))*time.Microsecond, func() {
			_ = daemon.cmd.Process.Kill() // it runs: nobody else ends it
			close(killed)
		})
	} else {
		close(killed)
	}
	steps(func(args ...string) { s.m.ctlCode(args...) })
	<-killed
	s.m.kill()
	s.m.start()
}

func (s *memcached) exists(name string) bool {
	_, err := s.m.program("test", "-e", s.file(name)).finish(patience)
	return err == nil
}

// killedWhileChanging changes and deletes keys until everything is killed at a
// random moment, and mounts again. It returns how many changes were answered.
func (s *memcached) killedWhileChanging(rng *rand.Rand) int {
	s.t.Helper()
	changes := makeItems(rng, memcachedKeys/2)
	answered := make(chan int)
	go func() {
		n := 0
		for err := error(nil); err == nil; {
			for key, it := range changes {
				if n%5 == 0 {
					_, err = s.conn.ask(fmt.Appendf(nil, "delete %s\r\n", key))
				} else {
					err = s.conn.set(key, it)
				}
				if err != nil {
					break
				}
				n++
			}
		}
		answered <- n
	}()
	<-time.After(time.Duration(rng.IntN(300_000)) * time.Microsecond)
	if rng.IntN(2) == 0 {
		s.m.kill()
		s.child.kill()
	} else {
		s.child.kill()
		s.m.kill()
	}
	s.m.start()
	return <-answered
}

// fill sets all items.
func (s *memcached) fill(items map[string]item) {
	s.t.Helper()
	for key, it := range items {
		if err := s.conn.set(key, it); err != nil {
			s.t.Fatal(err)
		}
	}
}

// mustHold compares the server with the model, key by key in both directions.
func (s *memcached) mustHold(items map[string]item) {
	s.t.Helper()
	for key, want := range items {
		got, err := s.conn.get(key)
		if err != nil {
			s.t.Fatalf("%v; memcached wrote:\n%s", err, &s.child.stderr)
		}
		if got.flags != want.flags || !bytes.Equal(got.value, want.value) {
			s.t.Fatalf("%s: got %d bytes, flags %d; want %d bytes, flags %d",
				key, len(got.value), got.flags, len(want.value), want.flags)
		}
	}
	n, err := s.conn.items()
	must(s.t, err)
	if n != len(items) {
		s.t.Fatalf("memcached holds %d items, want %d", n, len(items))
	}
}

// A cacheConn speaks memcached's ASCII protocol.
type cacheConn struct {
	conn net.Conn
	r    *bufio.Reader
}

func newCacheConn(conn net.Conn) *cacheConn { return &cacheConn{conn, bufio.NewReader(conn)} }

// ask sends a request and returns the first line of the answer.
func (c *cacheConn) ask(request []byte) (string, error) {
	if err := c.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	if _, err := c.conn.Write(request); err != nil {
		return "", err
	}
	line, err := c.r.ReadString('\n')
	return strings.TrimSuffix(line, "\r\n"), err
}

// mustAnswer is ask for requests with one right answer.
func (c *cacheConn) mustAnswer(request []byte, want string) error {
	got, err := c.ask(request)
	if err == nil && got != want {
		return fmt.Errorf("memcached answered %.100q, want %s", got, want)
	}
	return err
}

func (c *cacheConn) set(key string, it item) error {
	request := fmt.Appendf(nil, "set %s %d 0 %d\r\n", key, it.flags, len(it.value))
	return c.mustAnswer(append(append(request, it.value...), "\r\n"...), "STORED")
}

func (c *cacheConn) get(key string) (item, error) {
	head, err := c.ask(fmt.Appendf(nil, "get %s\r\n", key))
	if err != nil {
		return item{}, err
	}
	var it item
	var size int
	if _, err := fmt.Sscanf(head, "VALUE "+key+" %d %d", &it.flags, &size); err != nil {
		return item{}, fmt.Errorf("%s: memcached answered %.100q", key, head)
	}
	if size < 0 || size > 1<<20 {
		return item{}, fmt.Errorf("%s: %d bytes", key, size)
	}
	answer := make([]byte, size+len("\r\nEND\r\n"))
	if _, err := io.ReadFull(c.r, answer); err != nil {
		return item{}, err
	}
	if !bytes.HasSuffix(answer, []byte("\r\nEND\r\n")) {
		return item{}, fmt.Errorf("%s: no END after %d bytes", key, size)
	}
	it.value = answer[:size]
	return it, nil
}

// items is how many items the server holds.
func (c *cacheConn) items() (int, error) {
	line, err := c.ask([]byte("stats\r\n"))
	n := -1
	for err == nil && line != "END" {
		if s, ok := strings.CutPrefix(line, "STAT curr_items "); ok {
			n, err = strconv.Atoi(s)
			if err != nil {
				return 0, err
			}
		}
		line, err = c.r.ReadString('\n')
		line = strings.TrimSuffix(line, "\r\n")
	}
	if err == nil && n < 0 {
		err = errors.New("memcached: no curr_items in stats")
	}
	return n, err
}
