package main

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"
)

// The line is drawn over itself, not too often, and goes away.
func TestProgress(t *testing.T) {
	var out bytes.Buffer
	now := time.Unix(100, 0)
	p := &progress{out: &out, now: func() time.Time { return now }, what: "exporting", total: 4 << 20, begun: now}
	now = now.Add(time.Second)
	p.show(1 << 20)
	p.show(2 << 20) // at once: not drawn
	now = now.Add(time.Second)
	p.show(4 << 20)
	p.done()
	want := "\rexporting [=======                       ]  25 %  1.0 MiB of 4.0 MiB, 1.0 MiB/s" +
		"\rexporting [==============================] 100 %  4.0 MiB of 4.0 MiB, 2.0 MiB/s"
	clear := "\r" + string(bytes.Repeat([]byte(" "), len(want)/2-1)) + "\r"
	if got := out.String(); got != want+clear {
		t.Errorf("got %q\nwant %q", got, want+clear)
	}
	p.total = 0
	if got, want := p.line(3<<20, time.Second), "exporting 3.0 MiB, 3.0 MiB/s"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if a := newApp(nil, nil, &out); a.newProgress("x").out != nil {
		t.Error("a progress was shown on what is no terminal")
	}
}

// A wait for the kernel ends with its context.
func TestBounded(t *testing.T) {
	hang := make(chan struct{})
	defer close(hang)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := bounded(ctx, func() (int, error) { <-hang; return 1, nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	if got, err := bounded(t.Context(), func() (int, error) { return 7, nil }); got != 7 || err != nil {
		t.Errorf("got %d, %v; want 7", got, err)
	}
}
