package verbs

import (
	"errors"
	"math"

	"golang.org/x/sys/unix"
)

// What a memory node may register is bounded, by RLIMIT_MEMLOCK if not by its memory. Where
// that is used up a connection loses what it has: the one that asked for some longest ago.
// If it needs that it finds its queue pair broken, comes again, and is the last to lose it. Where
// nobody else has any, who asks begins anew, without what it does not need now. Who has none
// is told that there is no space, and may ask again.

// maxSpared is how many connections lose what they have for one request.
const maxSpared = 4

// sparing calls try, again where that fails for want of memory and others but w could spare some.
func (s *server) sparing(w *window, try func() error) error {
	for range maxSpared {
		err := try()
		if !errors.Is(err, unix.ENOMEM) || !s.spare(w) {
			return err
		}
	}
	return try()
}

// spare deregisters what another window than w has, and says whether one had something.
func (s *server) spare(w *window) bool {
	var first *window
	s.mu.Lock()
	for _, k := range s.streams {
		at := k.window.mapped.Load()
		if at != 0 && k.window != w && (first == nil || at < first.mapped.Load()) {
			first = k.window
		}
	}
	s.mu.Unlock()
	if first == nil {
		return false
	}
	first.log.Warn("no more memory can be registered: the connection loses what it has; raise LimitMEMLOCK")
	first.Revoke(0, math.MaxInt64)
	return true
}

// reach is that of w, for which others may lose memory.
func (s *server) reach(w *window, off int64) (x extent, err error) {
	err = s.sparing(w, func() (err error) {
		x, err = w.reach(off)
		return err
	})
	switch {
	case !errors.Is(err, unix.ENOMEM):
		return x, err
	case w.mapped.Load() != 0:
		return extent{}, &refusal{codeStale, err.Error()}
	}
	return extent{}, &refusal{codeNoSpace, err.Error()}
}
