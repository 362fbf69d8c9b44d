package remote

import (
	"errors"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/rpmemfs/rpmemfs/control/controlpb"
	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/internal/rpcerr"
)

// A memory node whose directory is poisoned poisons no region: a commit that found no
// slot because of it is open again, and goes on when the node was restarted.
func TestPoisonedDirectory(t *testing.T) {
	failed := errors.New("disk failed")
	sent := rpcerr.Table{{Err: failed, Reason: controlpb.Reason_REASON_POISONED, Code: codes.DataLoss}}.Encode(failed)
	if err := decode(sent); !errors.Is(err, ErrPoisoned) || errors.Is(err, epoch.ErrPoisoned) || unanswered(err) {
		t.Errorf("got %v", err)
	}
}
