// Package debian fetches packages of a Debian release into a folder and unpacks them
// there. It installs nothing, needs no root, and takes the mirror from this machine's
// own apt.
//
// The release need not be this machine's: apt gets a configuration, package lists and a
// (empty) list of installed packages of its own, so that a tree holds a program with all
// it needs, down to the dynamic linker.
package debian

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrUnavailable says that this machine cannot fetch Debian packages at all.
var ErrUnavailable = errors.New("debian: packages cannot be had")

const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// A Cache is a folder with what was fetched. What is in it is never fetched again;
// remove the folder to get newer packages.
type Cache struct {
	Dir     string
	Release string                        // codename
	Log     func(format string, a ...any) // progress
}

// A Tree is a set of packages to be unpacked together.
type Tree struct {
	Name     string
	Packages []string // a regular expression that begins with ^ means the newest name that matches
	Alone    bool     // without what they depend on
}

// Unpack returns the root of an unpacked tree, fetching it first if it is not there. An
// attempt that was cut short leaves nothing that counts: the next one goes on with the
// packages that have arrived whole.
func (c *Cache) Unpack(ctx context.Context, t Tree) (string, error) {
	root := filepath.Join(c.Dir, t.Name+"-"+digest(append([]string{c.Release}, t.Packages...)))
	if _, err := os.Stat(root); err == nil {
		return root, nil
	}
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return "", err
	}
	unlock, err := c.lock()
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(root); err == nil {
		return root, nil // another process was first
	}
	if err := c.fetch(ctx, t, root); err != nil {
		return "", fmt.Errorf("fetch %s: %w", t.Name, err)
	}
	return root, nil
}

// digest makes a short name of words.
func digest(words []string) string {
	sum := sha256.Sum256([]byte(strings.Join(words, "\x00")))
	return hex.EncodeToString(sum[:4])
}

// fetch downloads and unpacks t, and moves the result to root when it is complete.
func (c *Cache) fetch(ctx context.Context, t Tree, root string) error {
	a, err := c.configure(ctx)
	if err != nil {
		return err
	}
	names, err := a.resolve(ctx, t.Packages)
	if err != nil {
		return err
	}
	c.Log("fetching %s", strings.Join(names, " "))
	debs, err := a.download(ctx, t.Name, names, t.Alone)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	unfinished := root + ".unfinished"
	if err := os.RemoveAll(unfinished); err != nil {
		return err
	}
	for _, deb := range debs {
		if out, err := exec.CommandContext(ctx, "dpkg-deb", "-x", deb, unfinished).CombinedOutput(); err != nil {
			// A damaged file must not be taken for a fetched one again.
			return errors.Join(fmt.Errorf("unpack %s: %w: %s", deb, err, out), os.Remove(deb))
		}
	}
	if err := os.Rename(unfinished, root); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Dir(debs[0]))
}

// lock keeps other processes away from the folder.
func (c *Cache) lock() (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(c.Dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() { _ = f.Close() }, nil // nothing was written
}

// apt is apt with a configuration of its own.
type apt struct {
	dir string // state and configuration
	env []string
}

// configure makes apt see the release, and nothing as installed.
func (c *Cache) configure(ctx context.Context) (*apt, error) {
	for _, program := range []string{"apt-get", "apt-cache", "dpkg-deb"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, fmt.Errorf("%w: no %s here", ErrUnavailable, program)
		}
	}
	if _, err := os.Stat(keyring); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	mirror, err := hostMirror(ctx)
	if err != nil {
		return nil, err
	}
	a := &apt{dir: filepath.Join(c.Dir, "apt-"+c.Release)}
	for _, dir := range []string{"lists/partial", "cache/archives/partial", "parts"} {
		if err := os.MkdirAll(filepath.Join(a.dir, dir), 0o755); err != nil {
			return nil, err
		}
	}
	conf := filepath.Join(a.dir, "apt.conf")
	for path, text := range map[string]string{
		filepath.Join(a.dir, "sources.list"): fmt.Sprintf("deb [signed-by=%s] %s %s main\n", keyring, mirror, c.Release),
		filepath.Join(a.dir, "status"):       "",
		conf: fmt.Sprintf(`Dir::Etc::sourcelist "%[1]s/sources.list";
Dir::Etc::sourceparts "%[1]s/parts";
Dir::State::lists "%[1]s/lists";
Dir::State::status "%[1]s/status";
Dir::Cache "%[1]s/cache";
APT::Sandbox::User "";
APT::Install-Recommends "false";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::http::Timeout "30";
`, a.dir),
	} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return nil, err
		}
	}
	a.env = append(os.Environ(), "APT_CONFIG="+conf, "LC_ALL=C")
	_, err = a.run(ctx, a.dir, "apt-get", "-q", "update", "--error-on=any")
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return a, err
}

