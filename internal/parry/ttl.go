package parry

import (
	"errors"
	"strconv"
	"time"
)

// maxTTL keeps sums of times and lifetimes far from overflow.
const maxTTL = 100 * 365 * 24 * time.Hour

var ttlUnits = []struct {
	name byte
	d    time.Duration
}{{'w', 7 * 24 * time.Hour}, {'d', 24 * time.Hour}, {'h', time.Hour}, {'m', time.Minute}, {'s', time.Second}}

// ParseTTL reads a lifetime as callers write it: numbers with the units w, d, h, m and s ("2d12h"), or a bare number of seconds. It is
// positive and below 100 years.
func ParseTTL(s string) (time.Duration, error) {
	errForm := errors.New("write a duration such as 90s, 30m, 4h, 2d12h or 1w, or a number of seconds")
	if n, err := strconv.ParseUint(s, 10, 32); err == nil {
		s = strconv.FormatUint(n, 10) + "s"
	}
	var sum time.Duration
	for i := 0; i < len(s); {
		j := i
		for j < len(s) && s[j] >= '0' && s[j] <= '9' {
			j++
		}
		n, err := strconv.ParseUint(s[i:j], 10, 32)
		if err != nil || j == len(s) {
			return 0, errForm
		}
		var unit time.Duration
		for _, u := range ttlUnits {
			if u.name == s[j] {
				unit = u.d
			}
		}
		switch {
		case unit == 0:
			return 0, errForm
		case n > uint64(maxTTL/unit), sum+time.Duration(n)*unit > maxTTL:
			return 0, errors.New("that is over 100 years")
		}
		sum += time.Duration(n) * unit
		i = j + 1
	}
	if sum <= 0 {
		return 0, errForm
	}
	return sum, nil
}

// FormatTTL writes a duration so that [ParseTTL] reads it, to the second: "2d12h".
func FormatTTL(d time.Duration) string {
	d = d.Truncate(time.Second)
	var b []byte
	for _, u := range ttlUnits[1:] {
		if n := d / u.d; n > 0 {
			b = append(strconv.AppendInt(b, int64(n), 10), u.name)
			d -= n * u.d
		}
	}
	if len(b) == 0 {
		return "0s"
	}
	return string(b)
}
