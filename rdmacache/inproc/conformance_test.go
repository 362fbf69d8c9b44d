package inproc_test

import (
	"flag"
	"testing"

	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/rdmacache/conntest"
	"github.com/rpmemfs/rpmemfs/rdmacache/inproc"
)

var seed = flag.Uint64("seed", 1, "seed of the random tests")

func TestConformance(t *testing.T) {
	conntest.Run(t, *seed, func(_ *testing.T, s *conntest.Store) rdmacache.Conn { return inproc.Dial(s) })
}
