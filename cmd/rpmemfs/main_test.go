package main

import (
	"flag"
	"os"
	"testing"
)

var _ = flag.Uint64("seed", 0, "seed of the random tests; there are none here")

// mainEnv makes the test binary the program itself, so that tests can start it as a
// child.
const mainEnv = "RPMEMFS_TEST_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(mainEnv) != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}
