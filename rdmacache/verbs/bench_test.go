package verbs_test

import (
	"context"
	"hash/crc32"
	"testing"

	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/rdmacache/conntest"
)

// What a push costs the processor where the device takes no time, and what of that is the
// copy to the arena and the checksum, which the caller takes.
func BenchmarkPush(b *testing.B) {
	const pool = 8 << 20
	table := crc32.MakeTable(crc32.Castagnoli)
	for _, c := range []struct {
		name         string
		piece, flush int // bytes
	}{
		{"page", rdmacache.PageSize, rdmacache.PageSize},
		{"pages", rdmacache.PageSize, 1 << 20},
		{"MiB", 1 << 20, 1 << 20},
	} {
		data := make([]byte, pool)
		for i := range data {
			data[i] = byte(i) // the system's page of zeros is in the processor's cache
		}
		checksum := func(p []byte) (sum uint32) {
			for ; len(p) > 0; p = p[rdmacache.PageSize:] {
				sum ^= crc32.Checksum(p[:rdmacache.PageSize], table)
			}
			return sum
		}
		sum := uint32(0)
		b.Run(c.name+"/copy and CRC", func(b *testing.B) {
			to := make([]byte, pool)
			b.SetBytes(int64(c.piece))
			for i := 0; b.Loop(); i += c.piece {
				p := data[i%pool:][:c.piece]
				sum ^= checksum(p)
				copy(to[i%pool:], p)
			}
		})
		b.Run(c.name+"/push", func(b *testing.B) {
			s := conntest.NewStore(pool, rdmacache.Medium{Kind: "dax"})
			f := newFabric(b, friendly(), s, ways(false)[0])
			f.serve()
			cfg := f.config()
			cfg.NIC = f.client.Null()
			conn := f.dial(cfg)
			b.SetBytes(int64(c.piece))
			b.ReportAllocs()
			for i := 0; b.Loop(); i += c.piece {
				p := data[i%pool:][:c.piece]
				sum ^= checksum(p)
				if err := conn.Write(context.Background(), p, int64(i%pool)); err != nil {
					b.Fatal(err)
				}
				if (i+c.piece)%c.flush == 0 {
					if err := conn.Flush(context.Background()); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
		_ = sum
	}
}
