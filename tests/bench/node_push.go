package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"time"
)

const (
	pushSize  = 64 << 20 // of an epoch
	pushPiece = 1 << 20  // as much as the kernel hands to the daemon at once
)

// nodePush times how epochs of 64 MiB reach a memory node's pool, against a loop that
// copies them there.
func (b *bench) nodePush() error {
	certificates, err := b.certificates()
	if err != nil {
		return err
	}
	for _, c := range []struct{ name, certificates string }{{"plain", ""}, {"TLS", certificates}} {
		if err := b.push(c.name, c.certificates); err != nil {
			return err
		}
	}
	return b.pushMounted()
}

func (b *bench) push(name, certificates string) error {
	n, err := b.memoryNode(certificates, "--size=256MiB")
	if err != nil {
		return err
	}
	s, err := n.session("path", pushSize)
	if err != nil {
		return err
	}
	loop, err := b.bare(certificates, pushSize, commitHeader, filepath.Join(b.dir, "copy"))
	if err != nil {
		return err
	}
	data := make([]byte, pushSize)
	for i := range data {
		data[i] = byte(i % 251) // the first use of memory is not to be timed
	}
	sides := []func() error{
		func() error { return s.push(data, pushPiece) },
		func() error { return s.push(data, 4096) },
		func() error { return loop.push(data) },
	}
	took := make([][]time.Duration, len(sides))
	for range 1 + b.times(20) {
		for i, side := range sides {
			t, err := repeat(1, side)
			if err != nil {
				return err
			}
			took[i] = append(took[i], t)
		}
	}
	speed := func(i int) float64 { return pushSize / (1 << 20) / median(took[i][1:]).Seconds() }
	for i, what := range []string{"in pieces of 1 MiB", "page by page"} {
		ratio := speed(i) / speed(2)
		wish := ""
		if i == 0 {
			wish = verdict(ratio >= 0.7, ">= 0.70")
		}
		b.add(fmt.Sprintf("node: push of 64 MiB, %s, %s", name, what), fmt.Sprintf("%.0f MiB/s", speed(i)),
			fmt.Sprintf("%.0f MiB/s (copy loop)", speed(2)), fmt.Sprintf("%.2f", ratio), wish)
	}
	loop.close()
	return errors.Join(s.close(), n.end())
}

// push writes data in pieces and flushes it.
func (s *session) push(data []byte, piece int) error {
	ctx := context.Background() // the session's lease bounds it
	for at := 0; at < len(data); at += piece {
		if err := s.conn.Write(ctx, data[at:at+piece], s.start+int64(at)); err != nil {
			return err
		}
	}
	return s.conn.Flush(ctx)
}

// push sends data by writev, or through TLS, and waits for the answer.
func (c *bare) push(data []byte) error {
	for at := 0; at < len(data); at += pushPiece {
		v := net.Buffers{data[at : at+pushPiece]}
		if _, err := v.WriteTo(c.Conn); err != nil {
			return err
		}
	}
	_, err := io.ReadFull(c, make([]byte, c.answer))
	return err
}

// pushMounted times the same epochs through a mount, where the kernel copies and hands
// over every page too, against a pool of its own.
func (b *bench) pushMounted() error {
	n, err := b.memoryNode("", "--size=512MiB")
	if err != nil {
		return err
	}
	far, err := n.mount("mnt", "app")
	if err != nil {
		return err
	}
	near, err := b.own("512MiB")
	if err != nil {
		return err
	}
	d := &duel{b: b}
	if d.a, err = b.storer(filepath.Join(far.mnt, "file"), pushSize); err != nil {
		return err
	}
	if d.z, err = b.storer(filepath.Join(near.mnt, "file"), pushSize); err != nil {
		return err
	}
	epoch := []step{{"seq", pushSize / 4096}, {"fsync"}}
	if _, _, err := d.median(2, nil, epoch); err != nil {
		return err
	}
	ours, theirs, err := d.median(b.times(10), nil, epoch)
	if err != nil {
		return err
	}
	speed := func(t time.Duration) string { return fmt.Sprintf("%.0f MiB/s", pushSize/(1<<20)/t.Seconds()) }
	b.add("  64 MiB stored in order through a mount, and fsync", speed(ours), speed(theirs)+" (own pool)",
		fmt.Sprintf("%.2f", float64(theirs)/float64(ours)), "")
	return errors.Join(d.a.close(), d.z.close(), stop(far, near), n.end())
}
