package tests

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/rpmemfs/rpmemfs"

// edges is the one definition of which package may import which, apart from the
// standard library. A trailing * stands for everything below.
var edges = map[string][]string{
	"epoch":                 {"golang.org/x/sys*"},
	"namespace":             {module + "/epoch"},
	"region":                {module + "/epoch", module + "/internal/*"},
	"rdmacache":             {module + "/region", module + "/epoch", "golang.org/x/sys*"},
	"rdmacache/inproc":      {module + "/rdmacache"},
	"rdmacache/tcp":         {module + "/rdmacache", module + "/region", module + "/internal/accept", module + "/internal/places", "golang.org/x/sys*"},
	"rdmacache/verbs":       {module + "/rdmacache", module + "/region", module + "/internal/accept", "golang.org/x/sys*"},
	"rdmacache/verbs/model": {module + "/rdmacache/verbs"},
	"rdmacache/conntest":    {module + "/rdmacache", module + "/region"},
	"memnode": {module + "/region", module + "/namespace", module + "/rdmacache", module + "/epoch",
		module + "/internal/*", "go.etcd.io/bbolt*", "golang.org/x/sys*"},
	"volume": {module + "/epoch", module + "/namespace", module + "/region", module + "/rdmacache", "golang.org/x/sys*"},
	"fs": {module + "/volume", module + "/epoch", module + "/namespace", module + "/region", module + "/rdmacache",
		"github.com/hanwen/go-fuse/v2*", "golang.org/x/sys*"},
	"attach":      {module + "/epoch", module + "/namespace", module + "/attach/*", "golang.org/x/sys*"},
	"attach/wire": {"golang.org/x/sys*"},
	"attach/ring": {"golang.org/x/sys*"},
	"client":      {module + "/epoch", module + "/attach/*", "golang.org/x/sys*"},
	"control": {module + "/volume", module + "/attach", module + "/namespace", module + "/region", module + "/epoch", module + "/control/*",
		module + "/internal/rpcerr",
		"google.golang.org/grpc*", "google.golang.org/protobuf*", "golang.org/x/sys*"},
	"control/*": {"google.golang.org/grpc*", "google.golang.org/protobuf*"},
	"node": {module + "/node/nodepb", module + "/memnode", module + "/epoch", module + "/namespace", module + "/region", module + "/rdmacache",
		module + "/rdmacache/tcp", module + "/rdmacache/verbs", module + "/internal/*", module + "/control/controlpb", "google.golang.org/grpc*",
		"google.golang.org/protobuf*", "golang.org/x/sys*"},
	"node/nodepb": {module + "/epoch", module + "/namespace", module + "/region", "google.golang.org/grpc*", "google.golang.org/protobuf*"},
	"remote": {module + "/node/nodepb", module + "/control/controlpb", module + "/internal/rpcerr", module + "/epoch", module + "/namespace",
		module + "/region", module + "/rdmacache", module + "/rdmacache/tcp", module + "/rdmacache/verbs", "google.golang.org/grpc*"},
	"heap":            {"golang.org/x/sys*"},
	"internal/*":      {"golang.org/x/sys*"},
	"internal/doctor": {module + "/internal/media", "golang.org/x/sys*"},
	"internal/rpcerr": {module + "/epoch", module + "/namespace", module + "/region", module + "/rdmacache", module + "/control/controlpb",
		"google.golang.org/grpc*"},
	"internal/metrics": {"github.com/prometheus/client_golang*"},
	"cmd/*":            {"*"},
	"tests/*":          {"*"},
}

// The packages import each other along the edges only.
func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", module+"/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var pkg struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&pkg); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimPrefix(pkg.ImportPath, module+"/")
		allowed, ok := edgesOf(name)
		if !ok {
			t.Errorf("package %s has no place in the table", name)
		}
		for _, imp := range pkg.Imports {
			domain, _, _ := strings.Cut(imp, "/")
			if strings.Contains(domain, ".") && !slices.ContainsFunc(allowed, func(edge string) bool { return matches(edge, imp) }) {
				t.Errorf("%s imports %s", name, imp)
			}
		}
	}
}

// edgesOf returns the row of a package: its own or that of a parent's *.
func edgesOf(name string) ([]string, bool) {
	if row, ok := edges[name]; ok {
		return row, true
	}
	for pattern, row := range edges {
		if strings.HasSuffix(pattern, "*") && matches(pattern, name) {
			return row, true
		}
	}
	return nil, name == "tests"
}

func matches(pattern, path string) bool {
	prefix, open := strings.CutSuffix(pattern, "*")
	return path == pattern || open && strings.HasPrefix(path, prefix)
}
