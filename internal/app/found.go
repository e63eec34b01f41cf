package app

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/hex"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/parry/parry/internal/ansible"
	"github.com/parry/parry/internal/config"
	"github.com/parry/parry/internal/parry"
)

// finder finds the infrastructure that must never be blocked, beside what the configuration lists.
type finder struct {
	lookup func(ctx context.Context, network, host string) ([]netip.Addr, error) // nil: the system's resolver

	mu    sync.Mutex
	names map[string][]netip.Addr // of the mail, channels' and database servers, as last resolved: a dead resolver must not unprotect them
}

// find lists the addresses of this host, its gateways and resolvers, the inventory's hosts, what the firewalls say of themselves, the mail,
// channels' and database servers, the trusted proxies and the callers.
func (f *finder) find(ctx context.Context, cfg *config.Config, hosts map[string]ansible.Host, told []claim, callers map[netip.Addr]string) []parry.Exemption {
	found := map[netip.Prefix]parry.Exemption{}
	put := func(a netip.Addr, why string, fleeting bool) { // what is fleeting comes last
		a = a.Unmap().WithZone("")
		if a.IsValid() && !a.IsUnspecified() && !a.IsLoopback() {
			p := netip.PrefixFrom(a, a.BitLen())
			if _, known := found[p]; !known {
				x := exemptFound(p, why)
				x.Fleeting = fleeting || a.IsLinkLocalUnicast() // an interface's own, which containers bring and take
				found[p] = x
			}
		}
	}
	add := func(a netip.Addr, why string) { put(a, why, false) }
	if addrs, err := net.InterfaceAddrs(); err == nil {
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok {
				ip, _ := netip.AddrFromSlice(n.IP)
				add(ip, "address of this host")
			}
		}
	}
	for _, a := range gateways("/proc/net/route", "/proc/net/ipv6_route") {
		add(a, "gateway of this host")
	}
	for _, a := range resolvers("/etc/resolv.conf") {
		add(a, "resolver of this host")
	}
	for _, h := range hosts {
		add(h.Addr, "inventory host "+h.Name)
	}
	for _, c := range told {
		add(c.addr, c.what+" of firewall "+c.firewall)
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	names := serverNames(cfg)
	for what, host := range names {
		if a, err := netip.ParseAddr(host); err == nil {
			add(a, what)
			delete(names, what)
		}
	}
	for what, host := range names {
		wg.Go(func() { // at once, since a dead resolver takes its time with each
			for _, a := range f.resolve(ctx, host) {
				mu.Lock()
				put(a, what, true)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	for a, token := range callers {
		put(a, "caller with the token "+token, true)
	}
	out := slices.AppendSeq(make([]parry.Exemption, 0, len(found)), maps.Values(found))
	for _, p := range cfg.TrustedProxies {
		if p.Bits() >= 8 {
			out = append(out, exemptFound(p.Prefix, "trusted proxy"))
		}
	}
	slices.SortFunc(out, func(a, b parry.Exemption) int { return a.Prefix.Compare(b.Prefix) })
	return out
}

func exemptFound(p netip.Prefix, why string) parry.Exemption {
	return parry.Exemption{ID: parry.ExemptionID("found:" + parry.FormatPrefix(p)), Prefix: p, Reason: why, Source: parry.ExemptFound, CreatedBy: "parry"}
}

// serverNames are the hosts that parry itself needs.
func serverNames(cfg *config.Config) map[string]string {
	out := map[string]string{}
	if h, _, err := net.SplitHostPort(cfg.Mail.Server); err == nil {
		out["mail server"] = h
	}
	for i := range cfg.Channels {
		if h := channelHost(&cfg.Channels[i]); h != "" {
			out["server of channel "+cfg.Channels[i].Name] = h
		}
	}
	if cfg.Database.Driver == "postgres" {
		if u, err := url.Parse(cfg.Database.DSN.Reveal()); err == nil && u.Hostname() != "" {
			out["database server"] = u.Hostname()
		} else {
			for _, kv := range strings.Fields(cfg.Database.DSN.Reveal()) {
				if h, ok := strings.CutPrefix(kv, "host="); ok && !strings.HasPrefix(h, "/") {
					out["database server"] = h
				}
			}
		}
	}
	return out
}

func (f *finder) resolve(ctx context.Context, host string) []netip.Addr {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	lookup := f.lookup
	if lookup == nil {
		lookup = net.DefaultResolver.LookupNetIP
	}
	addrs, err := lookup(ctx, "ip", host)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.names == nil {
		f.names = map[string][]netip.Addr{}
	}
	if err == nil && len(addrs) > 0 {
		f.names[host] = addrs
	}
	return f.names[host]
}

// gateways reads the kernel's routing tables: hexadecimal words in the host's byte order for IPv4 (proc(5), net/route.h), plain
// hexadecimal for IPv6.
func gateways(v4, v6 string) []netip.Addr {
	var out []netip.Addr
	for _, fields := range table(v4) {
		if len(fields) > 2 {
			if b, err := hex.DecodeString(fields[2]); err == nil && len(b) == 4 {
				var a [4]byte
				binary.NativeEndian.PutUint32(a[:], binary.BigEndian.Uint32(b))
				out = append(out, netip.AddrFrom4(a))
			}
		}
	}
	for _, fields := range table(v6) {
		if len(fields) > 4 {
			if b, err := hex.DecodeString(fields[4]); err == nil && len(b) == 16 {
				out = append(out, netip.AddrFrom16([16]byte(b)))
			}
		}
	}
	return out
}

func resolvers(path string) []netip.Addr {
	var out []netip.Addr
	for _, fields := range table(path) {
		if len(fields) > 1 && fields[0] == "nameserver" {
			if a, err := netip.ParseAddr(fields[1]); err == nil {
				out = append(out, a)
			}
		}
	}
	return out
}

// table reads the words of each line; a file that cannot be read has none.
func table(path string) [][]string {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close() //nolint:errcheck // read only
	var out [][]string
	for s := bufio.NewScanner(f); s.Scan(); {
		out = append(out, strings.Fields(s.Text()))
	}
	return out
}
