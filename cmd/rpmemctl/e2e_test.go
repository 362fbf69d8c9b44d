package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// statOf asks for the state of a file.
func (m *mounted) statOf(name string) fileJSON {
	m.t.Helper()
	var f fileJSON
	out := m.ok("stat", m.path(name), "--json")
	if err := json.Unmarshal([]byte(out), &f); err != nil {
		m.t.Fatalf("stat --json: %v in %s", err, out)
	}
	return f
}

// Stores through a mapping: committed by checkpoint, thrown away by rollback,
// gone back on by restore, all under the running program.
func TestMountedEpochs(t *testing.T) {
	m := newMounted(t)
	file := m.path("heap")
	m.ok("create", file, "--size", "256KiB")
	p := m.mapper("heap")

	p.say("store a", `"a"`)
	m.ok("checkpoint", file, "first")
	m.sh("mkdir mnt/d; mv mnt/heap mnt/d/heap") // open under another name than before
	file = m.path("d/heap")
	p.say("store b", `"b"`)
	if out := m.ok("checkpoint", "--all", m.point); !strings.Contains(out, "1 file committed") {
		t.Errorf("checkpoint --all: got %q, want one file", out)
	}
	p.say("store c", `"c"`)
	m.ok("rollback", file)
	p.say("show", `"b"`)

	m.refused(exitFailed, []string{"programs have it open", fmt.Sprint(p.cmd.Process.Pid), "--force"}, "restore", file, "first")
	p.say("show", `"b"`)
	m.ok("restore", file, "first", "--force")
	p.say("show", `"a"`)
	m.ok("restore", file, "before-restore-"+m.checkpointEpoch("d/heap", "before-restore-"), "--force")
	p.say("show", `"b"`)
	p.end()

	m.waitClosed("d/heap")
	m.ok("restore", file, "first")
	m.mapperShows("d/heap", `"a"`)
	m.ok("check", m.point)
}

// checkpointEpoch returns the epoch of the first checkpoint of a prefix.
func (m *mounted) checkpointEpoch(name, prefix string) string {
	m.t.Helper()
	var list checkpointsJSON
	if err := json.Unmarshal([]byte(m.ok("checkpoints", m.path(name), "--json")), &list); err != nil {
		m.t.Fatal(err)
	}
	for _, cp := range list.Checkpoints {
		if strings.HasPrefix(cp.Name, prefix) {
			return fmt.Sprint(cp.Epoch)
		}
	}
	m.t.Fatalf("no checkpoint %s... in %v", prefix, list)
	return ""
}

// waitClosed waits until the daemon knows that no program has the file open: the
// kernel tells after the program's end.
func (m *mounted) waitClosed(name string) {
	m.t.Helper()
	limit := time.Now().Add(patience)
	for f := m.statOf(name); *f.Handles > 0; f = m.statOf(name) {
		if time.Now().After(limit) {
			m.t.Fatalf("%s stays open: %d handles", name, *f.Handles)
		}
	}
}

func (m *mounted) mapperShows(name, want string) {
	m.t.Helper()
	p := m.mapper(name)
	defer p.end()
	p.say("show", want)
}

