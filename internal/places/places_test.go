package places

import (
	"net"
	"slices"
	"testing"
)

// A full table drops one of whoever has most: the oldest or the newest.
func TestWhoGoes(t *testing.T) {
	for _, c := range []struct {
		name   string
		policy Policy
		come   string // owners, one letter each; the table has 4 places
		gone   []int  // who is dropped, by when it came
	}{
		{"room for all", DropOldest, "abab", nil},
		{"the oldest of a flood", DropOldest, "aaaaaaa", []int{0, 1, 2}},
		{"the oldest of who has most", DropOldest, "baaaaa", []int{1, 2}},
		{"a newcomer among a flood", DropOldest, "aaaab", []int{0}},
		{"the oldest of equals", DropOldest, "abcdef", []int{0, 1}},
		{"the newest of a flood", DropNewest, "aaaaaa", []int{4, 5}},
		{"a known newcomer", DropNewest, "aaaab", []int{3}},
		{"a newcomer where all are equal", DropNewest, "abcde", []int{4}},
	} {
		table := New(4, c.policy, nil)
		var gone []int
		places := make([]*Place, len(c.come))
		for i, owner := range c.come {
			places[i] = table.Enter(string(owner), func() { gone = append(gone, i) })
			if places[i] == nil {
				gone = append(gone, i)
			}
		}
		if !slices.Equal(gone, c.gone) {
			t.Errorf("%s: %v were dropped, want %v", c.name, gone, c.gone)
		}
		if taken, dropped := table.Counts(); taken != min(4, len(c.come)) || dropped != uint64(len(gone)) {
			t.Errorf("%s: %d places taken, %d dropped", c.name, taken, dropped)
		}
		for i, p := range places {
			if p == nil {
				continue
			}
			if left := p.Leave(); left == slices.Contains(gone, i) {
				t.Errorf("%s: connection %d left: %v", c.name, i, left)
			}
			if p.Leave() {
				t.Errorf("%s: connection %d left twice", c.name, i)
			}
		}
		if taken, _ := table.Counts(); taken != 0 || len(table.owners) != 0 {
			t.Errorf("%s: %d places, %d owners at the end", c.name, taken, len(table.owners))
		}
	}
}

func TestSource(t *testing.T) {
	for addr, want := range map[string]string{
		"10.1.2.3": "10.1.2.3", "::ffff:10.1.2.3": "10.1.2.3", "2001:db8:1:2:3::4": "2001:db8:1:2::/64", "": "invalid IP",
	} {
		if got := Source(&net.TCPAddr{IP: net.ParseIP(addr), Port: 7}); got != want {
			t.Errorf("%q: %q, want %q", addr, got, want)
		}
	}
	if got := Source(&net.UnixAddr{Name: "x"}); got != "" {
		t.Errorf("unix: %q", got)
	}
}
