//go:build race

package sim

// raceEnabled says that this is built with the race detector, which has threads of its own.
const raceEnabled = true
