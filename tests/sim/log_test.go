package sim

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
)

// A hostLog is the log of a compute node. It looks for connections that broke because the memory
// node let requests wait. Faults do that; where there are none nobody would ever have
// answered, as the clock of the bubble moves only when everything waits.
type hostLog struct {
	w *world
	h *host
}

func (w *world) logOf(h *host) *slog.Logger { return slog.New(hostLog{w, h}) }

func (l hostLog) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }
func (l hostLog) WithAttrs([]slog.Attr) slog.Handler               { return l }
func (l hostLog) WithGroup(string) slog.Handler                    { return l }

func (l hostLog) Handle(_ context.Context, r slog.Record) error {
	if !strings.HasSuffix(r.Message, "connection broke") {
		return nil
	}
	r.Attrs(func(a slog.Attr) bool {
		if text := a.Value.String(); a.Key == "err" && strings.Contains(text, "no answer") {
			l.w.silence(l.h, text)
		}
		return true
	})
	return nil
}

// silence counts a connection that broke for want of an answer. Without a fault it fails the
// schedule, and says what everybody waits for.
func (w *world) silence(h *host, why string) {
	w.counts.silences.Add(1)
	if !w.net.calm.Load() {
		w.note("%s: %s", h.name, why)
		return
	}
	var devices string
	if w.net.fabric != nil {
		devices = fmt.Sprint(w.net.fabric)
	}
	stacks := make([]byte, 1<<20)
	w.fail("%s: without a fault: %s\n%s%s", h.name, why, devices, stacks[:runtime.Stack(stacks, true)])
}
