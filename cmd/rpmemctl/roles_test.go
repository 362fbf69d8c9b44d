package main

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"syscall"
)

// roleEnv makes this binary play a role in a child process, which may touch a
// mount where the test process itself must not.
const roleEnv = "RPMEMCTL_TEST_ROLE"

func play(role string, args []string) int {
	var err error
	switch role {
	case "map":
		err = roleMap(args[0])
	default:
		err = fmt.Errorf("unknown role %q", role)
	}
	if err != nil {
		fmt.Println("error:", err)
		return 1
	}
	return 0
}

// roleMap maps a file and obeys lines of standard input, answering each with a
// line: "store C" stores a byte at the start of every page, "show" prints the
// distinct first bytes of the pages.
func roleMap(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	m, err := syscall.Mmap(int(f.Fd()), 0, int(fi.Size()), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		verb, arg, _ := strings.Cut(lines.Text(), " ")
		seen := ""
		for at := 0; at < len(m); at += pageSize {
			if verb == "store" {
				m[at] = arg[0]
			}
			if !strings.ContainsRune(seen, rune(m[at])) {
				seen += string(rune(m[at]))
			}
		}
		fmt.Printf("%q\n", seen)
	}
	return nil
}
