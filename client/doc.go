// Package client attaches a Go program to a file of a rpmemfs mount. The program
// maps the file, stores to it, and says where its goroutines hold no half-made
// change; an epoch then is the memory as it was when all of them, in all attached
// processes, were at such a point. Without cgo it speaks the same protocol as
// librpmemfs (docs/protocol.md, packages attach/wire and attach/ring).
//
//	r, err := client.Open("/mnt/a/heap", client.Options{})
//	p := r.Join("worker 1")
//	defer p.Leave()
//	for work := range queue {
//		change(r.Bytes(), work)
//		if err := p.RestartPoint(); err != nil {
//			...
//		}
//	}
//
// Every goroutine that stores to the region joins it. Between two restart points
// its stores are one change, which an epoch has whole or not at all. Around a call
// that may block it allows barriers without it (Allow, Prevent), and stores nothing
// there. Restart points follow Khorguani, Ropars and De Palma, "ResPCT: Fast
// Checkpointing in Non-volatile Memory for Multi-threaded Applications", EuroSys
// 2022, doi:10.1145/3492321.3519590; a number takes the place of their flag
// (tests/model).
//
// # Crashes
//
// A process that dies without Close leaves a change half made. The open epoch is
// rolled back, for all processes: the memory of those that survive shows the last
// committed epoch again, and each participant's next RestartPoint, Prevent or
// Checkpoint returns ErrLost once. What it knows from the memory is old then.
//
// After ErrGone (the daemon ended, or a commit failed) the region is of no more
// use. Touching pages that are not in memory then is SIGBUS, which ends the
// program unless debug.SetPanicOnFault is set.
//
// # Goroutines and page faults
//
// A goroutine that touches a page of the mapping may wait for the daemon, and then
// blocks an OS thread and every stop of the world meanwhile. A process that serves
// the mount must therefore never open a file of it with this package. A forked
// child is not attached; what os/exec starts inherits nothing.
package client
