package node

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/rdmacache"
)

// A token for a data connection is good once, for a while, and while the session is.
func TestTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := start(t, newFakeStore(t))
		defer m.stop()
		long := func(share namespace.Ino, holder string) openRequest {
			r := request(share, holder)
			r.timeout = MaxLease
			return r
		}
		a, b := mustOpen(t, m, long(2, "a")), mustOpen(t, m, long(3, "b"))
		d := rdmaSessions{dataSessions{m, new(dataWork)}, newTokens()}
		refused := func(what string, k token, want error) {
			t.Helper()
			if _, err := d.Take(k); !errors.Is(err, want) {
				t.Errorf("%s: got %v, want %v", what, err, want)
			}
		}

		first, reading := d.tokens.give(a, false), d.tokens.give(a, true)
		got, err := d.Take(first)
		if err != nil || got.ReadOnly() || got.(dataSession).session != a {
			t.Fatalf("take: got %+v, %v; want a session of a that writes", got, err)
		}
		if got, err = d.Take(reading); err != nil || !got.ReadOnly() {
			t.Errorf("take: got %+v, %v; want a session that reads", got, err)
		}
		if again, err := d.Take(d.tokens.give(a, false)); err != nil || again == got {
			t.Errorf("a session that writes is that which reads: %v, %v", again, err)
		} else if same, err := d.Take(d.tokens.give(a, false)); err != nil || same != again {
			t.Errorf("another token of a: %+v, %v, want what is equal to %+v", same, err, again)
		}
		refused("used", first, errPermission)
		refused("never given", token{1}, errPermission)

		late := d.tokens.give(b, false)
		time.Sleep(tokenLife + time.Second)
		refused("late", late, errPermission)

		many := make([]token, maxTokensOf+1)
		for i := range many {
			time.Sleep(time.Millisecond)
			many[i] = d.tokens.give(b, false)
		}
		other := d.tokens.give(a, false)
		refused("pushed out by newer ones", many[0], errPermission)
		if _, err := d.Take(many[1]); err != nil {
			t.Errorf("the second oldest: %v", err)
		}
		if n := len(d.tokens.given); n != maxTokensOf {
			t.Errorf("%d tokens are kept, want %d of b and one of a", n, maxTokensOf-1)
		}

		if err := m.close(t.Context(), a.id(), a.token); err != nil {
			t.Fatal(err)
		}
		refused("of a session that is over", other, rdmacache.ErrFenced)
	})
}
