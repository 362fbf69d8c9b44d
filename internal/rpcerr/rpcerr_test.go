package rpcerr_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rpmemfs/rpmemfs/control/controlpb"
	"github.com/rpmemfs/rpmemfs/internal/rpcerr"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/region"
)

var _ = flag.Uint64("seed", 0, "seed of the random tests; none here")

var errOffline = errors.New("offline")

var table = append(rpcerr.Table{{Err: errOffline, Code: codes.Unavailable}}, rpcerr.Pools...)

// Every sentinel arrives as itself, with its text.
func TestSentinelsTravel(t *testing.T) {
	for _, r := range table {
		sent := fmt.Errorf("while doing things: %w", r.Err)
		got := table.Decode(table.Encode(sent))
		if !errors.Is(got, r.Err) || got.Error() != sent.Error() {
			t.Errorf("%v: got %v", r.Err, got)
		}
		for _, other := range table {
			if other.Err != r.Err && errors.Is(got, other.Err) {
				t.Errorf("%v: matches %v", r.Err, other.Err)
			}
		}
	}
}

// What wraps a sentinel by a method of its own travels too, and what has no
// sentinel keeps its text and matches none.
func TestOtherErrors(t *testing.T) {
	damage := &region.CorruptError{Region: 7, Off: 4096, Page: region.NoPage, What: "superblock"}
	if got := table.Decode(table.Encode(damage)); !errors.Is(got, region.ErrCorrupt) || got.Error() != damage.Error() {
		t.Errorf("damage: got %v", got)
	}
	for _, err := range []error{context.Canceled, context.DeadlineExceeded} {
		if got := table.Decode(table.Encode(err)); !errors.Is(got, err) {
			t.Errorf("%v: got %v", err, got)
		}
	}
	got := table.Decode(table.Encode(errors.New("bad \xff text")))
	if got.Error() != "bad \uFFFD text" || errors.Is(got, namespace.ErrInvalid) {
		t.Errorf("no sentinel: got %v", got)
	}
	if got := table.Decode(status.Error(codes.Unavailable, "connection refused")); !errors.Is(got, errOffline) {
		t.Errorf("a code of gRPC itself: got %v", got)
	}
	if table.Encode(nil) != nil {
		t.Error("nil became an error")
	}
}

// A reason of a newer version matches nothing but the sentinel of its code.
func TestUnknownReason(t *testing.T) {
	st, err := status.New(codes.Unavailable, "x").WithDetails(&controlpb.ErrorDetail{Reason: 9999})
	if err != nil {
		t.Fatal(err)
	}
	if got := table.Decode(st.Err()); !errors.Is(got, errOffline) || errors.Is(got, namespace.ErrInvalid) {
		t.Errorf("got %v", got)
	}
}
