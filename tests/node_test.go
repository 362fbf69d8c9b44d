package tests

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rpmemfs/rpmemfs/internal/loopback"
)

const (
	// nodeLease is short, for tests that wait for the end of leases.
	nodeLease = 2 * time.Second
	// longLease is for those that do not: a machine that is busy, and stands still
	// now and then, loses none.
	longLease = 30 * time.Second
)

// A node is a memory node: `rpmemfs serve` on a pool.
type node struct {
	t             *testing.T
	pool          string
	pki           string // directory of certificates; empty: no TLS
	host          *host  // nil: the machine itself
	size          string // of a new pool; empty: a default
	lease         time.Duration
	address       string // its host: an address of this machine, without TLS
	control, data string // ports
	daemon        *child // nil: it does not run
}

// newNode prepares a memory node on a pool in dir, with certificates if it has a
// network: of the compute nodes "a" and "b", who may both open the share app.
func newNode(t *testing.T, dir string, at *host, lease time.Duration) *node {
	t.Helper()
	return newSizedNode(t, dir, at, lease, "")
}

func newSizedNode(t *testing.T, dir string, at *host, lease time.Duration, size string) *node {
	t.Helper()
	n := &node{t: t, pool: filepath.Join(dir, "pool"), host: at, size: size, lease: lease, control: "7470", data: "7471"}
	if at == nil {
		n.address = loopback.Host()
	} else {
		n.pki = filepath.Join(dir, "pki")
		ctl := func(args ...string) {
			startCommand(t, (&mount{t: t}).command(tool(t, "rpmemctl"), args...), nil).mustFinish(patience)
		}
		ctl("pki", "init", n.pki)
		hosts := []string{"pki", "issue", n.pki, "node"}
		for spoke := 1; spoke <= 2; spoke++ {
			hosts = append(hosts, "--host", fmt.Sprintf("10.99.%d.1", spoke))
		}
		ctl(hosts...)
		for _, name := range []string{"a", "b"} {
			ctl("pki", "issue", n.pki, name, "--share", "app")
		}
	}
	n.start()
	t.Cleanup(func() {
		if n.daemon != nil {
			n.stop()
		}
	})
	return n
}

func (n *node) start() {
	n.t.Helper()
	args := []string{"serve", n.pool, "--lease", n.lease.String()}
	if n.size != "" {
		args = append(args, "--size", n.size)
	}
	cmd := (&mount{t: n.t}).command(tool(n.t, "rpmemfs"), append(args,
		"--insecure", "--listen", n.address+":"+n.control, "--data", n.address+":"+n.data)...)
	if n.host != nil {
		cmd = n.host.command(tool(n.t, "rpmemfs"), append(args,
			"--pki", filepath.Join(n.pki, "node"), "--listen", ":"+n.control, "--data", ":"+n.data)...)
	}
	n.daemon = spawn(n.t, cmd, nil)
	n.daemon.mustLine("serving")
}

func (n *node) kill() {
	n.t.Helper()
	n.daemon.kill()
	n.inspectLog()
}

func (n *node) stop() {
	n.t.Helper()
	_ = syscall.Kill(n.daemon.cmd.Process.Pid, syscall.SIGTERM) // reported by finish if it died
	if _, err := n.daemon.finish(patience); err != nil {
		n.t.Errorf("the memory node does not end cleanly: %v", err)
	}
	n.inspectLog()
}

func (n *node) inspectLog() {
	n.t.Helper()
	log := n.daemon.stderr.String()
	if at := crashed.FindStringIndex(log); at != nil {
		n.t.Errorf("memory node crashed:\n%s", firstBytes(log[at[0]:], 6000))
	}
	n.daemon = nil
}

// mount prepares a mount of a share, as compute node name.
func (n *node) mount(dir, name, share string, from *host) *mount {
	n.t.Helper()
	m := prepareMount(n.t, dir)
	m.source, m.host = "tcp://"+n.address+"/"+share, from
	m.args = []string{"--insecure"}
	if from != nil {
		m.source = "tcp://" + from.hub + "/" + share
		m.args = []string{"--pki", filepath.Join(n.pki, name)}
	}
	return m
}

