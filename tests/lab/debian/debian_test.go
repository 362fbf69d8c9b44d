package debian

import "testing"

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
