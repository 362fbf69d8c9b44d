// Package tests holds what needs the whole product: the daemon on a real mount,
// killed at random moments, under programs that nobody here wrote.
//
// The test process itself never touches a mount. Whatever opens, maps or even
// stats a file of one is a child process: a role of this very binary, a C
// program of tests/c, or a program of the distribution. A page fault that waits
// for a daemon can stop neither the tests nor their garbage collector then, and
// every wait has a bound after which the connection is aborted.
package tests

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

var (
	seedFlag   = flag.Uint64("seed", 0, "seed of the random tests; 0 picks one")
	nodeFlag   = flag.Bool("node", false, "mount over a memory node wherever a test mounts a pool of its own")
	roundsFlag = flag.Int("rounds", 0, "rounds of the kill tests; 0 is each test's own number")
)

const (
	// roleEnv makes this binary play a role in a child process.
	roleEnv = "RPMEMFS_TEST_ROLE"
	// insideEnv is the directory in which the inner half of a test works.
	insideEnv = "RPMEMFS_TEST_INSIDE"
	// toolsEnv is the directory of the built commands, for an inner half that
	// mounts by itself.
	toolsEnv = "RPMEMFS_TEST_TOOLS"
	// runEnv marks every process of one run, so that none is left behind.
	runEnv = "RPMEMFS_TEST_RUN"

	// patience bounds every wait. Reaching it is a failure.
	patience = 60 * time.Second
)

// A workshop is where one run of the tests works.
type workshop struct {
	run  string // value of runEnv
	fast string // on tmpfs where there is one
	disk string // on a disk

	tools pathFunc            // directory of the built commands
	cprog map[string]pathFunc // C programs by name
}

// A pathFunc builds something once and returns where it is.
type pathFunc = func() (string, error)

var shop workshop

func TestMain(m *testing.M) {
	if role := os.Getenv(roleEnv); role != "" {
		os.Exit(play(role, os.Args[1:]))
	}
	flag.Parse()
	if dir := os.Getenv(insideEnv); dir != "" {
		shop = workshop{run: os.Getenv(runEnv), fast: dir, disk: dir, tools: func() (string, error) { return os.Getenv(toolsEnv), nil }}
		os.Exit(m.Run())
	}
	code, err := runAll(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "tests:", err)
		code = 1
	}
	os.Exit(code)
}

// runAll runs the tests between setting up and making sure that nothing is left.
func runAll(m *testing.M) (code int, err error) {
	clearStale()
	if err := shop.open(); err != nil {
		return 1, err
	}
	code = m.Run()
	if err := errors.Join(shop.leftovers()...); err != nil {
		return 1, err
	}
	return code, nil
}

// dirPrefix is of this package alone: others run at the same time, and clearStale
// would take their directories for those of a run that was killed.
const dirPrefix = "rpmemfs-tests-"

func (w *workshop) open() error {
	w.run = strconv.Itoa(os.Getpid())
	disk, err := os.MkdirTemp("/var/tmp", dirPrefix+w.run+"-")
	if err != nil {
		return err
	}
	w.disk, w.fast = disk, disk
	if fast, err := os.MkdirTemp("/dev/shm", dirPrefix+w.run+"-"); err == nil {
		w.fast = fast
	}
	// An ordinary user's mount lies below these.
	for _, dir := range []string{w.disk, w.fast} {
		if err := os.Chmod(dir, 0o755); err != nil {
			return err
		}
	}
	bin := filepath.Join(w.disk, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		return err
	}
	w.tools = sync.OnceValues(func() (string, error) { return bin, buildTools(bin) })
	w.cprog = map[string]pathFunc{
		"fsx":  compile(bin, "c/fsx.c"),
		"lmdb": compile(bin, "c/lmdb.c", "-llmdb"),
		"bank": compile(bin, "../examples/bank/bank.c"),
	}
	return nil
}

// buildTools builds the daemon and the tool, under the race detector if the
// tests are.
func buildTools(bin string) error {
	args := []string{"build", "-o", bin + "/"}
	if raceEnabled {
		args = append(args, "-race")
	}
	out, err := exec.Command("go", append(args, "../cmd/...")...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("go build ./cmd/...: %w\n%s", err, out)
	}
	return nil
}

