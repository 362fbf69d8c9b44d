package tests

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/client"
	"github.com/rpmemfs/rpmemfs/epoch"
)

// roleExact is a program with restart points that does steps of a workload:
//
//	exact FILE LOGBOOK SEED HALF FIRST THREADS
//
// It prints "ready E" first, E being the epoch that it finds, "durable E" for each epoch whose commit it was told of,
// "lost" for each thread when an epoch was rolled back, and "late" when a barrier
// was called off. It works until it is killed, or its daemon is.
func roleExact(args []string) error {
	var n [4]uint64
	for i := range n {
		var err error
		if n[i], err = strconv.ParseUint(args[2+i], 10, 64); err != nil {
			return err
		}
	}
	p := exactProgram{workload: workload{n[0], n[1]}, end: make(chan error, 1)}
	var err error
	if p.log, err = openLogbook(args[1]); err != nil {
		return err
	}
	if p.r, err = client.Open(args[0], client.Options{Frames: 1024}); err != nil {
		return err
	}
	if err := p.r.Grow(int64(p.pages()) * pageSize); err != nil {
		return err
	}
	p.mem = p.r.Bytes()
	if p.fd, err = unix.Open(args[0], unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		return err
	}
	first, threads := n[2], n[3]
	found := p.r.Epoch() - 1
	var begun sync.WaitGroup
	for i := range threads {
		begun.Add(1)
		go p.work(int(first+i), begun.Done)
	}
	begun.Wait()
	fmt.Println("ready", found)
	go p.commit()
	go p.disturb()
	return <-p.end
}

type exactProgram struct {
	workload
	r   *client.Region
	mem []byte
	log *logbook
	fd  int
	end chan error // the first failure
}

func (p *exactProgram) fail(err error) {
	select {
	case p.end <- err:
	default:
	}
}

// A worker is a thread of the program between its restart points.
type worker struct {
	*exactProgram
	*client.Participant
	id    int
	done  uint64   // steps
	epoch epoch.ID // the open one, when it looked last
}

func (p *exactProgram) work(id int, begun func()) {
	w := worker{exactProgram: p, Participant: p.r.Join(fmt.Sprintf("worker %d", id)), id: id}
	w.restart(0)
	begun()
	for {
		w.done++
		other := rand.Uint64N(mostThreads)
		atomic.StoreUint64(p.word(seen(uint64(id), other)), atomic.LoadUint64(p.word(other)))
		p.step(uint64(id), w.done, func(word, v uint64) { atomic.AddUint64(p.word(word), v) })
		atomic.StoreUint64(p.word(uint64(id)), w.done)
		p.log.did(id, w.done)
		err := w.RestartPoint()
		if err == nil || errors.Is(err, client.ErrLost) {
			w.passed(err)
			if rand.IntN(500) == 0 {
				w.Allow()
				time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond)
				err = w.Prevent()
				w.passed(err)
			}
		}
		if err != nil && !errors.Is(err, client.ErrLost) {
			p.fail(err)
			return
		}
	}
}

// restart begins where memory says, which is a committed image, and forgets what
// it noted from an epoch on.
func (w *worker) restart(from epoch.ID) {
	w.epoch = w.r.Epoch()
	w.done = atomic.LoadUint64(w.word(uint64(w.id)))
	w.log.lost(w.id, uint64(from))
	w.log.did(w.id, w.done)
	w.log.sealed(w.id, uint64(w.epoch-1), w.done)
}

// passed notes what was sealed while the thread was parked.
func (w *worker) passed(err error) {
	if errors.Is(err, client.ErrLost) {
		w.restart(w.r.Committed() + 1)
		fmt.Println("lost")
		return
	}
	now := w.r.Epoch()
	for ; w.epoch < now; w.epoch++ {
		w.log.sealed(w.id, uint64(w.epoch), w.done)
	}
}

func (p *exactProgram) word(no uint64) *uint64 { return (*uint64)(unsafe.Pointer(&p.mem[no*8])) }

// commit asks for one epoch after the other.
func (p *exactProgram) commit() {
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		id, err := p.r.Checkpoint(ctx)
		cancel()
		switch {
		case err == nil:
			fmt.Println("durable", id)
		case errors.Is(err, client.ErrCalledOff):
			fmt.Println("late", err)
		case !errors.Is(err, client.ErrLost):
			p.fail(err)
			return
		}
		time.Sleep(time.Duration(rand.IntN(3000)) * time.Microsecond)
	}
}

// disturb makes the kernel write pages back and drop them, and starts processes.
func (p *exactProgram) disturb() {
	const madvPageout = 21
	for {
		time.Sleep(time.Duration(rand.IntN(10)) * time.Millisecond)
		var err error
		switch rand.IntN(4) {
		case 0:
			err = unix.SyncFileRange(p.fd, 0, 0, unix.SYNC_FILE_RANGE_WRITE)
		case 1:
			if err = unix.SyncFileRange(p.fd, 0, 0, unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER); err == nil {
				err = unix.Madvise(p.mem, madvPageout)
			}
		case 2:
			err = unix.Fadvise(p.fd, 0, 0, unix.FADV_DONTNEED)
		case 3:
			err = exec.Command("/bin/true").Run()
		}
		if err != nil {
			p.fail(fmt.Errorf("disturb: %w", err))
			return
		}
	}
}

// roleTruncate makes a file of a length.
func roleTruncate(args []string) error {
	size, err := strconv.ParseInt(args[1], 10, 64)
	if err != nil {
		return err
	}
	file, err := os.Create(args[0])
	if err != nil {
		return err
	}
	if err := file.Truncate(size); err != nil {
		return err
	}
	return file.Close()
}
