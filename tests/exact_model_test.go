package tests

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The workload of the exactness test. A region of 2 + 2*half pages. Page 0 counts
// each thread's steps. In page 1 each thread notes how many steps of each other
// thread it has seen. The others are two halves.
//
// A step of a thread adds numbers to words of the first half, and the same numbers
// to words of the second; it ends when it is counted. So the halves have equal sums
// between steps only, and all of them follows from the counts: adding commutes, and
// what a step adds where follows from the seed, the thread and the step's number.
type workload struct {
	seed uint64
	half uint64 // pages
}

const (
	wordsPerPage = pageSize / 8
	mostThreads  = 16
	seenPage     = 1 // word t*mostThreads + u of it: what thread t saw of thread u
	firstHalf    = 2
)

func (w workload) pages() uint64 { return firstHalf + 2*w.half }

// seen is the word in which a thread notes what it saw of another.
func seen(thread, other uint64) uint64 {
	return seenPage*wordsPerPage + thread*mostThreads + other
}

// mix is SplitMix64's.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// step calls add for each word that the step changes, by its index in the region.
func (w workload) step(thread, n uint64, add func(word, v uint64)) {
	words := w.half * wordsPerPage
	h := mix(w.seed ^ thread<<48 ^ n)
	hot := h >> 8 % w.half * wordsPerPage // many words of this page
	for range 1 + h%12 {
		h = mix(h)
		from, to := h%words, mix(h)%words
		if h>>60 < 8 {
			from = hot + h%wordsPerPage
		}
		v := h | 1
		add(firstHalf*wordsPerPage+from, v)
		add(firstHalf*wordsPerPage+words+to, v)
	}
}

// A model is the image that the counts of steps so far have.
type model struct {
	workload
	counts [mostThreads]uint64
	words  []uint64
}

func newModel(w workload) *model {
	return &model{workload: w, words: make([]uint64, w.pages()*wordsPerPage)}
}

// compare goes on to the counts that an image holds and compares all of it.
func (m *model) compare(image []byte) error {
	if uint64(len(image)) != m.pages()*pageSize {
		return fmt.Errorf("%d bytes, want %d pages", len(image), m.pages())
	}
	for i := range m.counts {
		n := binary.LittleEndian.Uint64(image[i*8:])
		if n < m.counts[i] {
			return fmt.Errorf("thread %d went back from step %d to %d", i, m.counts[i], n)
		}
		for ; m.counts[i] < n; m.counts[i]++ {
			m.step(uint64(i), m.counts[i]+1, func(word, v uint64) { m.words[word] += v })
		}
		m.words[i] = n
	}
	for i := range uint64(mostThreads * mostThreads) {
		at := seen(i/mostThreads, i%mostThreads)
		m.words[at] = binary.LittleEndian.Uint64(image[at*8:])
		if other := i % mostThreads; m.words[at] > m.counts[other] {
			return fmt.Errorf("thread %d had seen step %d of thread %d, which had done %d", i/mostThreads, m.words[at], other, m.counts[other])
		}
	}
	var sums [2]uint64
	for i, want := range m.words {
		got := binary.LittleEndian.Uint64(image[i*8:])
		if i >= firstHalf*wordsPerPage {
			sums[(uint64(i)/wordsPerPage-firstHalf)/m.half] += got
		}
		if got != want {
			return fmt.Errorf("page %d, byte %d: got %#x; the steps counted in the image make %#x", i/wordsPerPage, i%wordsPerPage*8, got, want)
		}
	}
	if sums[0] != sums[1] {
		return fmt.Errorf("the halves sum up to %d and %d", sums[0], sums[1])
	}
	return nil
}

// A logbook is a file outside of the mount in which a program's threads write down
// what they had done at each barrier. A thread's page: the steps that it has done,
// then, for the last epochs, the epoch as its program counts and the steps it had
// done when that was sealed.
type logbook struct{ mem []byte }

const (
	logged    = 64 // epochs for a thread
	loggedOff = 64 // bytes before them
)

func openLogbook(path string) (*logbook, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	defer unix.Close(fd)
	const size = mostThreads * pageSize
	if err := unix.Ftruncate(fd, size); err != nil {
		return nil, err
	}
	mem, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	return &logbook{mem}, err
}

func (l *logbook) close() error { return unix.Munmap(l.mem) }