func compile(bin, src string, libs ...string) pathFunc {
	return sync.OnceValues(func() (string, error) {
		exe := filepath.Join(bin, strings.TrimSuffix(filepath.Base(src), ".c"))
		args := append([]string{"-std=c11", "-O2", "-g", "-o", exe, src}, libs...)
		out, err := exec.Command("gcc", args...).CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("gcc %s: %w\n%s", src, err, out)
		}
		return exe, nil
	})
}

// tool returns the path of a built command.
func tool(t *testing.T, name string) string {
	t.Helper()
	bin, err := shop.tools()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(bin, name)
}

// cProgram returns the path of a compiled program of tests/c or examples.
func cProgram(t *testing.T, name string) string {
	t.Helper()
	need(t, "gcc")
	exe, err := shop.cprog[name]()
	if err != nil {
		t.Fatal(err)
	}
	return exe
}

// need skips the test by name if a program or file is missing on this machine.
func need(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		var err error
		if strings.HasPrefix(name, "/") {
			_, err = os.Stat(name)
		} else {
			_, err = exec.LookPath(name)
		}
		if err != nil {
			t.Skipf("%s is missing here: %v", name, err)
		}
	}
}

// newRand returns the test's random source and prints the seed that replays it.
func newRand(t *testing.T) (*rand.Rand, uint64) {
	t.Helper()
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64N(1 << 32)
	}
	t.Logf("replay with -run '^%s$' -seed %d", t.Name(), seed)
	return rand.New(rand.NewPCG(seed, 0)), seed
}

// rounds is how many rounds a kill test runs.
func rounds(normal int) int {
	switch {
	case *roundsFlag > 0:
		return *roundsFlag
	case testing.Short():
		return max(1, normal/10)
	}
	return normal
}

// leftovers names every mount, process and file that the run left, and removes
// what it can.
func (w *workshop) leftovers() []error {
	var errs []error
	for _, m := range fuseMounts(w.fast, w.disk) {
		errs = append(errs, fmt.Errorf("mount left behind: %s", m.path))
		m.remove()
	}
	left := processesOf(w.run)
	for limit := time.Now().Add(patience / 6); len(left) > 0 && time.Now().Before(limit); left = processesOf(w.run) {
		<-time.After(10 * time.Millisecond) // who lost its parent, or was killed, is about to end
	}
	for _, p := range left {
		errs = append(errs, fmt.Errorf("process left behind: %d %s", p.pid, p.cmdline))
		_ = syscall.Kill(p.pid, syscall.SIGKILL) // it may have ended by now
	}
	_ = os.RemoveAll(filepath.Join(w.disk, "bin")) // what stays is reported below
	for _, dir := range []string{w.disk, w.fast} {
		if err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if err == nil && path != dir {
				errs = append(errs, fmt.Errorf("file left behind: %s", path))
				return fs.SkipDir
			}
			return nil
		}); err != nil {
			errs = append(errs, err)
		}
		_ = os.RemoveAll(dir) // reported above if it was not empty
	}
	return errs
}

// clearStale removes the mounts and directories of test runs that were killed.
func clearStale() {
	for _, parent := range []string{"/dev/shm", "/var/tmp"} {
		dirs, _ := filepath.Glob(filepath.Join(parent, dirPrefix+"*")) // the pattern is right
		for _, dir := range dirs {
			pid, _, ours := strings.Cut(strings.TrimPrefix(filepath.Base(dir), dirPrefix), "-")
			if n, err := strconv.Atoi(pid); !ours || err != nil || syscall.Kill(n, 0) == nil {
				continue
			}
			for _, m := range fuseMounts(dir) {
				m.remove()
			}
			_ = os.RemoveAll(dir) // another user's
		}
	}
}

type process struct {
	pid     int
	cmdline string
}

// processesOf lists the processes that carry the run's mark.
func processesOf(run string) []process {
	var found []process
	dirs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is right
	mark := []byte("\x00" + runEnv + "=" + run + "\x00")
	for _, dir := range dirs {
		env, err := os.ReadFile(dir + "/environ")
		if err != nil || !bytes.Contains(append([]byte{0}, env...), mark) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == os.Getpid() {
			continue
		}
		line, _ := os.ReadFile(dir + "/cmdline") // the process may have ended
		found = append(found, process{pid, strings.ReplaceAll(string(line), "\x00", " ")})
	}
	return found
}