// hostMirror asks this machine's apt where it gets Debian from.
func hostMirror(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages").Output()
	if err != nil {
		return "", fmt.Errorf("%w: apt-get indextargets: %w", ErrUnavailable, err)
	}
	for uri := range strings.FieldsSeq(string(out)) {
		if strings.HasSuffix(strings.TrimSuffix(uri, "/"), "/debian") {
			return uri, nil
		}
	}
	return "", fmt.Errorf("%w: the apt sources of this machine name no Debian mirror", ErrUnavailable)
}

// resolve replaces regular expressions by the newest package that matches.
func (a *apt) resolve(ctx context.Context, packages []string) ([]string, error) {
	var names []string
	for _, p := range packages {
		if !strings.HasPrefix(p, "^") {
			names = append(names, p)
			continue
		}
		out, err := a.run(ctx, a.dir, "apt-cache", "search", "--names-only", p)
		if err != nil {
			return nil, err
		}
		newest := ""
		for line := range strings.Lines(out) {
			name, _, _ := strings.Cut(line, " ")
			if newest == "" || newer(name, newest) {
				newest = name
			}
		}
		if newest == "" {
			return nil, fmt.Errorf("%w: no package %s", ErrUnavailable, p)
		}
		names = append(names, newest)
	}
	return names, nil
}

var number = regexp.MustCompile(`\d+|\D+`)

// newer compares names with numbers in them as versions are compared.
func newer(a, b string) bool {
	as, bs := number.FindAllString(a, -1), number.FindAllString(b, -1)
	for i := range min(len(as), len(bs)) {
		if as[i] == bs[i] {
			continue
		}
		if digits := as[i][0] >= '0' && as[i][0] <= '9'; digits && len(as[i]) != len(bs[i]) {
			return len(as[i]) > len(bs[i])
		}
		return as[i] > bs[i]
	}
	return len(as) > len(bs)
}

// download brings the packages, and returns the files. apt checks their signatures and
// sums, and keeps those that are here already.
func (a *apt) download(ctx context.Context, tree string, names []string, alone bool) ([]string, error) {
	// What another attempt left is of use only if it was for the same packages.
	dir := filepath.Join(a.dir, "debs-"+tree+"-"+digest(names))
	if err := os.MkdirAll(filepath.Join(dir, "partial"), 0o755); err != nil {
		return nil, err
	}
	args := append([]string{"-q", "-y", "install", "--download-only", "-o", "Dir::Cache::archives=" + dir}, names...)
	if alone {
		args = append([]string{"-q", "download"}, names...)
	}
	if _, err := a.run(ctx, dir, "apt-get", args...); err != nil {
		return nil, err
	}
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err == nil && len(debs) == 0 {
		err = errors.New("apt-get brought nothing")
	}
	return debs, err
}

func (a *apt) run(ctx context.Context, dir, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir, cmd.Env = dir, a.env
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, lastBytes(errOut.String(), 500))
	}
	return out.String(), nil
}

func lastBytes(s string, n int) string {
	s = strings.TrimSpace(s)
	return s[max(0, len(s)-n):]
}
