package tests

import (
	"testing"
)

// fio writes blocks with checksums in them, through a mapping and by pwrite, and
// reads them back: in the same run, after a clean unmount, and after the daemon
// was killed.
func TestFio(t *testing.T) {
	for _, engine := range []string{"mmap", "psync"} {
		for _, rw := range []string{"randwrite", "write"} {
			t.Run(engine+"-"+rw, func(t *testing.T) {
				t.Parallel()
				need(t, "fio")
				dir := fastDir(t)
				m := newMount(t, dir)
				job := func(more ...string) []string {
					return append([]string{
						"--name=job", "--filename=" + m.path("data"), "--ioengine=" + engine, "--rw=" + rw,
						"--size=48m", "--bsrange=4k-64k", "--randseed=7", "--verify=crc32c", "--verify_fatal=1",
						"--fsync=200", "--end_fsync=1", "--aux-path=" + dir, "--allow_file_create=1",
						"--verify_state_save=0",
					}, more...)
				}
				m.run("fio", job("--do_verify=1")...)
				m.stop()
				m.start()
				m.run("fio", job("--verify_only=1")...)

				m.run("fio", job("--randseed=8", "--do_verify=0")...)
				m.kill()
				m.start()
				m.run("fio", job("--randseed=8", "--verify_only=1")...)
			})
		}
	}
}
