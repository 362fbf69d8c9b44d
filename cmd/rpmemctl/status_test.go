package main

import (
	"bytes"
	"strings"
	"testing"
)

// Status says of a mount without a lease why, and nothing that it does not know.
func TestStatusOfLeases(t *testing.T) {
	lease := leaseJSON{Share: "web", LastsNS: 2e9}
	lost := leaseJSON{Share: "web", LastsNS: 2e9, Lost: "another took it"}
	for _, tt := range []struct {
		name       string
		pool       poolJSON
		want, miss []string
	}{
		{"held", poolJSON{Mountpoint: "/mnt", Medium: "file", SizeBytes: 1 << 20, FreeBytes: 1 << 19, Inodes: 3, Lease: &lease},
			[]string{"512 KiB of 1.0 MiB used", "3 inodes, 0 open", "of share web, for 2s"}, []string{"LOST", "none"}},
		{"lost", poolJSON{Mountpoint: "/mnt", Medium: "file", OpenFiles: 1, DirtyPages: 9, Lease: &lost},
			[]string{"LOST, files give EIO until it is mounted again: another took it", "1 open by 0 handles", "9 dirty pages"}, []string{"space:", "inode"}},
		{"reader", poolJSON{Mountpoint: "/mnt", ReadOnly: true, Lease: &lease},
			[]string{"/mnt, read-only", "none, to read share web"}, []string{"of share web"}},
		{"own", poolJSON{Mountpoint: "/mnt", SizeBytes: 1 << 20}, nil, []string{"lease:"}},
	} {
		var out bytes.Buffer
		newApp(nil, &out, nil).printPool(&out, tt.pool)
		for _, want := range tt.want {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s: lacks %q:\n%s", tt.name, want, &out)
			}
		}
		for _, miss := range tt.miss {
			if strings.Contains(out.String(), miss) {
				t.Errorf("%s: has %q:\n%s", tt.name, miss, &out)
			}
		}
	}
}
