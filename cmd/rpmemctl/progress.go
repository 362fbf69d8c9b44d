package main

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// A progress is a line on a terminal that tells how far a long command is.
type progress struct {
	out    io.Writer // nil: silent
	now    func() time.Time
	what   string
	total  uint64 // bytes; 0 if unknown
	begun  time.Time
	last   time.Time
	length int // of the line shown
}

// redrawEvery bounds how often the line is drawn.
const redrawEvery = 100 * time.Millisecond

// newProgress returns a progress on standard error, or a silent one where that is
// no terminal.
func (a *app) newProgress(what string) *progress {
	p := &progress{now: a.now, what: what, begun: a.now()}
	if isTerminal(a.errOut) && !a.json {
		p.out = a.errOut
	}
	return p
}

// show draws the line for a number of bytes done.
func (p *progress) show(done uint64) {
	now := p.now()
	if p.out == nil || now.Sub(p.last) < redrawEvery {
		return
	}
	p.last = now
	p.draw(p.line(done, now.Sub(p.begun)))
}

func (p *progress) line(done uint64, spent time.Duration) string {
	rate := uint64(float64(done) / max(spent.Seconds(), 0.001))
	if p.total == 0 {
		return fmt.Sprintf("%s %s, %s/s", p.what, size(done), size(rate))
	}
	const width = 30
	part := min(float64(done)/float64(p.total), 1)
	full := int(part * width)
	bar := strings.Repeat("=", full) + strings.Repeat(" ", width-full)
	return fmt.Sprintf("%s [%s] %3.0f %%  %s of %s, %s/s", p.what, bar, part*100, size(done), size(p.total), size(rate))
}

func (p *progress) draw(line string) {
	pad := max(p.length-len(line), 0)
	p.length = len(line)
	fmt.Fprintf(p.out, "\r%s%s", line, strings.Repeat(" ", pad))
}

// done takes the line away.
func (p *progress) done() {
	if p.out != nil && p.length > 0 {
		p.draw("")
		fmt.Fprint(p.out, "\r")
	}
}
