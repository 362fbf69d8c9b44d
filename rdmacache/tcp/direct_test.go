package tcp

import (
	"bytes"
	"errors"
	"hash/crc32"
	"net"
	"testing"
	"time"
)

// long returns the data of a WRITE that is not received ahead.
func long() []byte {
	p := make([]byte, maxData)
	for i := range p {
		p[i] = byte(1 + i%250)
	}
	return p
}

// Long WRITEs land where they belong, whole.
func TestLongWrite(t *testing.T) {
	n := newNode("dax")
	r := connectRaw(t, n.serve(t, ServerConfig{}))
	if _, err := r.greet(hello{attempt: 1}); err != nil {
		t.Fatal(err)
	}
	want := long()
	r.say(header{kind: kindWrite, length: maxData, sequence: 1, offset: 4096}, want)
	r.say(header{kind: kindFlush, sequence: 2}, nil)
	r.say(header{kind: kindWrite, length: longData + 1, sequence: 3, offset: 4096 + maxData}, want[:longData+1])
	r.say(header{kind: kindFlush, sequence: 4}, nil)
	for range 2 {
		if h, _, err := r.hear(); err != nil || h.kind != kindDone {
			t.Fatalf("answer %v, %v, want DONE", h, err)
		}
	}
	all := make([]byte, len(n.bytes))
	copy(all[4096+copy(all[4096:], want):], want[:longData+1])
	n.mu.Lock()
	defer n.mu.Unlock()
	if !bytes.Equal(n.bytes, all) {
		t.Error("the bytes are not where they belong")
	}
}

// A long WRITE outside the medium fails the FLUSH, and what follows it is understood.
func TestLongWriteOutside(t *testing.T) {
	n := newNode("dax")
	r := connectRaw(t, n.serve(t, ServerConfig{}))
	if _, err := r.greet(hello{attempt: 1}); err != nil {
		t.Fatal(err)
	}
	r.say(header{kind: kindWrite, length: maxData, sequence: 1, offset: int64(len(n.bytes)) - 2*longData}, long())
	r.say(header{kind: kindFlush, sequence: 2}, nil)
	if h, _, err := r.hear(); err != nil || h.code != codePoisoned {
		t.Errorf("answer %v, %v, want ERROR POISONED", h, err)
	}
	r.say(header{kind: kindRead, length: 8, sequence: 3}, nil)
	if h, _, err := r.hear(); err != nil || h.kind != kindData {
		t.Errorf("answer %v, %v, want DATA", h, err)
	}
}

// Damage in a long WRITE cuts the connection, and no FLUSH covers it.
func TestLongWriteDamaged(t *testing.T) {
	n := newNode("dax")
	r := connectRaw(t, n.serve(t, ServerConfig{}))
	if _, err := r.greet(hello{attempt: 1}); err != nil {
		t.Fatal(err)
	}
	p := long()
	m := sealed(header{kind: kindWrite, length: maxData, sequence: 1}, p)
	m[headerSize+maxData-1] ^= 4
	m = append(m, sealed(header{kind: kindFlush, sequence: 2}, nil)...)
	if _, err := r.nc.Write(m); err != nil {
		t.Fatal(err)
	}
	if h, text, err := r.hear(); err == nil && h.code != codeProtocol {
		t.Errorf("answer %v %q, want ERROR PROTOCOL", h, text)
	}
	if h, _, err := r.hear(); err == nil {
		t.Errorf("after the damage came %v", h)
	}
}

// A client that stops in the middle of a long WRITE holds nobody up, and its
// connection ends with its session.
func TestLongWriteStalls(t *testing.T) {
	n := newNode("dax")
	address := n.serve(t, ServerConfig{})
	r := connectRaw(t, address)
	if _, err := r.greet(hello{stream: 1, attempt: 1, alive: minAlive}); err != nil {
		t.Fatal(err)
	}
	m := sealed(header{kind: kindWrite, length: maxData, sequence: 1, offset: maxData}, long())
	if _, err := r.nc.Write(m[:len(m)/2]); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; {
		n.mu.Lock()
		arrived := n.bytes[maxData] != 0
		n.mu.Unlock()
		if arrived {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("nothing arrives")
		}
	}
	mustWork(t, address)
	// It is not told that the node is at work: what it waits for does not get through.
	_ = r.nc.SetReadDeadline(time.Now().Add(30 * minAlive))
	signs := 0
	for ; ; signs++ {
		if _, _, err := r.hear(); err != nil {
			break
		}
	}
	if signs > 5 {
		t.Errorf("%d signs of life for what does not arrive", signs)
	}
	_ = r.nc.SetReadDeadline(time.Now().Add(20 * time.Second))
	close(n.done)
	if h, _, err := r.hear(); err != nil || h.code != codeFenced {
		t.Errorf("answer %v, %v, want ERROR FENCED", h, err)
	}
	if h, _, err := r.hear(); err == nil || isTimeout(err) {
		t.Errorf("after that came %v, %v; want the end", h, err)
	}
}

// Close ends a read and a write of a detached connection that wait.
func TestDirectClose(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	d := &direct{Conn: nc}
	d.detach(time.Minute)
	if d.raw == nil {
		t.Fatal("not detached")
	}
	ended := make(chan error, 2)
	go func() {
		_, err := d.Read(make([]byte, 1))
		ended <- err
	}()
	go func() {
		for {
			if _, err := d.Write(make([]byte, 1<<20)); err != nil {
				ended <- err
				return
			}
		}
	}()
	if comesSoon(d.raw) {
		t.Error("something comes, though nothing was sent")
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	for range 2 {
		select {
		case err := <-ended:
			if err == nil {
				t.Error("no error after Close")
			}
		case <-time.After(10 * time.Second):
			t.Fatal("Close wakes nobody")
		}
	}
	if err := d.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("second Close = %v, want net.ErrClosed", err)
	}
	if _, err := d.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Read after Close = %v, want net.ErrClosed", err)
	}
	if comesSoon(d.raw) {
		t.Error("something comes after Close")
	}
}

// A write to a peer that takes nothing ends.
func TestDirectTimeout(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	d := &direct{Conn: nc}
	defer func() { _ = d.Close() }()
	d.detach(20 * time.Millisecond)
	ended := make(chan error, 1)
	go func() {
		for {
			if _, err := d.Write(make([]byte, 1<<20)); err != nil {
				ended <- err
				return
			}
		}
	}()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("the write waits for ever")
	}
}

// The checksum of a message is the same however it is received.
func TestReceiveInto(t *testing.T) {
	want := long()
	for _, n := range []int{1, longData, longData + 1, maxData} {
		here, there := net.Pipe()
		go func() {
			_, _ = there.Write(sealed(header{kind: kindData, length: uint32(n), sequence: 1}, want[:n]))
			_ = there.Close()
		}()
		rx := newReceiver(&direct{Conn: here})
		h, err := rx.header()
		if err != nil {
			t.Fatal(err)
		}
		p := make([]byte, n)
		sum, err := rx.into(p, 0)
		if err != nil || sum != h.sum || sum != crc32.Checksum(want[:n], castagnoli) || !bytes.Equal(p, want[:n]) {
			t.Errorf("%d bytes: %v, checksum %#x, want %#x", n, err, sum, h.sum)
		}
		_ = here.Close()
	}
}
