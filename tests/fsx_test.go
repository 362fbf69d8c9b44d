package tests

import (
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// Random operations of tests/c/fsx.c against a model, over clean unmounts: each
// part continues where the one before ended.
func TestFsxRemount(t *testing.T) {
	exe := cProgram(t, "fsx")
	for i, maxLen := range []string{"65536", "262144", "1000000"} {
		t.Run(maxLen, func(t *testing.T) {
			t.Parallel()
			_, seed := newRand(t)
			dir := fastDir(t)
			m := newMount(t, dir, "--overlay", []string{"1MiB", "64MiB", "4MiB"}[i])
			for part := range uint64(3) {
				if part > 0 {
					m.stop()
					m.start()
				}
				m.run(exe, "-s", strconv.FormatUint(seed+part, 10), "-n", "10000", "-l", maxLen,
					"-m", filepath.Join(dir, "model"), m.path("file"))
			}
		})
	}
}

// The same, on a mount that writes stores of mappings at the last close as any
// file system does.
func TestFsxOnCloseCommit(t *testing.T) {
	t.Parallel()
	exe := cProgram(t, "fsx")
	_, seed := newRand(t)
	dir := fastDir(t)
	m := newMount(t, dir, "--on-close", "commit")
	m.run(exe, "-s", strconv.FormatUint(seed, 10), "-n", "20000", "-m", filepath.Join(dir, "model"), m.path("file"))
}

// The daemon is killed while fsx runs. What is mounted again equals the model at
// the last sync that returned, or at the one in flight: no write, truncate, hole
// or store that came later is in it, and none that came earlier is missing.
func TestFsxKill(t *testing.T) {
	t.Parallel()
	exe := cProgram(t, "fsx")
	rng, seed := newRand(t)
	dir := fastDir(t)
	m := newMount(t, dir, "--overlay", "1MiB")
	model, file := filepath.Join(dir, "model"), m.path("file")
	for i := range rounds(60) {
		program := m.program(exe, "-k", "-s", strconv.FormatUint(seed+uint64(i), 10), "-n", "1000000", "-m", model, file)
		syncs := 0
		for range 1 + rng.IntN(40) {
			program.mustLine("")
			syncs++
		}
		<-time.After(time.Duration(rng.IntN(10_000)) * time.Microsecond)
		m.kill()
		_ = program.cmd.Process.Kill() // it may have ended
		syncs += len(program.drainUntilExit(patience))
		if program.cmd.ProcessState.ExitCode() == 1 {
			t.Fatalf("seed %d: before the kill: %s", seed+uint64(i), &program.stderr)
		}
		m.start()
		out := m.run(exe, "-c", "-m", model, file)
		t.Logf("round %d: %d syncs, found the %s one", i, syncs, out)
	}
}
