package lists_test

import (
	"strings"
	"testing"

	"github.com/parry/parry/internal/lists"
	"github.com/parry/parry/internal/parry"
)

func TestCanonical(t *testing.T) {
	t.Parallel()
	const (
		ip, cidr, user, domain, asn = parry.ListIP, parry.ListCIDR, parry.ListUser, parry.ListDomain, parry.ListASN
		wrong                       = ""
	)
	for _, c := range []struct {
		t        parry.ListType
		in, want string
	}{
		{ip, "203.0.113.7", "203.0.113.7"},
		{ip, "203.0.113.7/32", "203.0.113.7"},
		{ip, "::ffff:203.0.113.7", "203.0.113.7"},
		{ip, "2001:DB8:0::7", "2001:db8::7"},
		{ip, "203.0.113.0/24", wrong},
		{ip, "fe80::1%eth0", wrong},
		{ip, "203.0.113.007", wrong},
		{ip, "host.example.net", wrong},
		{ip, " 203.0.113.7", wrong},
		{ip, "", wrong},

		{cidr, "203.0.113.7", "203.0.113.7"},
		{cidr, "203.0.113.7/24", "203.0.113.0/24"},
		{cidr, "::ffff:203.0.113.0/120", "203.0.113.0/24"},
		{cidr, "::ffff:0:0/95", wrong},
		{cidr, "2001:db8::7/32", "2001:db8::/32"},
		{cidr, "10.0.0.0/8", "10.0.0.0/8"},
		{cidr, "fc00::/7", "fc00::/7"},
		{cidr, "0.0.0.0/0", wrong},
		{cidr, "::/0", wrong},
		{cidr, "203.0.113.0/33", wrong},
		{cidr, "203.0.113.0/", wrong},

		{user, " Anna ", "anna"},
		{user, `DOMAIN\Anna`, `domain\anna`},
		{user, "Anna@Example.net", "anna@example.net"},
		{user, "Ju\u0308rgen", "jürgen"},
		{user, "JÜRGEN", "jürgen"},
		{user, "a\nb", wrong},
		{user, "a\x00", wrong},
		{user, "a\u202eb", wrong},
		{user, "\xff", wrong},
		{user, "  ", wrong},
		{user, strings.Repeat("x", 256), strings.Repeat("x", 256)},
		{user, strings.Repeat("x", 257), wrong},

		{domain, "Login.Example.NET.", "login.example.net"},
		{domain, "bücher.example", "xn--bcher-kva.example"},
		{domain, "xn--bcher-kva.example", "xn--bcher-kva.example"},
		{domain, "_dmarc.example.net", "_dmarc.example.net"},
		{domain, "localhost", "localhost"},
		{domain, "https://example.net/x", wrong},
		{domain, "example.net:443", wrong},
		{domain, "example.net/x", wrong},
		{domain, "*.example.net", wrong},
		{domain, "203.0.113.7", wrong},
		{domain, "[2001:db8::1]", wrong},
		{domain, "a..example", wrong},
		{domain, "-a.example", wrong},
		{domain, "a b.example", wrong},
		{domain, ".", wrong},
		{domain, "", wrong},
		{domain, strings.Repeat("a", 64) + ".example", wrong},

		{asn, "AS64500", "AS64500"},
		{asn, "as064500", "AS64500"},
		{asn, "64500", "AS64500"},
		{asn, "4294967295", "AS4294967295"},
		{asn, "4294967296", wrong},
		{asn, "AS0", wrong},
		{asn, "+5", wrong},
		{asn, "1.10", wrong},
		{asn, "AS", wrong},
		{asn, "", wrong},
	} {
		got, err := lists.Canonical(c.t, c.in)
		switch {
		case c.want == wrong && err == nil:
			t.Errorf("%s %q: taken as %q", c.t, c.in, got)
		case c.want != wrong && (err != nil || got != c.want):
			t.Errorf("%s %q: got %q, %v; want %q", c.t, c.in, got, err, c.want)
		case c.want != wrong:
			if again, err := lists.Canonical(c.t, got); err != nil || again != got {
				t.Errorf("%s %q: its canonical form %q becomes %q, %v", c.t, c.in, got, again, err)
			}
		}
	}
}

// FuzzCanonical holds what everything else relies on: a canonical key is its own canonical form, and is safe to store.
func FuzzCanonical(f *testing.F) {
	for _, s := range []string{"203.0.113.7/24", "Anna", "bücher.example.", "AS64500", "::ffff:1.2.3.4/100", "İ", "ǅ.ß"} {
		for i := range parry.ListTypes {
			f.Add(i, s)
		}
	}
	f.Fuzz(func(t *testing.T, i int, s string) {
		lt := parry.ListTypes[uint(i)%uint(len(parry.ListTypes))]
		key, err := lists.Canonical(lt, s)
		if err != nil {
			return
		}
		if again, err := lists.Canonical(lt, key); err != nil || again != key {
			t.Fatalf("%s %q: %q becomes %q, %v", lt, s, key, again, err)
		}
		if key == "" || len(key) > 256 || strings.ContainsAny(key, "\x00\n\r") || strings.ToValidUTF8(key, "") != key {
			t.Fatalf("%s %q: %q is not safe", lt, s, key)
		}
	})
}