// Files go in and out of a mount unchanged, with their holes.
func TestMountedFiles(t *testing.T) {
	m := newMounted(t)
	m.sh("dd if=/dev/urandom of=in.img bs=4096 count=5 seek=7 status=none; truncate -s 100001 in.img")
	m.ok("import", "in.img", m.path("f"))
	m.sh("cmp in.img mnt/f")
	if f := m.statOf("f"); *f.Pages != 5 || *f.Size != 100001 || *f.Epoch != 1 {
		t.Errorf("imported: got %d pages, %d bytes, epoch %d; want 5, 100001, 1", *f.Pages, *f.Size, *f.Epoch)
	}
	m.refused(exitFailed, []string{"exists already", "--force"}, "import", "in.img", m.path("f"))
	m.ok("checkpoint", m.path("f"), "v1")
	m.ok("clone", m.path("f"), m.path("g"))
	m.sh("printf changed | dd of=mnt/f conv=notrunc status=none; cmp in.img mnt/g")
	m.ok("export", m.path("f"), "now.img")
	m.ok("export", m.path("f")+"@v1", "v1.img")
	m.sh(`cmp mnt/f now.img; cmp in.img v1.img; test $(stat -c %b v1.img) -lt 100`)
	m.ok("clone", m.path("f")+"@v1", m.path("h"))
	m.sh("cmp in.img mnt/h")
	code, out, _ := m.ctl("export", m.path("f")+"@v1", "-")
	in, err := os.ReadFile(filepath.Join(m.dir, "in.img"))
	if code != exitOK || err != nil || out != string(in) {
		t.Errorf("export to standard output: exit code %d, %d bytes, %v; want the image", code, len(out), err)
	}
	code, _, errOut := m.command(string(in), filepath.Join(m.bin, "rpmemctl"), "import", "-", m.path("stdin"))
	if code != exitOK {
		t.Errorf("import from standard input: %s", errOut)
	}
	m.sh("cmp in.img mnt/stdin")

	m.ok("rm", m.path("g"), m.path("h"))
	if got := strings.Fields(m.sh("ls -A mnt")); fmt.Sprint(got) != "[f stdin]" {
		t.Errorf("the mount holds %v, want [f stdin]", got)
	}
	if out := m.ok("ls", m.point); !strings.Contains(out, "stdin") || strings.Contains(out, "rpmemfs-") {
		t.Errorf("ls: got\n%s", out)
	}
	m.refused(exitFailed, []string{"exists already"}, "create", m.path("f"))
	m.refused(exitFailed, []string{"not on an rpmemfs mount"}, "clone", m.path("f"), filepath.Join(m.dir, "x"))
	other := newMounted(t)
	m.refused(exitFailed, []string{"another mount", "export"}, "clone", m.path("f"), other.path("x"))
}

// Errors name the place and say what to do.
func TestMountedErrors(t *testing.T) {
	m := newMounted(t)
	m.ok("create", m.path("f"), "--size", "1MiB")
	m.refused(exitFailed, []string{m.dir, "not on an rpmemfs mount", "rpmemctl status"}, "stat", m.dir)
	m.refused(exitFailed, []string{m.path("none"), "does not exist"}, "checkpoint", m.path("none"))
	m.refused(exitFailed, []string{"is a directory"}, "checkpoint", m.point)
	m.refused(exitUsage, []string{"not on an rpmemfs mount"}, "check", m.dir)
	pid := fmt.Sprint(m.daemon.Process.Pid)
	m.refused(exitFailed, []string{"process " + pid, m.point, "umount"}, "ls", "--pool", m.pool)
	m.refused(exitUsage, []string{"process " + pid}, "check", "--pool", m.pool)
	m.refused(exitFailed, []string{"not a pool"}, "ls", "--pool", m.dir)
	if out := m.ok("status", m.point); !strings.Contains(out, m.point) || !strings.Contains(out, "process "+pid) {
		t.Errorf("status: got\n%s\nwant the mount and process %s", out, pid)
	}

	m.kill()
	advice := []string{"daemon of this mount is dead", "umount -l " + m.point, "rpmemfs mount --pool " + m.pool + " " + m.point}
	m.refused(exitFailed, advice, "stat", m.path("f"))
	m.refused(exitFailed, advice, "checkpoint", "--all", m.point)
	m.refused(exitUsage, advice, "check", m.point)
	m.refused(exitFailed, advice, "status")
	if _, out, _ := m.ctl("status", "--json"); !strings.Contains(out, "dead") || !json.Valid([]byte(out)) {
		t.Errorf("status --json of a dead mount: got %s", out)
	}
	m.unmountDead()
	if out := m.ok("check", "--pool", m.pool); !strings.Contains(out, "sound") {
		t.Errorf("check of the pool: got %q, want sound", out)
	}
	m.start()
	m.ok("stat", m.path("f"))
}

