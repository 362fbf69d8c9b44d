package tcp

import (
	"errors"
	"fmt"

	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
)

// A refusal is an error that the peer sends. It matches the error that its code
// stands for.
type refusal struct {
	code code
	text string // of the peer
}

func (r *refusal) Error() string {
	return fmt.Sprintf("%v: memory node says: %q", r.Unwrap(), r.text)
}

func (r *refusal) Unwrap() error {
	switch r.code {
	case codeFenced:
		return rdmacache.ErrFenced
	case codeNoSpace:
		return region.ErrNoSpace
	case codePoisoned:
		return ErrPoisoned
	case codeRead:
		return errRead
	case codeUnavailable:
		return errUnavailable
	case codeVersion:
		return errVersion
	}
	return errProtocol
}

var (
	errRead    = errors.New("tcp: read refused")
	errVersion = errors.New("tcp: no common version of the protocol")
)

// codeOf is the code of a handler's error; other stands for those that have none.
func codeOf(err error, other code) code {
	var r *refusal
	switch {
	case errors.As(err, &r):
		return r.code
	case errors.Is(err, rdmacache.ErrFenced):
		return codeFenced
	case errors.Is(err, region.ErrNoSpace):
		return codeNoSpace
	case errors.Is(err, errProtocol), errors.Is(err, errCorrupt):
		return codeProtocol
	}
	return other
}

// final says that trying again does not help.
func final(err error) bool {
	return errors.Is(err, rdmacache.ErrFenced) || errors.Is(err, errVersion)
}
