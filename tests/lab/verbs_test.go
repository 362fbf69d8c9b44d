package lab

import (
	"strings"
	"testing"

	"github.com/rpmemfs/rpmemfs/tests/lab/machine"
)

// What package verbs expects of an RDMA stack, and every transport's conformance suite,
// hold on Soft-RoCE and device-dax: its tests run in a guest.
func TestVerbs(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	const address = "10.0.0.1"
	m := s.boot(machine.Config{Name: "m", Address: address + "/24",
		NVDIMM: s.file("nvdimm", 256<<20), NVDIMMMode: "devdax"})
	p := s.start(m, "verbs.test", "-test.v", "-test.timeout=4m", "-test.run=RDMA",
		"-lab.address="+address, "-lab.device=/dev/dax0.0")
	status, err := p.Wait(s.ctx())
	if err != nil || status != 0 {
		t.Fatalf("exit status %d, %v:\n%s%s", status, err, p.Stdout(), p.Stderr())
	}
	// A test that is skipped for want of a device would be one that nobody runs.
	passed := 0
	for line := range strings.Lines(p.Stdout()) {
		switch {
		case strings.HasPrefix(line, "--- SKIP"):
			t.Error(line)
		case strings.HasPrefix(line, "--- PASS"):
			passed++
			t.Log(strings.TrimSpace(line))
		}
	}
	if passed == 0 {
		t.Errorf("nothing has run:\n%s", p.Stdout())
	}
}
