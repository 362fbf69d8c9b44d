package control

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/region"
)

// checkIno admits the numbers that a file can have.
func checkIno(ino uint64) (namespace.Ino, error) {
	if ino == 0 {
		return 0, fmt.Errorf("%w: no inode number", ErrInvalid)
	}
	return namespace.Ino(ino), nil
}

// checkEntryName admits what a directory entry can be called.
func checkEntryName(name []byte) (string, error) {
	s := string(name)
	switch {
	case s == "" || s == "." || s == "..":
		return "", fmt.Errorf("%w: file name %q", ErrInvalid, s)
	case len(s) > namespace.MaxName:
		return "", fmt.Errorf("%w: %d bytes, at most %d", namespace.ErrNameTooLong, len(s), namespace.MaxName)
	case strings.ContainsAny(s, "/\x00"):
		return "", fmt.Errorf("%w: file name %q", ErrInvalid, s)
	}
	return s, nil
}

// checkCheckpointRef admits what can name a checkpoint that exists: a name, or
// an epoch in decimal.
func checkCheckpointRef(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("%w: no checkpoint name", ErrInvalid)
	case len(name) > region.MaxCheckpointName:
		return fmt.Errorf("%w: checkpoint name of %d bytes, at most %d", ErrInvalid, len(name), region.MaxCheckpointName)
	case !utf8.ValidString(name):
		return fmt.Errorf("%w: checkpoint name %q is not UTF-8", ErrInvalid, name)
	}
	return nil
}

// checkNewCheckpoint admits what a new checkpoint can be called: nothing that
// would garble a list.
func checkNewCheckpoint(name string) error {
	if err := checkCheckpointRef(name); err != nil {
		return err
	}
	if strings.ContainsFunc(name, unicode.IsControl) || strings.Contains(name, "/") {
		return fmt.Errorf("%w: checkpoint name %q: no control characters and no slash", ErrInvalid, name)
	}
	return nil
}