// leaseLost reports whether `rpmemctl status` says that the mount's lease is over.
func (m *mount) leaseLost() bool {
	m.t.Helper()
	var st struct {
		Pools []struct {
			Lease *struct {
				Lost string `json:"lost"`
			} `json:"lease"`
		} `json:"pools"`
	}
	out := m.ctl("status", "--json", m.mnt)
	if err := json.Unmarshal([]byte(out), &st); err != nil || len(st.Pools) != 1 || st.Pools[0].Lease == nil {
		m.t.Fatalf("rpmemctl status --json: %v in %q", err, out)
	}
	return st.Pools[0].Lease.Lost != ""
}

// A fault is what happens to a running system.
type fault int

const (
	daemonKilled   fault = iota // the compute node's daemon; another node takes over when the lease is over
	daemonReplaced              // the same, but the other node steals the lease
	daemonPaused                // past its lease, while another node takes over; then it goes on
	cableOut                    // the same, by a cable that is out
	linkDown                    // the same, by a link that is set down, which the node's kernel sees
	cableLoose                  // out for less than a lease
	cableLossy                  // it loses many packets, for less than a lease
	nodeKilled                  // the memory node; it comes back within a lease
	nodePaused                  // for less than a lease
	nodeLong                    // the memory node is down for longer than a lease
	faults
)

func (f fault) String() string {
	return [...]string{"daemon killed", "daemon replaced", "daemon paused", "cable out", "link down", "cable loose", "cable lossy",
		"node killed", "node paused", "node down for long"}[f]
}

// survivable reports whether programs notice nothing but a longer commit, where the mount
// has patience.
func (f fault) survivable() bool {
	return f == cableLoose || f == cableLossy || f == nodeKilled || f == nodePaused
}

// Two compute nodes and a memory node on three machines. A program on one of them
// stamps a file, epoch after epoch; machines die, stop and lose their network at
// random moments, and the program goes on at the other node. What is found there is
// one epoch, whole: the last acknowledged one or the one in flight. A node that lost
// its lease gets EIO, says so, and changes nothing.
func TestNodes(t *testing.T) {
	rng, _ := newRand(t)
	net, hub := newNetwork(t)
	dir := fastDir(t)
	n := newNode(t, dir, hub, nodeLease)
	p := &nodes{t: t, rng: rng, node: n}
	for _, name := range []string{"a", "b"} {
		sub := newDir(t, dir)
		p.hosts = append(p.hosts, net.join())
		p.mounts = append(p.mounts, n.mount(sub, name, "app", p.hosts[len(p.hosts)-1]))
	}
	p.start(p.mounts[0], true)
	for i := range rounds(100) {
		// Those that wait for the end of a lease are slow, and rarer.
		f := []fault{cableLoose, cableLossy, nodeKilled, nodePaused, daemonReplaced}[rng.IntN(5)]
		if rng.IntN(4) == 0 {
			f = fault(rng.IntN(int(faults)))
		}
		if f == cableLossy && !net.drops {
			f = cableLoose
		}
		p.round(i, f)
	}
}

type nodes struct {
	t      *testing.T
	rng    *rand.Rand
	node   *node
	hosts  []*host
	mounts []*mount
	now    int    // the one that is mounted
	acked  uint64 // the stamp found last

	patient bool // the mount waits beyond its lease
}

// start mounts the share. Only with patience a mount survives what is survivable on any
// machine: one that is busy, or stands still, is soon late for a lease this short.
func (p *nodes) start(m *mount, patient bool, args ...string) {
	p.t.Helper()
	own := m.args
	m.args = append(own[:len(own):len(own)], args...)
	if p.patient = patient; patient {
		m.args = append(m.args, "--patience", patience.String())
	}
	m.start()
	m.args = own
}

func (p *nodes) nap(most time.Duration) { <-time.After(time.Duration(p.rng.Int64N(int64(most)))) }

