package lab

import (
	"crypto/sha256"
	"io"
	"os"
	"syscall"
	"testing"
)

// A compute node stops in the middle of an epoch that it sends, as a machine that is
// suspended; another one takes its share over; and when the first goes on, what it still
// has to send, and what its device sends again, changes no byte of the medium.
func TestFencing(t *testing.T) {
	t.Parallel()
	b := newBank(newSite(t))
	other := b.boot(b.computeNode(3))
	writer := b.start(b.compute, "epochs", "/mnt/stream", "1024", "1000000")
	begun := b.hub.Bulk(2)
	// The first epochs, so that the pause comes between packets of one.
	b.until("the writer sends pages", func() bool { return b.hub.Bulk(2) > begun+2500 })
	if err := b.compute.Pause(); err != nil {
		t.Fatal(err)
	}

	taken := b.mounted(other)
	b.run(other, "bank", "check", bankFile)
	b.run(other, "epochs", "/mnt/stream", "16", "3")
	b.stop(taken, syscall.SIGTERM, 0) // from here on nobody writes

	before, late := b.sumNVDIMM(), b.hub.Bulk(2)
	if err := b.compute.Resume(); err != nil {
		t.Fatal(err)
	}
	if status, err := writer.Wait(b.ctx()); err != nil || status == 0 {
		t.Errorf("the paused writer ended with status %d, %v, want an error", status, err)
	}
	sent := b.hub.Bulk(2) - late
	t.Logf("%d packets came late; the writer: %s", sent, writer.Stderr())
	if sent == 0 {
		t.Error("the paused writer sent nothing late: nothing was tried")
	}
	if after := b.sumNVDIMM(); after != before {
		t.Error("late writes changed the medium")
	}
	b.stop(b.serve, syscall.SIGTERM, 0)
	t.Log(b.run(b.node, "rpmemctl", "check", "--pool", "/pool/p"))
}

// sumNVDIMM reads all of the memory node's NVDIMM, past the machine.
func (b *bank) sumNVDIMM() [sha256.Size]byte {
	b.t.Helper()
	f, err := os.Open(b.nodeConfig.NVDIMM)
	if err != nil {
		b.t.Fatal(err)
	}
	defer func() { _ = f.Close() }() // only read
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		b.t.Fatal(err)
	}
	return [sha256.Size]byte(h.Sum(nil))
}
