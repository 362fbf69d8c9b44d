package debian

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// A mirror that does not bring what it promised is one that cannot be used, like none.
func TestUnavailable(t *testing.T) {
	if _, err := os.Stat(keyring); err != nil {
		t.Skip(err)
	}
	bin := t.TempDir()
	for name, script := range map[string]string{
		"apt-cache": "", "dpkg-deb": "",
		"apt-get": `case "$*" in
*indextargets*) echo http://mirror.example/debian ;;
*update*) ;;
*) echo "E: Connection timed out" >&2; exit 100 ;;
esac
`,
	} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	c := Cache{Dir: t.TempDir(), Release: "none", Log: t.Logf}
	if _, err := c.Unpack(t.Context(), Tree{Name: "tree", Packages: []string{"package"}}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("got %v, want ErrUnavailable", err)
	}
}

func TestNewer(t *testing.T) {
	for _, pair := range [][2]string{
		{"linux-image-6.12.117+deb13-amd64", "linux-image-6.12.98+deb13-amd64"},
		{"linux-image-6.12.9+deb14-amd64", "linux-image-6.12.9+deb13-amd64"},
		{"linux-image-6.12.10+deb13-amd64", "linux-image-6.12.9+deb13-amd64"},
	} {
		if !newer(pair[0], pair[1]) || newer(pair[1], pair[0]) || newer(pair[0], pair[0]) {
			t.Errorf("%s is newer than %s", pair[0], pair[1])
		}
	}
}