func (l *logbook) word(thread, off int) *uint64 {
	return (*uint64)(unsafe.Pointer(&l.mem[thread*pageSize+off]))
}

func (l *logbook) entry(thread int, epoch uint64) (e, steps *uint64) {
	at := loggedOff + int(epoch%logged)*16
	return l.word(thread, at), l.word(thread, at+8)
}

// did notes the steps that a thread has done; none of them is half done.
func (l *logbook) did(thread int, steps uint64) { atomic.StoreUint64(l.word(thread, 0), steps) }

// sealed notes the steps that it had done when an epoch was sealed.
func (l *logbook) sealed(thread int, epoch, steps uint64) {
	e, s := l.entry(thread, epoch)
	atomic.StoreUint64(e, 0)
	atomic.StoreUint64(s, steps)
	atomic.StoreUint64(e, epoch)
}

// lost forgets a thread's epochs from one on.
func (l *logbook) lost(thread int, from uint64) {
	for i := range uint64(logged) {
		if e, _ := l.entry(thread, i); atomic.LoadUint64(e) >= from {
			atomic.StoreUint64(e, 0)
		}
	}
}

// at returns the steps that a thread had done when an epoch was sealed. One that
// did not get to note it has done nothing since.
func (l *logbook) at(thread int, epoch uint64) uint64 {
	if e, s := l.entry(thread, epoch); *e == epoch {
		return *s
	}
	return *l.word(thread, 0)
}

// from returns the steps that a thread had done at epochs, for a report.
func (l *logbook) from(thread int, first, last uint64) (steps []uint64) {
	for e := first; e <= last; e++ {
		steps = append(steps, l.at(thread, e))
	}
	return steps
}

// find reports whether there is an epoch, from one on, at which threads had done so
// many steps. It also returns the last epoch that may have been sealed.
func (l *logbook) find(threads []int, counts []uint64, from uint64) (last uint64, ok bool) {
	epochs := []uint64{from}
	last = from
	for _, t := range threads {
		for i := range uint64(logged) {
			if e, _ := l.entry(t, i); *e >= from {
				epochs = append(epochs, *e)
				last = max(last, *e)
			}
		}
	}
	last++ // sealed, and noted by nobody
	return last, slices.ContainsFunc(append(epochs, last), func(e uint64) bool {
		return !slices.ContainsFunc(threads, func(t int) bool { return l.at(t, e) != counts[t] })
	})
}

// The comparison finds what it is for: half a step, a page of another moment, a
// step back.
func TestExactModel(t *testing.T) {
	w := workload{seed: 5, half: 3}
	image := make([]byte, w.pages()*pageSize)
	var done [2]uint64
	run := func(thread uint64, upto int) { // so many words of the next step; -1: all
		done[thread]++
		w.step(thread, done[thread], func(word, v uint64) {
			if upto != 0 {
				at := word * 8
				binary.LittleEndian.PutUint64(image[at:], binary.LittleEndian.Uint64(image[at:])+v)
				upto--
			}
		})
		if upto < 0 {
			binary.LittleEndian.PutUint64(image[thread*8:], done[thread])
		}
	}
	for i := range uint64(100) {
		run(i%2, -1)
	}
	m := newModel(w)
	if err := m.compare(image); err != nil {
		t.Fatal(err)
	}
	good := bytes.Clone(image)
	for name, spoil := range map[string]func(){
		"half a step":       func() { run(0, 1) },
		"one more step":     func() { done[1] -= 1; run(1, 1<<20) },
		"a page of before":  func() { run(0, -1); copy(image[5*pageSize:6*pageSize], good[5*pageSize:]) },
		"a count of before": func() { run(1, -1); copy(image[:pageSize], good) },
		"a step back":       func() { binary.LittleEndian.PutUint64(image, 3) },
		"seen too much":     func() { binary.LittleEndian.PutUint64(image[8*seen(0, 1):], done[1]+1) },
		"one bit":           func() { image[3*pageSize+77] ^= 4 },
		"too short":         func() { image = image[:pageSize] },
	} {
		image = bytes.Clone(good)
		before := done
		spoil()
		done = before
		fresh := newModel(w)
		if err := fresh.compare(good); err != nil {
			t.Fatal(err)
		}
		if err := fresh.compare(image); err == nil {
			t.Errorf("%s: found nothing", name)
		}
	}
}
