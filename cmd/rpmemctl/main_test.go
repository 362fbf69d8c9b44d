package main

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// testdata is where the golden files are, also from another directory.
var testdata string

func TestMain(m *testing.M) {
	if role := os.Getenv(roleEnv); role != "" {
		os.Exit(play(role, os.Args[1:]))
	}
	here, err := os.Getwd()
	if err != nil {
		panic(err)
	}
	testdata = filepath.Join(here, "testdata")
	code := m.Run()
	if built {
		if dir, _ := binaries(); dir != "" {
			if err := os.RemoveAll(dir); err != nil {
				fmt.Fprintln(os.Stderr, err)
				code = 1
			}
		}
	}
	os.Exit(code)
}
