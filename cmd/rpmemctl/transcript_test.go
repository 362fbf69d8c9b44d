package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rpmemfs/rpmemfs/memnode"
)

var (
	seed   = flag.Uint64("seed", 0, "seed of the random tests; 0 is a fixed one")
	update = flag.Bool("update", false, "write the golden files anew")
)

// newPool makes an empty pool and returns its directory.
func newPool(t *testing.T, sizeBytes int64) string {
	t.Helper()
	dir := filepath.Join(fastDir(t), "pool")
	if err := memnode.Create(dir, memnode.CreateOptions{SizeBytes: sizeBytes}); err != nil {
		t.Fatal(err)
	}
	return dir
}

// fastDir makes a directory, in memory where there is a tmpfs, that goes away with
// the test.
func fastDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "rpmemctl-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// ctl runs a command in this process and returns its exit code and what it wrote.
func ctl(t *testing.T, args ...string) (code int, out, errOut string) {
	t.Helper()
	return ctlInput(t, "", args...)
}

func ctlInput(t *testing.T, in string, args ...string) (code int, out, errOut string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var o, e bytes.Buffer
	code = run(ctx, args, strings.NewReader(in), &o, &e)
	return code, o.String(), e.String()
}

// mustCtl is ctl for commands that have to succeed.
func mustCtl(t *testing.T, args ...string) string {
	t.Helper()
	code, out, errOut := ctl(t, args...)
	if code != exitOK || errOut != "" {
		t.Fatalf("rpmemctl %q: exit code %d, stderr %q; want 0 and silence", args, code, errOut)
	}
	return out
}

// unstable is what differs from run to run.
var unstable = []struct {
	re   *regexp.Regexp
	with string
}{
	{regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d`), "DATE TIME"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT[0-9:.]+Z`), "TIME"},
	{regexp.MustCompile(`"pid": \d+`), `"pid": PID`},
	{regexp.MustCompile(`"version": "[^"]*"`), `"version": "VERSION"`},
	{regexp.MustCompile(`"owner_uid": \d+`), `"owner_uid": UID`},
	{regexp.MustCompile(`"(u|g)id": \d+`), `"${1}id": ID`},
	{regexp.MustCompile(`user \d+, group \d+`), "user ID, group ID"},
	{regexp.MustCompile(`"medium": "[^"]*"`), `"medium": "MEDIUM"`},
	{regexp.MustCompile(`"volatile": \w+`), `"volatile": VOLATILE`},
	{regexp.MustCompile(`(?m)^medium: .*`), "medium: MEDIUM"},
	{regexp.MustCompile(`process \d+`), "process PID"},
	{regexp.MustCompile(`"generation": \d+`), `"generation": N`},
	{regexp.MustCompile(`(?m)^generation: .*`), "generation: N"},
	// How much a region is granted ahead of need is its own business.
	{regexp.MustCompile(`(granted|spare|free)_bytes": \d+`), `${1}_bytes": N`},
	{regexp.MustCompile(`\S+ \S+ granted`), "N granted"},
	{regexp.MustCompile(`(?m)^space: .*`), "space: SPACE"},
}

// Every command's output, for people and for programs, is what the golden file
// says. It runs on a pool in this process.
func TestTranscript(t *testing.T) {
	dir := fastDir(t)
	pool := newPool(t, 64<<20)
	img := make([]byte, 3*pageSize+100)
	copy(img[pageSize:], "second page")
	copy(img[3*pageSize:], "the end")
	if err := os.WriteFile(filepath.Join(dir, "in.img"), img, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	var got strings.Builder
	for _, line := range transcript {
		args := strings.Fields(line)
		fmt.Fprintf(&got, "$ rpmemctl %s\n", line)
		code, out, errOut := ctl(t, append(args, "--pool", pool)...)
		got.WriteString(out)
		for l := range strings.Lines(errOut) {
			if strings.Contains(l, "context canceled") {
				continue // a file that is freed while the pool is closed
			}
			got.WriteString("! " + l)
		}
		if code != exitOK {
			fmt.Fprintf(&got, "exit code %d\n", code)
		}
	}
	text := strings.ReplaceAll(got.String(), pool, "POOL")
	for _, u := range unstable {
		text = u.re.ReplaceAllString(text, u.with)
	}
	golden(t, "transcript.txt", text)
	if b, err := os.ReadFile("out.img"); err != nil || !bytes.Equal(b, img) {
		t.Errorf("the exported image differs from the imported one: %v", err)
	}
}

var transcript = []string{
	"ls",
	"create heap --size 1MiB",
	"create heap --size 1MiB",
	"create none/heap",
	"create a --size lots",
	"create a --mode 9",
	"create",
	"stat heap",
	"stat heap --json",
	"stat none",
	"stat /",
	"stat / --json",
	"import in.img data",
	"import in.img data",
	"import in.img data --force",
	"import none.img x",
	"checkpoint data",
	"checkpoint data one",
	"checkpoint data one",
	"checkpoint data two --json",
	"checkpoint data a/b",
	"checkpoint --all",
	"checkpoint --all --json",
	"checkpoints data",
	"checkpoints data --json",
	"checkpoints heap",
	"checkpoints heap --json",
	"clone data copy",
	"clone data copy",
	"clone data@one early",
	"clone data old --checkpoint 1 --json",
	"clone data@none x",
	"clone data old2 --checkpoint none",
	"rollback data",
	"rollback data --json",
	"restore data one",
	"restore data one --json",
	"restore data none",
	"restore data",
	"checkpoints rm data two before-restore-1",
	"checkpoints rm data two",
	"ls",
	"ls /",
	"ls --json",
	"export data out.img",
	"export data out.img",
	"export data@one out.img --force --json",
	"export data@none out.img --force",
	"export data - --json",
	"rm copy early none",
	"rm old --json",
	"check",
	"check data",
	"check --json",
	"check none",
	"status",
	"status --json",
	"checkpoints",
	"frobnicate",
	"stat --frobnicate heap",
	"version --json extra",
}

// golden compares text with a file of testdata, or writes it under -update.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join(testdata, name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got == string(want) {
		return
	}
	g, w := strings.Split(got, "\n"), strings.Split(string(want), "\n")
	for i := range max(len(g), len(w)) {
		gl, wl := "(end)", "(end)"
		if i < len(g) {
			gl = g[i]
		}
		if i < len(w) {
			wl = w[i]
		}
		if gl != wl {
			t.Fatalf("%s:%d: got\n\t%s\nwant\n\t%s\n(-update writes it anew)", name, i+1, gl, wl)
		}
	}
}
