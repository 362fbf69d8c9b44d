package verbs

import (
	"errors"
	"fmt"

	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
)

// A code says why something was refused.
type code uint16

const (
	codeOK          code = 0
	codeFenced      code = 1 // final
	codeNoSpace     code = 2 // of a MAP, or a PERSIST: again when somebody asks
	codePoisoned    code = 3 // of a PERSIST: final for writes and flushes
	codeRange       code = 4 // of a MAP: nothing there is the session's
	codeProtocol    code = 5 // a message that breaks the protocol, or is damaged
	codeUnavailable code = 6 // come again
	codeVersion     code = 7 // final
	codeMessage     code = 8 // of a HELLO: the pool can be reached by a stream only
	codeStale       code = 9 // what the client was told of extents does not hold any more: connect anew
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
	case codeRange:
		return errRange
	case codeUnavailable:
		return errUnavailable
	case codeVersion:
		return errVersion
	case codeMessage:
		return ErrMessage
	case codeStale:
		return errStale
	}
	return errProtocol
}

var (
	// ErrMessage reports a pool that a device cannot reach: what Dial returns where
	// DialStream is to be used.
	ErrMessage = errors.New("verbs: the pool can be reached by messages only")

	errUnavailable = errors.New("verbs: memory node not ready")
	errProtocol    = errors.New("verbs: protocol broken")
	errCorrupt     = errors.New("verbs: message damaged on its way")
	errVersion     = errors.New("verbs: no common version of the protocol")
	errRange       = errors.New("verbs: not within reach of the session")
	errReadOnly    = errors.New("verbs: the session reads only")
	errStale       = errors.New("verbs: the memory has moved")
	errStalled     = errors.New("verbs: no answer")
	errChanged     = errors.New("verbs: not the memory node that it was")
)

// codeOf is the code of an error; other stands for those that have none.
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

// textOf is what the peer is told of an error.
func textOf(err error) string {
	var r *refusal
	if errors.As(err, &r) {
		return r.text
	}
	return err.Error()
}

// final says that trying again does not help.
func final(err error) bool {
	return errors.Is(err, rdmacache.ErrFenced) || errors.Is(err, errVersion) || errors.Is(err, ErrMessage)
}
