//go:build !race

package tests

// raceEnabled says that the daemon is built with the race detector as well.
const raceEnabled = false
