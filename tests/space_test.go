package tests

import (
	"strings"
	"testing"
)

// A full pool: the error surfaces at the commit, the last epoch stays whole, and
// what rm frees can be used again, without a remount.
func TestFullPool(t *testing.T) {
	t.Parallel()
	m := newMount(t, fastDir(t), "--size", "32MiB")
	keeper := m.newMapper("keeper", 1000)
	keeper.ok("store 1 0 1000")
	keeper.ok("msync")

	m.program("dd", "if=/dev/zero", "of="+m.path("zeros"), "bs=1M", "count=4", "conv=fsync").mustFinish(patience)
	out, err := m.program("dd", "if=/dev/urandom", "of="+m.path("filler"), "bs=1M", "count=64", "conv=fsync").finish(2 * patience)
	if err == nil {
		t.Fatalf("64 MiB fit into a pool of 32 MiB: %s", out)
	}
	if !strings.Contains(err.Error(), "No space left") {
		t.Errorf("a full pool: got %v, want ENOSPC", err)
	}

	big := m.newMapper("sparse", 20000) // 78 MiB, no slot yet
	big.ok("store 1 0 20000")
	if got := big.do("msync"); !strings.Contains(got, "no space left") {
		t.Errorf("msync of more than fits: got %q, want ENOSPC", got)
	}
	keeper.wants("1*1000", "stamps")
	big.c.kill()
	until(t, "the killed program's handle is gone", func() bool { return m.stat("sparse").Handles == 0 })

	// An overwrite needs slots too while the old epoch must stay.
	got := keeper.do("store 2 0 1000")
	if got != "ok" {
		t.Fatalf("store: %s", got)
	}
	switch got := keeper.do("msync"); {
	case got == "ok":
		keeper.ok("store 1 0 1000")
		m.ctl("rollback", m.path("keeper"))
		keeper.wants("2*1000", "stamps")
	case strings.Contains(got, "no space left"):
		m.ctl("rollback", m.path("keeper"))
		keeper.wants("1*1000", "stamps")
	default:
		t.Errorf("msync in a full pool: got %q", got)
	}

	m.run("rm", m.path("filler"), m.path("sparse"))
	keeper.ok("store 3 0 1000")
	keeper.ok("msync")
	m.program("dd", "if=/dev/urandom", "of="+m.path("again"), "bs=1M", "count=10", "conv=fsync").mustFinish(patience)
	m.kill()
	keeper.c.kill()
	m.start()
	if got := m.stampOf("keeper"); got != 3 {
		t.Errorf("stamp %d, want 3", got)
	}
	if code, out := m.ctlCode("check", m.mnt); code != 0 {
		t.Errorf("check: exit code %d: %s", code, out)
	}
}

// Space is not lost over many rounds of filling and removing.
func TestSpaceComesBack(t *testing.T) {
	t.Parallel()
	m := newMount(t, fastDir(t), "--size", "32MiB")
	for i := range 12 {
		p := m.newMapper("file", 3000)
		for e := range 3 {
			p.ok("store %d 0 3000", 10*i+e+1)
			p.ok("msync")
		}
		p.ok("punch 0 1500")
		p.ok("truncate 8192000")
		p.ok("fsync")
		p.quit()
		m.run("rm", m.path("file"))
		if i%4 == 3 {
			m.kill()
			m.start()
		}
	}
}

// Stores to every page of a file eight times as large as the overlay: the
// daemon's memory stays bounded, and all of it commits as one epoch.
func TestOverlayBound(t *testing.T) {
	t.Parallel()
	const pages = 16384 // 64 MiB
	m := newMount(t, fastDir(t), "--overlay", "8MiB")
	p := m.newMapper("file", pages)
	// The pool on tmpfs is mapped: its pages are not the daemon's memory.
	most := int64(0)
	look := func() {
		t.Helper()
		heap, err := statusKB(m.daemon.cmd.Process.Pid, "RssAnon")
		if err != nil {
			t.Fatal(err)
		}
		most = max(most, heap)
	}
	p.ok("store 1 0 %d", pages)
	look()
	p.ok("msync")
	look()
	p.ok("store 2 0 %d", pages)
	p.ok("writeback")
	look()
	p.wants("2*16384", "read")
	p.ok("msync")
	look()
	t.Logf("memory of the daemon: up to %d KiB", most)
	if limit := int64(48 << 10); most > limit && !raceEnabled {
		t.Errorf("the daemon took %d KiB with an overlay of 8 MiB; want at most %d", most, limit)
	}
	m.kill()
	p.c.kill()
	m.start()
	if got := m.stampOf("file"); got != 2 {
		t.Errorf("after the daemon's death: stamp %d, want 2", got)
	}
}