func (p *nodes) round(i int, f fault) {
	t, m := p.t, p.mounts[p.now]
	if patient := f.survivable() || f != nodeLong && p.rng.IntN(2) == 0; patient != p.patient {
		m.stop()
		p.start(m, patient)
	}
	ways := []string{"msync", "fsync", "write"}
	if f.survivable() {
		ways = ways[:2] // what write(2) wrote commits at the last close
	}
	program := m.role("stamp", m.path("file"), "200", ways[p.rng.IntN(len(ways))])
	program.mustLine("from")
	acked := lastNumber(t, []string{program.mustLine("")}, p.acked)
	p.nap(10 * time.Millisecond)
	p.strike(f)
	if f.survivable() {
		// What was acknowledged while it happened waits in the channel.
		for range 3 {
			acked = lastNumber(t, []string{program.mustLine("")}, acked)
		}
		for range cap(program.lines) {
			select {
			case line := <-program.lines:
				acked = lastNumber(t, []string{line}, acked)
				continue
			default:
			}
			break
		}
		_ = program.cmd.Process.Kill() // it runs
		acked = lastNumber(t, program.drainUntilExit(patience), acked)
		m.settle("file")
	} else {
		acked = p.takeOver(f, program, acked)
	}
	found := p.mounts[p.now].stampOf("file")
	t.Logf("round %d: %v: acknowledged %d, found %d", i, f, acked, found)
	if found < acked || found > acked+1 {
		t.Fatalf("%v: the file holds epoch %d; want %d or %d", f, found, acked, acked+1)
	}
	p.acked = found
}

// strike makes the fault happen, and ends those that are short.
func (p *nodes) strike(f fault) {
	m, h := p.mounts[p.now], p.hosts[p.now]
	switch f {
	case daemonKilled, daemonReplaced:
		m.kill()
	case daemonPaused:
		p.signal(m.daemon, syscall.SIGSTOP)
	case cableOut:
		h.cut()
	case linkDown:
		h.down()
	case cableLoose:
		h.cut()
		p.nap(nodeLease / 8)
		h.mend()
	case cableLossy:
		h.lose(10 + p.rng.IntN(30))
		p.nap(nodeLease / 4)
		h.loseNone()
	case nodeKilled:
		p.node.kill()
		p.nap(nodeLease / 8)
		p.node.start()
	case nodePaused:
		p.signal(p.node.daemon, syscall.SIGSTOP)
		p.nap(nodeLease / 8)
		p.signal(p.node.daemon, syscall.SIGCONT)
	case nodeLong:
		p.node.kill()
		<-time.After(nodeLease + nodeLease/2)
		p.node.start()
	}
}

// signal sends a signal to a process and those it started.
func (p *nodes) signal(c *child, s syscall.Signal) {
	if err := syscall.Kill(-c.cmd.Process.Pid, s); err != nil {
		p.t.Errorf("%v to %s: %v", s, c.name, err)
	}
}

// takeOver mounts the share at the other node, while the old one is away or not.
func (p *nodes) takeOver(f fault, program *child, acked uint64) uint64 {
	t, old, h := p.t, p.mounts[p.now], p.hosts[p.now]
	p.now = 1 - p.now
	m := p.mounts[p.now]
	if f == daemonReplaced {
		p.start(m, true, "--steal")
	} else {
		p.start(m, true)
	}
	if f == daemonKilled || f == daemonReplaced {
		_ = program.cmd.Process.Kill() // SIGBUS may have come first
		acked = lastNumber(t, program.drainUntilExit(patience), acked)
		old.unmountDead()
		return acked
	}
	before := m.stampOf("file")
	switch f {
	case daemonPaused:
		p.signal(old.daemon, syscall.SIGCONT)
	case cableOut:
		h.mend()
	case linkDown:
		h.up()
	}
	// Its next commit fails; until then it may have had more acknowledged.
	acked = lastNumber(t, program.drainUntilExit(patience), acked)
	if program.cmd.ProcessState.Success() || !strings.Contains(program.stderr.String(), "input/output error") {
		t.Errorf("%v: the program on the old node ended by %v, %s; want EIO", f, program.cmd.ProcessState, &program.stderr)
	}
	if !old.leaseLost() {
		t.Errorf("%v: status of the old node does not tell that the lease is lost", f)
	}
	if after := m.stampOf("file"); after != before {
		t.Errorf("%v: the old node changed stamp %d to %d after it had lost its lease", f, before, after)
	}
	_ = syscall.Kill(old.daemon.cmd.Process.Pid, syscall.SIGTERM) // reported below if it died
	if _, err := old.daemon.finish(patience); err == nil || !strings.Contains(err.Error(), "the lease was lost") {
		t.Errorf("%v: the old node ended with %v; want it to say that the lease was lost", f, err)
	}
	old.inspectLog()
	old.daemon = nil
	return acked
}

