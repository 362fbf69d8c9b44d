package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rpmemfs/rpmemfs/namespace"
)

// What mount(8) asks for arrives as flags of `rpmemfs mount`.
func TestHelperArgs(t *testing.T) {
	tests := []struct {
		line string
		want string // flags beside the pool, the log level and on-close; or an error
	}{
		{"/pool /mnt", "--on-close=rollback"},
		{"/pool /mnt -o rw", "--on-close=rollback"},
		{"/pool /mnt -o rw,noauto,_netdev,nofail,user,x-systemd.automount,X-a=b,comment=c,nosuid,nodev,noatime", "--on-close=rollback"},
		{"/pool /mnt -n -v -o size=1MiB,on_close=commit,overlay=2MB,cache=0", "--on-close=commit --size=1048576B --overlay=2000000B --cache=0B"},
		{"/pool /mnt -o ro -o allow_other,noexec", "--on-close=rollback --allow-other --read-only --no-exec"},
		{"-oro /pool /mnt -t fuse.rpmemfs", "--on-close=rollback --read-only"},
		{"/pool /mnt -o ro,follow=1s", "--on-close=rollback --read-only --follow=1s"},
		{"/pool /mnt -o lease=4s,patience=1h,heartbeat=1s", "--on-close=rollback --lease=4s --patience=1h0m0s --heartbeat=1s"},
		{"/pool /mnt -o follow=often", `time: invalid duration "often"`},
		{"-sn /pool -o strange,ro /mnt", "--on-close=rollback --read-only"},
		{"/pool /mnt -N /proc/1/ns/mnt", "--on-close=rollback"},
		{"/pool /mnt -o control=/run/s,log_file=/l,log_level=debug", "--on-close=rollback --log-level=DEBUG --control=/run/s --log-file=/l"},
		{"/pool /mnt -o epoch=64ms,quiesce=stop", "--on-close=rollback --epoch=64ms --quiesce=stop"},
		{"/pool /mnt -o quiesce=halt", `"halt" is neither none nor stop`},
		{"/pool /mnt -o strange", `unknown mount option "strange"`},
		{"/pool /mnt -o suid", `unknown mount option "suid"`},
		{"/pool /mnt -o size=much", `"much" is not a size such as 10GiB`},
		{"/pool /mnt -o on_close=maybe", `"maybe" is neither rollback nor commit`},
		{"/pool /mnt -o", "option -o needs a value"},
		{"/pool /mnt -x", "unknown option -x"},
		{"/pool", "want POOL MOUNTPOINT [-o options], got 1 names"},
	}
	for _, test := range tests {
		o, _, err := parseHelperArgs(strings.Fields(test.line))
		if err != nil {
			if err.Error() != test.want {
				t.Errorf("%s: got error %q, want %s", test.line, err, test.want)
			}
			continue
		}
		args := o.args()
		if args[0] != "mount" || args[1] != "--pool=/pool" || !slices.Equal(args[len(args)-2:], []string{"--", "/mnt"}) {
			t.Errorf("%s: got %q, want a mount of /pool on /mnt", test.line, args)
			continue
		}
		got := slices.DeleteFunc(args[2:len(args)-2], func(a string) bool { return a == "--log-level=INFO" })
		want := strings.Fields(test.want)
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", test.line, got, want)
		}
		// The daemon takes them.
		cmd := mountCommand()
		if err := cmd.ParseFlags(args[1:]); err != nil {
			t.Errorf("%s: %v", test.line, err)
		}
	}
	if _, fake, err := parseHelperArgs([]string{"-f", "/pool", "/mnt"}); !fake || err != nil {
		t.Errorf("-f: got %v, %v, want a fake mount", fake, err)
	}
}

// Times that make no sense are refused, with what would.
func TestWaits(t *testing.T) {
	for flags, want := range map[string]string{
		"--patience 1h --heartbeat 2s --lease 4s": "",
		"--patience 25h":            "--patience 25h0m0s: want 0 to 24h0m0s",
		"--heartbeat 1ms":           "--heartbeat 1ms: want at least 10ms",
		"--heartbeat 3s --lease 4s": "--heartbeat 3s: want at most half of the lease, 2s",
	} {
		var o options
		cmd := mountCommandOf(&o)
		if err := cmd.ParseFlags(strings.Fields(flags)); err != nil {
			t.Fatal(err)
		}
		got := ""
		if err := o.setPlaces([]string{"tcp://node/share", "/mnt"}); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%s: got %q, want %q", flags, got, want)
		}
	}
	o := options{pool: "/pool", wait: longWait, patience: 1}
	if err := o.setPlaces([]string{"/mnt"}); err == nil {
		t.Error("patience with a pool of one's own is taken")
	}
}

func TestByteSize(t *testing.T) {
	for in, want := range map[string]uint64{"1": 1, "4k": 4000, "1KiB": 1024, "10GiB": 10 << 30, "1.5MiB": 3 << 19} {
		var b byteSize
		if err := b.Set(in); err != nil || uint64(b) != want {
			t.Errorf("%s: got %d, %v, want %d", in, b, err, want)
		}
	}
	for _, in := range []string{"", "0", "-1", "x", "10XB", "9999999999999TiB"} {
		var b byteSize
		if err := b.Set(in); err == nil {
			t.Errorf("%q: got %d, want an error", in, b)
		}
	}
}

func TestCloseMode(t *testing.T) {
	for in, want := range map[string]namespace.OnClose{"rollback": namespace.OnCloseRollback, "commit": namespace.OnCloseCommit} {
		var c closeMode
		if err := c.Set(in); err != nil || namespace.OnClose(c) != want || c.String() != in {
			t.Errorf("%s: got %v, %v", in, c, err)
		}
	}
}

// The processes that use a directory are found by what /proc says of them.
func TestHolders(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	use := uses("/proc/self", dir)
	if want := []string{"open " + f.Name()}; !slices.Equal(use, want) {
		t.Errorf("got %q, want %q", use, want)
	}
	if got := uses("/proc/self", dir+"x"); got != nil {
		t.Errorf("a directory that nobody uses: got %q", got)
	}
}

func TestPreparedMountpoint(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	file, link := filepath.Join(dir, "file"), filepath.Join(dir, "link")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{dir: dir, link: dir, link + "/./": dir} {
		if got, err := prepareMountpoint(path, nil); got != want || err != nil {
			t.Errorf("%s: got %q, %v, want %q", path, got, err, want)
		}
	}
	for path, want := range map[string]string{
		file:                    "is not a directory",
		filepath.Join(dir, "x"): "mkdir -p",
	} {
		if _, err := prepareMountpoint(path, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want it to say %q", path, err, want)
		}
	}
}
