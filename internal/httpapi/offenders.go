package httpapi

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/parry"
)

const maxGrace = 365 * 24 * time.Hour

// plainLift is a word that ends live blocks and says no more. An operator's gives the configured grace, a SIEM's none.
func (s *Server) plainLift(pr *parry.Principal) parry.Lift {
	l := parry.Lift{By: pr.Token.Name, SIEM: !pr.Can(parry.RightUnblock), Grace: parry.KeepGrace}
	if g := s.o.Settings().Grace; g > 0 && !l.SIEM {
		l.Grace = g
	}
	return l
}

// lift reads an operator's word on a block. One that has ended keeps what grace it has, unless the word names another.
func (s *Server) lift(pr *parry.Principal, b *parry.Block, params *api.DeleteBlockParams) (parry.Lift, error) {
	l := s.plainLift(pr)
	l.Forget = orZero(params.Forget)
	switch g := orZero(params.Grace); {
	case params.Grace == nil:
		if !b.Live() {
			l.Grace = parry.KeepGrace
		}
	case g == "0", g == "0s":
		l.Grace = 0
	default:
		d, err := parry.ParseTTL(g)
		if err != nil {
			return l, parry.Invalid("?grace", "%s; 0 ends a grace", err)
		}
		if d > maxGrace {
			return l, parry.Invalid("?grace", "%s is beyond %s: add an exemption instead", g, parry.FormatTTL(maxGrace))
		}
		l.Grace = d
	}
	return l, nil
}

// offender presents what is known of a source's offences.
func (s *Server) offender(ctx context.Context, source netip.Prefix) (api.Offender, error) {
	now := s.o.Now()
	o, err := s.o.Store.Offender(ctx, source)
	if err != nil {
		return api.Offender{}, fmt.Errorf("read the offences: %w", err)
	}
	look := s.o.Policy.Outlook(&o, now)
	out := api.Offender{
		Source: parry.FormatPrefix(o.Source), Offences: o.Offences, Rung: look.Rung, Rungs: look.Rungs, LastAt: utc(o.LastAt), NextOffence: look.Next,
		FallsAt: utc(look.Falls),
	}
	if look.Rung == 0 {
		out.Offences, out.LastAt = 0, time.Time{} // none of them counts
	}
	if look.TTL > 0 {
		out.NextTTL = parry.FormatTTL(look.TTL)
	}
	if o.GraceUntil.After(now) {
		out.GraceUntil, out.GraceBy, out.GraceOf = utc(o.GraceUntil), o.GraceBy, parry.FormatPrefix(o.GraceOf)
	}
	return out, nil
}
