package image

import (
	"strings"
	"testing"
)

// A module keeps its code, and loses its signature if it has one.
func TestUnsigned(t *testing.T) {
	const mark = "~Module signature appended~\n"
	head := strings.Repeat("\x00", 8)
	for _, c := range []struct{ name, module, want string }{
		{"without one", "code", "code"},
		{"signed", "codeSIG" + head + "\x00\x00\x00\x03" + mark, "code"},
		{"a length past the beginning", "code" + head + "\x00\x00\x00\x05" + mark, "code" + head + "\x00\x00\x00\x05" + mark},
		{"a mark alone", mark, mark},
	} {
		if got := string(unsigned([]byte(c.module))); got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}
