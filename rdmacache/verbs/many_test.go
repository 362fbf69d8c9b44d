package verbs_test

import (
	"context"
	"testing"
	"time"

	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/rdmacache/conntest"
)

// A flush whose writes are in more places than a connection may reach at once ends: each
// connection gets a part of it done.
func TestFlushOfManyExtents(t *testing.T) {
	const pages = 2500
	for _, w := range ways(false) {
		t.Run(w.method.String(), func(t *testing.T) {
			s := conntest.NewStore(pages*rdmacache.PageSize, rdmacache.Medium{Kind: "dax"})
			f := newFabric(t, friendly(), s, w)
			f.session.scattered = true
			f.serve()
			cfg := f.config()
			cfg.Patience = 10 * time.Second
			c := f.dial(cfg)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			for i := range int64(pages) {
				if err := c.Write(ctx, []byte{byte(i), 1}, i*rdmacache.PageSize); err != nil {
					t.Fatal(err)
				}
			}
			if err := c.Flush(ctx); err != nil {
				t.Fatal(err)
			}
			for i := range int64(pages) {
				if !s.DurableIs(i*rdmacache.PageSize, []byte{byte(i), 1}) {
					t.Fatalf("page %d is not durable", i)
				}
			}
			if n := c.Stats().Connections; n < 3 || n > 8 {
				t.Errorf("%d connections for %d extents", n, pages)
			}
		})
	}
}
