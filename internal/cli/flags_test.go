package cli

import (
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
)

func TestNearest(t *testing.T) {
	verbs := []string{"cancel", "get", "list", "receipt", "reply", "send", "wait", "watch"}
	for _, c := range []struct {
		typed string
		want  []string
	}{
		{"sned", []string{"send"}},
		{"SEND", []string{"send"}},
		{"wai", []string{"wait"}},
		{"wach", []string{"watch", "wait"}},
		{"re", []string{"receipt", "reply"}},
		{"rec", []string{"receipt"}},
		{"watct", []string{"watch", "wait"}},
		{"frobnicate", nil},
		{"", nil},
	} {
		if got := nearest(c.typed, verbs); !slices.Equal(got, c.want) {
			t.Errorf("nearest(%q) = %q, want %q", c.typed, got, c.want)
		}
	}
}

func TestDuration(t *testing.T) {
	for in, want := range map[string]time.Duration{
		"500ms": 500 * time.Millisecond, "90s": 90 * time.Second, "1h30m": 90 * time.Minute,
		"7d": 7 * 24 * time.Hour, "0.5d": 12 * time.Hour, "1us": time.Microsecond,
	} {
		var d duration
		if err := d.Set(in); err != nil || time.Duration(d) != want {
			t.Errorf("%q: %v, %v, want %v", in, time.Duration(d), err, want)
		}
	}
	for _, in := range []string{"", "0", "5", "-1s", "0s", "soon", "d", "-1d", "0d", "NaNd", "Infd", "1e9d", "99999h", "1d1d"} {
		var d duration
		if err := d.Set(in); err == nil {
			t.Errorf("%q was accepted as %v", in, time.Duration(d))
		}
	}
	if got := duration(time.Microsecond).ms(); got != 1 {
		t.Errorf("a microsecond is %d ms in the API, want 1: 0 would mean none", got)
	}
}

func TestWordsForPeople(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.FixedZone("CET", 3600))
	for _, c := range []struct{ got, want string }{
		{span(0), "-"},
		{span(0.1234), "0.123 ms"},
		{span(12.5), "12.5 ms"},
		{span(1229), "1.2 s"},
		{span(61_400), "1m1s"},
		{size(0), "0 B"},
		{size(999), "999 B"},
		{size(65536), "65.5 kB"},
		{size(43_210_000), "43.2 MB"},
		{size(2_500_000_000), "2.5 GB"},
		{clock(nil, now), "-"},
		{clock(timestamppb.New(now.UTC()), now), "12:00:00"},
		{clock(timestamppb.New(now.Add(-24*time.Hour)), now), "2026-11-20 12:00:00"},
		{stamp(timestamppb.New(now)), "2026-11-21T11:00:00.000Z"},
		{stamp(nil), ""},
		{clip("Grüße", 3), "Gr…"},
	} {
		if c.got != c.want {
			t.Errorf("got %q, want %q", c.got, c.want)
		}
	}
}
