package remote

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/node/nodepb"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
)

// Grant implements region.Space.
func (p *Pool) Grant(ctx context.Context, id region.ID, need, want uint64) (region.Grant, error) {
	resp, err := change(ctx, p, p.node.Grant, func(request uint64) *nodepb.GrantRequest {
		return &nodepb.GrantRequest{RequestId: request, Ino: uint64(id), Need: need, Want: want}
	})
	if err != nil {
		return region.Grant{}, err
	}
	g := region.Grant{Runs: nodepb.Runs(resp.GetRuns()), Super: region.Slot(resp.GetSuper())}
	if err := p.checkRuns(g.Runs); err != nil {
		return region.Grant{}, fmt.Errorf("grant to region %d: %w", id, err)
	}
	var granted uint64
	for _, r := range g.Runs {
		granted += r.N
	}
	if granted < need {
		return region.Grant{}, fmt.Errorf("grant to region %d: %w: %d slots, not %d", id, ErrProtocol, granted, need)
	}
	return g, nil
}

// Return implements region.Space.
func (p *Pool) Return(ctx context.Context, id region.ID, runs []region.Run) error {
	if err := p.dataPath().settle(ctx); err != nil {
		return err
	}
	for some := range slices.Chunk(runs, nodepb.MaxReturnRuns) {
		_, err := change(ctx, p, p.node.Return, func(request uint64) *nodepb.ReturnRequest {
			return &nodepb.ReturnRequest{RequestId: request, Ino: uint64(id), Runs: nodepb.NewRuns(some)}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// checkRuns refuses runs outside the pool: package region believes its directory.
func (p *Pool) checkRuns(runs []region.Run) error {
	slots := p.opened.GetSizeBytes() / region.PageSize
	for _, r := range runs {
		if r.Start == 0 || r.N == 0 || r.N > slots || uint64(r.Start) > slots-r.N {
			return fmt.Errorf("%w: %d slots from %d in a pool of %d", ErrProtocol, r.N, r.Start, slots)
		}
	}
	return nil
}

// Locate returns what the pool knows of a region.
func (p *Pool) Locate(ctx context.Context, id region.ID) (region.Location, error) {
	resp, err := ask(ctx, p, p.node.Locate, &nodepb.LocateRequest{Ino: uint64(id)})
	if err != nil {
		return region.Location{}, err
	}
	loc := resp.Region(id)
	if err := p.checkRuns(loc.Extents); err != nil {
		return region.Location{}, fmt.Errorf("locate region %d: %w", id, err)
	}
	return loc, nil
}

// SaveCheckpoint keeps cp durably; namespace.ErrExist if its name is taken.
func (p *Pool) SaveCheckpoint(ctx context.Context, id region.ID, cp region.Checkpoint) error {
	_, err := change(ctx, p, p.node.SaveCheckpoint, func(request uint64) *nodepb.SaveCheckpointRequest {
		return &nodepb.SaveCheckpointRequest{RequestId: request, Ino: uint64(id), Checkpoint: nodepb.NewCheckpoint(cp)}
	})
	return err
}

// DropCheckpoint forgets a checkpoint; namespace.ErrNotExist.
func (p *Pool) DropCheckpoint(ctx context.Context, id region.ID, name string) error {
	_, err := change(ctx, p, p.node.DropCheckpoint, func(request uint64) *nodepb.DropCheckpointRequest {
		return &nodepb.DropCheckpointRequest{RequestId: request, Ino: uint64(id), Name: []byte(name)}
	})
	return err
}

// Clone adds a file of n's attributes whose region starts as seed, which gets its
// ID here, in src's family.
func (p *Pool) Clone(ctx context.Context, src region.ID, parent namespace.Ino, name string, n namespace.Inode, seed region.Seed) (namespace.Inode, error) {
	resp, err := changeNames(ctx, p, p.node.Clone, func(request uint64) *nodepb.CloneRequest {
		return &nodepb.CloneRequest{
			RequestId: request,
			Source:    uint64(src),
			Parent:    uint64(parent),
			Name:      []byte(name),
			Inode:     nodepb.NewInode(n),
			Seed:      nodepb.NewSeed(seed),
		}
	})
	if err != nil {
		return namespace.Inode{}, err
	}
	return inodeOf(resp)
}

// Check reports every inconsistency of the directory and of the extents, after the
// last one was found.
func (p *Pool) Check(ctx context.Context, report func(problem string)) error {
	var problems []string
	err := p.repeat(ctx, func(ctx context.Context) error {
		problems = nil
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		stream, err := p.node.Check(ctx, &nodepb.CheckRequest{}, grpc.WaitForReady(true))
		if err != nil {
			return err
		}
		return receive(stream, func(m *nodepb.CheckResponse) error {
			if problems = append(problems, m.GetProblem()); len(problems) > maxProblems {
				return fmt.Errorf("%w: more than %d problems", ErrProtocol, maxProblems)
			}
			return nil
		})
	})
	for _, problem := range problems {
		report(problem)
	}
	return err
}

// trafficIn bounds how long Traffic waits.
const trafficIn = time.Second

// A trafficCache is what the memory node said last.
type trafficCache struct {
	mu   sync.Mutex
	last rdmacache.Traffic // guarded by mu
}

// Traffic counts what the medium did since the memory node started, for all its
// sessions. It is the last that is known if the memory node does not answer soon.
func (p *Pool) Traffic() rdmacache.Traffic {
	ctx, cancel := context.WithTimeout(context.Background(), trafficIn)
	defer cancel()
	resp, err := p.node.Traffic(metadata.NewOutgoingContext(ctx, p.identity), &nodepb.TrafficRequest{})
	p.traffic.mu.Lock()
	defer p.traffic.mu.Unlock()
	if err == nil {
		p.traffic.last = rdmacache.Traffic{BytesWritten: resp.GetBytesWritten(), Flushes: resp.GetFlushes()}
	}
	return p.traffic.last
}
