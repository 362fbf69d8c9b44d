// Package model checks the restart-point protocol exhaustively, within bounds:
// it runs the Promela models of this directory through Spin. README.md says what
// they show.
package model

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

var (
	_    = flag.Uint64("seed", 0, "nothing here is random")
	deep = flag.Bool("deep", false, "also search larger bounds, most of the way, in some minutes")
)

// A search is one run of Spin over one model with its variants and bounds.
type search struct {
	model   string
	defines string // variants and bounds, as in the model
	fails   string // of the violation that has to be found; "" for none
	cycles  bool   // also that nothing goes round for ever
	partly  bool   // too large for all of it: hash the states into bits
}

// The protocol holds, and every weaker one that somebody might write does not.
var searches = []search{
	{model: "threads"},
	{model: "threads", defines: "PATIENT"},
	{model: "threads", defines: "THREADS=2 STEPS=3 BARRIERS=3"},
	{model: "threads", defines: "THREADS=2 STEPS=2", cycles: true},
	{model: "threads", defines: "THREADS=2 STEPS=2 FLAG", fails: `!\(sealing\)`},
	{model: "threads", defines: "THREADS=2 STEPS=2 NO_RECHECK", fails: `!\(sealing\)`},
	{model: "threads", defines: "THREADS=2 STEPS=2 TWO_LOADS", fails: `!\(sealing\)`},
	{model: "threads", defines: "THREADS=2 STEPS=2 NO_FENCE", fails: `!\(sealing\)`},
	{model: "threads", defines: "THREADS=2 STEPS=2 HELPER_NO_FENCE", fails: `!\(sealing\)`},
	{model: "threads", defines: "THREADS=2 STEPS=2 NO_WAKE PATIENT", fails: `\(busy>0\)`},
	{model: "threads", defines: "THREADS=2 STEPS=2 ALLOW_NO_FENCE PATIENT", fails: `\(busy>0\)`},
	{model: "threads", defines: "THREADS=2 STEPS=2 REACH", fails: `.*\(n<2\)`},

	{model: "processes"},
	{model: "processes", defines: "KILL BARRIERS=1"},
	{model: "processes", defines: "WRITEBACK BARRIERS=1"},
	{model: "processes", defines: "BARRIERS=1", cycles: true},
	{model: "processes", defines: "KILL ROLLBACK_AT_ONCE", fails: `\(truth\[0\]==truth\[1\]\)`},
	{model: "processes", defines: "BARRIERS=1 LATE_TIME", fails: `\(durable\[p\]==truth\[p\]\)`},
	{model: "processes", defines: "BARRIERS=1 CHANGES=2 OTHERS=0 COPY_FIRST", fails: `\(durable\[p\]==truth\[p\]\)`},
	{model: "processes", defines: "BARRIERS=1 CHANGES=2 RELEASE_EARLY", fails: `\(durable\[p\]==truth\[p\]\)`},
	{model: "processes", defines: "BARRIERS=1 REACH", fails: `\(truth\[0\]<2\)`},
}

var deepSearches = []search{
	{model: "threads", defines: "STEPS=2", partly: true},
	{model: "threads", defines: "STEPS=2 PATIENT", partly: true},
	{model: "processes", defines: "KILL WRITEBACK", partly: true},
	{model: "processes", defines: "KILL CHANGES=2 OTHERS=2", partly: true},
}

// The text that pan prints for what it found.
var violation = regexp.MustCompile(`(?m)^pan:1: (.*) \(at depth`)

func TestModel(t *testing.T) {
	for _, name := range []string{"spin", "gcc"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("%s is missing here: %v", name, err)
		}
	}
	all := searches
	if *deep {
		all = append(all, deepSearches...)
	}
	for _, s := range all {
		name := s.model + " " + s.defines
		if s.cycles {
			name += " cycles"
		}
		t.Run(strings.ReplaceAll(strings.TrimSpace(name), " ", ","), func(t *testing.T) {
			t.Parallel()
			out, err := s.run(t)
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			found := ""
			if m := violation.FindStringSubmatch(out); m != nil {
				found = m[1]
			}
			switch {
			case s.fails == "" && found != "":
				t.Errorf("found: %s\n%s", found, out)
			case s.fails == "" && !strings.Contains(out, "errors: 0"):
				t.Errorf("no result:\n%s", out)
			case strings.Contains(out, "Search not completed") && s.fails == "":
				t.Errorf("the search ended early:\n%s", out)
			case s.fails != "" && !regexp.MustCompile(`^assertion violated +`+s.fails).MatchString(found):
				t.Errorf("this variant has to fail with %s; got %q\n%s", s.fails, found, out)
			}
		})
	}
}

// run makes a verifier of the model and returns what it printed. A violation is
// no error of it.
func (s search) run(t *testing.T) (string, error) {
	model, err := filepath.Abs(s.model + ".pml")
	if err != nil {
		return "", err
	}
	dir := t.TempDir()
	spin := []string{"-a"}
	for define := range strings.FieldsSeq(s.defines) {
		spin = append(spin, "-D"+define)
	}
	if out, err := command(dir, time.Minute, "spin", append(spin, model)...); err != nil {
		return out, err
	}
	// HC4 keeps a hash of a state instead of the state, so that each search fits
	// into half a gigabyte. It is no good for cycles.
	cc := []string{"-O2", "-w", "-o", "pan", "pan.c", "-DMEMLIM=1200"}
	pan := []string{"-m20000"}
	switch {
	case s.partly:
		cc, pan = append(cc, "-DSAFETY", "-DBITSTATE"), append(pan, "-w32")
	case s.cycles:
		cc, pan = append(cc, "-DNP"), append(pan, "-l")
	default:
		cc = append(cc, "-DSAFETY", "-DHC4")
	}
	if out, err := command(dir, time.Minute, "gcc", cc...); err != nil {
		return out, err
	}
	out, err := command(dir, 10*time.Minute, filepath.Join(dir, "pan"), pan...)
	var exit *exec.ExitError
	if errors.As(err, &exit) && violation.MatchString(out) {
		return out, nil
	}
	return out, err
}

func command(dir string, limit time.Duration, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s: %w", strings.Join(cmd.Args, " "), err)
	}
	return string(out), nil
}
