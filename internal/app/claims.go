package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/policy"
)

// What a firewall may have exempted by its own word. One that was taken over must neither open a way for whom it likes nor lift what stands.
const (
	maxClaims    = 256 // addresses of one firewall
	maxOverruled = 4   // standing blocks that what it newly names may end
)

// claim is an address of which a firewall says that it is its own, a gateway or a resolver.
type claim struct {
	addr           netip.Addr
	what, firewall string
}

// claims lists what a firewall says of itself, own addresses first.
func claims(firewall string, f parry.FirewallFacts) []claim {
	var out []claim
	seen := map[netip.Addr]bool{}
	for _, kind := range []struct {
		what  string
		addrs []netip.Addr
	}{{"address", f.Addresses}, {"gateway", f.Gateways}, {"resolver", f.Resolvers}} {
		for _, a := range kind.addrs {
			if a = a.Unmap(); !seen[a] {
				seen[a] = true
				out = append(out, claim{a, kind.what, firewall})
			}
		}
	}
	return out
}

// claimJudge decides which claims become exemptions. The zero value is ready.
type claimJudge struct {
	mu      sync.Mutex
	refused map[claim]string // why; they stay refused for as long as they are made
}

// blocks is what the judge asks of the store.
type blocks interface {
	Blocks(ctx context.Context, f parry.BlockFilter) (parry.Page[parry.Block], error)
}

// judge gives the claims that count. Those of one firewall beyond maxClaims do not, nor do those that would end more than maxOverruled blocks.
func (j *claimJudge) judge(ctx context.Context, b blocks, p *policy.Policy, facts map[string]parry.FirewallFacts, now time.Time, log *slog.Logger) ([]claim, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	var out []claim
	refused := map[claim]string{}
	for _, name := range slices.Sorted(maps.Keys(facts)) {
		all := claims(name, facts[name])
		var against []claim // those that standing blocks drop
		ended := 0
		for i, c := range all {
			_, exempt := p.Overlapping(netip.PrefixFrom(c.addr, c.addr.BitLen()), now)
			switch why := j.refused[c]; {
			case i >= maxClaims:
				refused[c] = fmt.Sprintf("it names more than %d addresses", maxClaims)
			case exempt: // by somebody else's word, or by this one for long
				out = append(out, c)
			case why != "":
				refused[c] = why
			default:
				n, err := standing(ctx, b, c.addr)
				if err != nil {
					return nil, err
				}
				if ended += n; n > 0 {
					against = append(against, c)
				} else {
					out = append(out, c)
				}
			}
		}
		if ended <= maxOverruled {
			out = append(out, against...)
			continue
		}
		for _, c := range against {
			refused[c] = fmt.Sprintf("%d standing blocks drop what it now calls its own", ended)
		}
	}
	for c, why := range refused {
		if j.refused[c] == "" {
			log.Warn("a firewall's word makes no exemption", "firewall", c.firewall, "address", c.addr.String(), "as", c.what, "why", why)
		}
	}
	j.refused = refused
	return out, nil
}

// standing counts the live blocks that drop an address, as far as it matters.
func standing(ctx context.Context, b blocks, a netip.Addr) (int, error) {
	live := true
	found, err := b.Blocks(ctx, parry.BlockFilter{Covering: netip.PrefixFrom(a, a.BitLen()), Live: &live, Limit: maxOverruled + 1})
	return len(found.Items), err
}

// check is a line of /readyz: claims that were refused and wait for an operator's word.
func (j *claimJudge) check(context.Context) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	whys := map[string][]string{} // of a firewall: the addresses of each reason
	for c, why := range j.refused {
		key := c.firewall + ": " + why
		whys[key] = append(whys[key], c.addr.String())
	}
	var errs []error
	for _, key := range slices.Sorted(maps.Keys(whys)) {
		all := whys[key]
		slices.Sort(all)
		more := ""
		if n := len(all) - 5; n > 0 {
			all, more = all[:5], fmt.Sprintf(" and %d more", n)
		}
		errs = append(errs, fmt.Errorf("%s, so these are not exempt: %s%s. Where the firewall is right, parry exempt add them", key, strings.Join(all, ", "), more))
	}
	return errors.Join(errs...)
}