// Damage is found in a mount and in a pool, and named with its file.
func TestDamage(t *testing.T) {
	m := newMounted(t)
	m.ok("create", m.path("good"), "--size", "64KiB")
	m.sh("mkdir mnt/d; yes victim | head -c 65536 > mnt/d/bad")
	m.stop()
	data, err := os.ReadFile(filepath.Join(m.pool, "data"))
	if err != nil {
		t.Fatal(err)
	}
	at := strings.Index(string(data), "victim")
	if at < 0 {
		t.Fatal("the file's page is not in the pool")
	}
	m.sh(fmt.Sprintf("printf V | dd of=pool/data bs=1 seek=%d conv=notrunc status=none", at))

	damaged := func(args ...string) {
		t.Helper()
		code, out, errOut := m.ctl(append([]string{"check"}, args...)...)
		if code != exitFailed || !strings.Contains(out, "/d/bad") || !strings.Contains(out, "DAMAGED") || errOut != "" {
			t.Errorf("check %q: exit code %d, %q, %q; want 1 and the file named", args, code, out, errOut)
		}
	}
	damaged("--pool", m.pool)
	damaged("--pool", m.pool, "d/bad")
	if out := m.ok("check", "--pool", m.pool, "good"); !strings.Contains(out, "sound") {
		t.Errorf("check of the other file: got %q, want sound", out)
	}
	m.start()
	damaged(m.point)
	damaged(m.path("d/bad"))
	m.ok("check", m.path("good"))
	m.refused(exitFailed, []string{"checksum"}, "export", m.path("d/bad"), "out.img")
	if left, _ := filepath.Glob(filepath.Join(m.dir, "*out.img*")); len(left) > 0 {
		t.Errorf("the failed export left %v", left)
	}
	if left, _ := filepath.Glob(filepath.Join(m.dir, ".*")); len(left) > 0 {
		t.Errorf("the failed export left %v", left)
	}
}

// A file whose region does not even open is found by check under its name.
func TestDamageUnopenable(t *testing.T) {
	m := newMounted(t)
	m.ok("create", m.path("f"), "--size", "64KiB")
	m.stop()
	m.sh(`LC_ALL=C sed -i s/RPMSUPER/RPMSCRAP/g pool/data`)
	for _, args := range [][]string{{"--pool", m.pool}, {"--pool", m.pool, "f"}} {
		if code, out, errOut := m.ctl(append([]string{"check"}, args...)...); code != exitFailed || !strings.Contains(out, "/f: ") {
			t.Errorf("check %q: exit code %d, %q, %q; want 1 and the file named", args, code, out, errOut)
		}
	}
	m.start()
	for _, path := range []string{m.point, m.path("f")} {
		if code, out, errOut := m.ctl("check", path); code != exitFailed || !strings.Contains(out, "/f: ") {
			t.Errorf("check %s: exit code %d, %q, %q; want 1 and the file named", path, code, out, errOut)
		}
	}
	if code, out, _ := m.ctl("ls", m.point); code != exitOK || !strings.Contains(out, "?") {
		t.Errorf("ls: exit code %d, %q; want the file with question marks", code, out)
	}
}

// The shell completes paths, and the checkpoints of a file.
func TestCompletion(t *testing.T) {
	m := newMounted(t)
	m.ok("create", m.path("f"), "--size", "4KiB")
	m.ok("checkpoint", m.path("f"), "one")
	m.ok("checkpoint", m.path("f"), "two")
	for _, args := range [][]string{
		{"restore", m.path("f"), ""},
		{"checkpoints", "rm", m.path("f"), ""},
		{"clone", m.path("f"), "--checkpoint", ""},
	} {
		_, out, _ := m.ctl(append([]string{"__complete"}, args...)...)
		if !strings.Contains(out, "one\t") || !strings.Contains(out, "two\t") {
			t.Errorf("completing %q: got %q, want both checkpoints", args, out)
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if out := m.ok("completion", shell); !strings.Contains(out, "rpmemctl") {
			t.Errorf("completion %s: got %.80q", shell, out)
		}
	}
}