// A program of many files on a memory node: what any mount must do, it does there.
func TestNodeClean(t *testing.T) {
	dir := fastDir(t)
	n := newNode(t, dir, nil, longLease)
	m := n.mount(dir, "", "", nil)
	metrics := loopback.Host() + ":9470"
	m.args = append(m.args, "--metrics", metrics)
	m.start()
	m.run("sh", "-ec", `cd "$1"; mkdir d; for i in $(seq 50); do echo $i >d/$i; done; mv d/1 x; ln x y; ln -s x z; rm d/2; sync x; cat z`, "sh", m.mnt)
	for path, want := range map[string]string{"/metrics": "\nrpmemfs_lease_held 1\n", "/healthz": "ok"} {
		resp, err := http.Get("http://" + metrics + path)
		must(t, err)
		body, err := io.ReadAll(resp.Body)
		must(t, err)
		must(t, resp.Body.Close())
		if resp.StatusCode != http.StatusOK || !strings.Contains(string(body), want) {
			t.Errorf("%s: %s, without %q: %s", path, resp.Status, want, firstBytes(string(body), 4000))
		}
	}
	m.stop()
	m.start()
	out := m.run("sh", "-ec", `cd "$1"; ls d | wc -l; cat x y z d/50; stat -c %h x`, "sh", m.mnt)
	if got := strings.Fields(out); strings.Join(got, " ") != "48 1 1 1 50 2" {
		t.Errorf("got %q", got)
	}
	m.stop()
	n.stop()
	n.start()
	m.start()
	if out := m.run("cat", m.path("d/50")); strings.TrimSpace(out) != strconv.Itoa(50) {
		t.Errorf("after a restart of the memory node: %q", out)
	}
}

// counter returns the sum of a metric that a daemon tells at an address.
func counter(t *testing.T, address, name string) (sum float64) {
	t.Helper()
	resp, err := http.Get("http://" + address + "/metrics")
	must(t, err)
	body, err := io.ReadAll(resp.Body)
	must(t, errors.Join(err, resp.Body.Close()))
	found := false
	for line := range strings.Lines(string(body)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && strings.HasPrefix(key, name) {
			n, err := strconv.ParseFloat(value, 64)
			must(t, err)
			sum, found = sum+n, true
		}
	}
	if !found {
		t.Fatalf("no metric %s", name)
	}
	return sum
}

// A program that goes through a file which is nowhere near, by read(2) or through a
// mapping, waits for few requests: the kernel asks ahead of it, and for many pages at once.
func TestNodeReadsAhead(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("not root: the kernel reads ahead as it likes")
	}
	const pages = 4096 // 16 MiB
	dir := fastDir(t)
	n := newNode(t, dir, nil, longLease)
	m := n.mount(dir, "", "app", nil)
	metrics := loopback.Host() + ":9470"
	m.args = append(m.args, "--metrics", metrics)
	m.start()
	p := m.newMapper("file", pages)
	p.ok("store 1 0 %d", pages)
	p.ok("msync")
	p.quit()
	m.settle("file")
	for how, read := range map[string]func(){
		"read(2)": func() { m.run("cat", m.path("file")) },
		"mapping": func() {
			p := m.newMapper("file", pages)
			p.wants("1*4096", "stamps")
			p.quit()
		},
	} {
		m.stop() // and the kernel forgets
		m.start()
		read()
		asked := counter(t, metrics, "rpmemfs_read_requests_total")
		t.Logf("%s: %v requests for %d pages", how, asked, pages)
		if most := 64.0; asked > most { // of 256 KiB
			t.Errorf("%s: %v requests, want at most %v", how, asked, most)
		}
	}
}
