package nodeurl_test

import (
	"flag"
	"testing"

	"github.com/rpmemfs/rpmemfs/internal/nodeurl"
)

var _ = flag.Uint64("seed", 0, "of tests that are random; none here")

func TestParse(t *testing.T) {
	for s, want := range map[string]nodeurl.URL{
		"tcp://node":              {Host: "node", Port: 7470},
		"tcp://node/":             {Host: "node", Port: 7470},
		"tcp://10.0.0.1:9/app":    {Host: "10.0.0.1", Port: 9, Share: "app"},
		"tcp://[::1]:80/a%20b":    {Host: "::1", Port: 80, Share: "a b"},
		"tcp://node:7470/share-1": {Host: "node", Port: 7470, Share: "share-1"},
		"rdma://node/app":         {RDMA: true, Host: "node", Port: 7470, Share: "app"},
	} {
		u, err := nodeurl.Parse(s)
		if err != nil || u != want {
			t.Errorf("%s: got %+v, %v", s, u, err)
		}
		if again, err := nodeurl.Parse(u.String()); err != nil || again != u {
			t.Errorf("%s: as %s: %+v, %v", s, u, again, err)
		}
	}
	for _, s := range []string{
		"", "node", "/dir", "tcp:", "tcp://", "tcp:///share", "ib://node", "tcp://node:0", "tcp://node:70000",
		"tcp://node/a/b", "tcp://user@node", "tcp://node?x", "tcp://node#x", "tcp://no de", "tcp://[::1",
	} {
		if u, err := nodeurl.Parse(s); err == nil {
			t.Errorf("%q is %+v", s, u)
		}
	}
	if got := (nodeurl.URL{Host: "::1", Port: 5}).Address(); got != "[::1]:5" {
		t.Errorf("address %s", got)
	}
}
