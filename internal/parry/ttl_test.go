package parry

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestParseTTL(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]time.Duration{
		"4h": 4 * time.Hour, "2d12h": 60 * time.Hour, "1w": 168 * time.Hour, "90s": 90 * time.Second, "14400": 4 * time.Hour, "1h30m": 90 * time.Minute,
		"": 0, "0": 0, "0s": 0, "-1h": 0, "+1h": 0, "1.5h": 0, "h": 0, "4h ": 0, " 4h": 0, "4H": 0, "4h3": 0, "none": 0, "1e3": 0, "0x10": 0,
		"1ms": 0, "4294967295w": 0, "99999999999999999999h": 0, "5200w5200w": 0, "٣h": 0,
	} {
		got, err := ParseTTL(s)
		if got != want || (err == nil) != (want != 0) {
			t.Errorf("ParseTTL(%q) = %v, %v; want %v", s, got, err, want)
		}
	}
}

func TestFormatTTL_isReadBack(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		d := time.Duration(rapid.Int64Range(1, 99*365*24*3600).Draw(t, "seconds")) * time.Second
		got, err := ParseTTL(FormatTTL(d))
		if err != nil || got != d {
			t.Fatalf("%v was written as %q and read as %v, %v", d, FormatTTL(d), got, err)
		}
	})
}
