package metrics_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/rpmemfs/rpmemfs/internal/metrics"
)

var _ = flag.Uint64("seed", 0, "seed of the random tests; there are none here")

// serve runs a registry on a port of its own and returns its address.
func serve(t *testing.T, r *metrics.Registry, health func(context.Context) error) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx, l, health) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Run does not end")
		}
	})
	return "http://" + l.Addr().String()
}

func get(t *testing.T, url string) (code int, body string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// scrape parses what Prometheus would.
func scrape(t *testing.T, url string) map[string]*dto.MetricFamily {
	t.Helper()
	code, body := get(t, url+"/metrics")
	if code != http.StatusOK {
		t.Fatalf("got status %d: %s", code, body)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(body))
	if err != nil {
		t.Fatalf("parse: %v\n%s", err, body)
	}
	return families
}

type state struct {
	bytes  uint64
	shares []metrics.Point
}

func register(r *metrics.Registry, read func(context.Context) (state, error)) {
	metrics.Add(r, "test", read,
		metrics.Metric[state]{Kind: metrics.Counter, Name: "rpmemfs_written_bytes_total", Help: "Bytes.", Value: func(s state) float64 { return float64(s.bytes) }},
		metrics.Metric[state]{Kind: metrics.Gauge, Name: "rpmemfs_share_used_bytes", Help: "Bytes.", Label: "share", Points: func(s state) []metrics.Point { return s.shares }},
	)
}

func TestScrape(t *testing.T) {
	r := metrics.New("v1\xff", nil)
	s := state{bytes: 7, shares: []metrics.Point{{"b", 2}, {"a\"\n\xff\\", 1}}}
	register(r, func(context.Context) (state, error) { return s, nil })
	observe := r.Durations("rpmemfs_flush_seconds", "Flushes.")
	observe(time.Millisecond)
	observe(time.Hour)
	url := serve(t, r, nil)
	got := scrape(t, url)
	if v := got["rpmemfs_written_bytes_total"].GetMetric()[0].GetCounter().GetValue(); v != 7 {
		t.Errorf("counter: got %v, want 7", v)
	}
	shares := got["rpmemfs_share_used_bytes"].GetMetric()
	if len(shares) != 2 || shares[0].GetLabel()[0].GetValue() != "a\"\n\uFFFD\\" || shares[1].GetGauge().GetValue() != 2 {
		t.Errorf("gauge: got %v", shares)
	}
	h := got["rpmemfs_flush_seconds"].GetMetric()[0].GetHistogram()
	if h.GetSampleCount() != 2 || h.GetSampleSum() < 3600 {
		t.Errorf("histogram: got %v", h)
	}
	if v := got["rpmemfs_build_info"].GetMetric()[0].GetLabel()[0].GetValue(); v != "v1\uFFFD" {
		t.Errorf("version: got %q", v)
	}
	for _, name := range []string{"go_goroutines", "process_open_fds"} {
		if got[name] == nil {
			t.Errorf("%s is missing", name)
		}
	}
	s.bytes = 8
	if v := scrape(t, url)["rpmemfs_written_bytes_total"].GetMetric()[0].GetCounter().GetValue(); v != 8 {
		t.Errorf("second scrape: got %v, want 8", v)
	}
}

// Names that others choose make a bounded number of series, each once.
func TestSeriesAreBounded(t *testing.T) {
	var shares []metrics.Point
	for i := range 10000 {
		shares = append(shares, metrics.Point{fmt.Sprintf("share-%05d", i), 1})
	}
	long := strings.Repeat("x", 500)
	shares = append(shares, metrics.Point{"a", 1}, metrics.Point{"a", 2}, metrics.Point{" " + long + "1", 1}, metrics.Point{" " + long + "2", 1})
	r := metrics.New("", nil)
	register(r, func(context.Context) (state, error) { return state{shares: shares}, nil })
	url := serve(t, r, nil)
	_ = scrape(t, url) // counts what it dropped, for the next
	got := scrape(t, url)
	series := got["rpmemfs_share_used_bytes"].GetMetric()
	if len(series) != 256 {
		t.Errorf("got %d series, want 256", len(series))
	}
	for _, s := range series {
		if v := s.GetLabel()[0].GetValue(); len(v) > 128 {
			t.Errorf("a label of %d bytes", len(v))
		}
	}
	dropped := got["rpmemfs_dropped_series_total"].GetMetric()
	if len(dropped) != 1 || dropped[0].GetCounter().GetValue() < float64(len(shares)-256) {
		t.Errorf("dropped: got %v, want at least %d", dropped, len(shares)-256)
	}
}

// A source that fails or hangs takes its own metrics away and no others.
func TestFailedSnapshot(t *testing.T) {
	t.Parallel() // it takes as long as a source may hang
	var text bytes.Buffer
	r := metrics.New("", slog.New(slog.NewTextHandler(&text, nil)))
	calls := 0
	register(r, func(ctx context.Context) (state, error) {
		switch calls++; calls {
		case 1:
			return state{}, errors.New("no pool")
		case 2:
			<-ctx.Done()
			return state{}, ctx.Err()
		}
		return state{}, nil
	})
	url := serve(t, r, nil)
	for range 2 {
		got := scrape(t, url)
		if got["rpmemfs_written_bytes_total"] != nil || got["go_goroutines"] == nil {
			t.Error("want the metrics of the source to be missing, and only these")
		}
	}
	failed := scrape(t, url)["rpmemfs_snapshot_errors_total"].GetMetric()
	if len(failed) != 1 || failed[0].GetCounter().GetValue() != 2 || failed[0].GetLabel()[0].GetValue() != "test" {
		t.Errorf("errors: got %v, want 2 of test", failed)
	}
	if !strings.Contains(text.String(), "no pool") {
		t.Errorf("log: got %q", text.String())
	}
}

func TestHealth(t *testing.T) {
	var ill error
	url := serve(t, metrics.New("", nil), func(context.Context) error { return ill })
	if code, body := get(t, url+"/healthz"); code != http.StatusOK || body != "ok\n" {
		t.Errorf("got %d %q", code, body)
	}
	ill = errors.New("the pool is poisoned")
	if code, body := get(t, url+"/healthz"); code != http.StatusServiceUnavailable || !strings.Contains(body, "poisoned") {
		t.Errorf("ill: got %d %q", code, body)
	}
	if code, _ := get(t, url+"/other"); code != http.StatusNotFound {
		t.Errorf("another path: got %d, want 404", code)
	}
	if code, _ := get(t, serve(t, metrics.New("", nil), nil)+"/healthz"); code != http.StatusOK {
		t.Errorf("without a function: got %d", code)
	}
}

// A listener that fails ends Run with an error.
func TestRunFails(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := metrics.New("", nil).Run(t.Context(), l, nil); err == nil {
		t.Error("got no error of a closed listener")
	}
}
