package tcp

import (
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// A polite is a connection that says a word before it is closed, as TLS does.
type polite struct{ net.Conn }

func (p polite) NetConn() net.Conn { return p.Conn }

func (p polite) Close() error {
	_ = p.SetWriteDeadline(time.Now().Add(5 * time.Second))
	_, _ = p.Write([]byte("farewell"))
	return p.Conn.Close()
}

// A connection whose peer takes nothing is closed soon all the same, and who closes it too
// does not wait.
func TestCloseOfAPeerThatTakesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		defer func() { _ = far.Close() }()
		d := &direct{Conn: polite{near}}
		begun := time.Now()
		go func() { _ = d.Close() }()
		synctest.Wait()
		if err := d.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("second Close = %v, want net.ErrClosed", err)
		}
		if took := time.Since(begun); took != 0 {
			t.Errorf("second Close took %v", took)
		}
		if _, err := d.Read(make([]byte, 1)); err == nil {
			t.Error("read of a closed connection: no error")
		}
		if took := time.Since(begun); took > farewell {
			t.Errorf("closed after %v, want %v", took, farewell)
		}
	})
}
