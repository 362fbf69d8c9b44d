package quiesce

import "fmt"

// A Mode is what a command does to the processes that map a file before it commits.
// It is a flag's value; its zero value is none.
type Mode struct {
	Stop bool // stop them, until the epoch is durable
}

func (m *Mode) String() string {
	if m.Stop {
		return "stop"
	}
	return "none"
}

// Type is how help texts call the value.
func (m *Mode) Type() string { return "MODE" }

// Set reads a mode as people write it.
func (m *Mode) Set(s string) error {
	switch s {
	case "none":
		m.Stop = false
	case "stop":
		m.Stop = true
	default:
		return fmt.Errorf("%q is neither none nor stop", s)
	}
	return nil
}
