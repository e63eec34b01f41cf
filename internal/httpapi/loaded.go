package httpapi

import (
	"context"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/parry"
)

// maxExplained is how many loaded entries an explanation shows.
const maxExplained = 100

// ListFirewallEntries tells what a firewall held when it was last read.
func (s *Server) ListFirewallEntries(c *gin.Context, name api.FirewallName, params api.ListFirewallEntriesParams) {
	ctx := c.Request.Context()
	if _, err := s.o.Store.FirewallState(ctx, name); err != nil {
		s.fail(c, err)
		return
	}
	l, err := s.o.Store.Loaded(ctx, name)
	if err != nil {
		s.fail(c, err)
		return
	}
	limit, from := 100, 0
	if params.Limit != nil {
		limit = *params.Limit
	}
	if params.Cursor != nil {
		if from, err = strconv.Atoi(*params.Cursor); err != nil || from < 0 {
			s.fail(c, parry.Invalid("?cursor", "it is not one that a page gave"))
			return
		}
	}
	out := api.LoadedList{At: utc(l.At), RunID: string(l.RunID), Total: l.Count, Items: []api.LoadedEntry{}}
	n := 0
	take := func(e *parry.LoadedEntry) bool {
		if n++; n > from+limit {
			out.Next = strconv.Itoa(from + limit)
			return false
		}
		if n > from {
			out.Items = append(out.Items, presentLoaded(e))
		}
		return true
	}
	if params.Address != nil {
		p, err := parsePrefix(*params.Address)
		if err != nil {
			s.fail(c, parry.Invalid("?address", "%s", err))
			return
		}
		for e := range parry.Covering(string(l.Text), p) {
			if !take(&e) {
				break
			}
		}
		s.answer(c, http.StatusOK, out)
		return
	}
	for e, err := range parry.EachLoaded(string(l.Text)) {
		if err != nil {
			s.fail(c, err)
			return
		}
		if !take(&e) {
			break
		}
	}
	s.answer(c, http.StatusOK, out)
}

// loadedFor finds what firewalls hold of an address, with what it dropped.
func (s *Server) loadedFor(ctx context.Context, p netip.Prefix) ([]api.LoadedEntry, error) {
	var out []api.LoadedEntry
	for _, fw := range s.o.Fleet().Firewalls {
		l, err := s.o.Store.Loaded(ctx, fw.Name)
		if err != nil {
			return nil, err
		}
		for e := range parry.Covering(string(l.Text), p) {
			if len(out) == maxExplained {
				return out, nil
			}
			shown := presentLoaded(&e)
			shown.Firewall, shown.At = fw.Name, utc(l.At)
			out = append(out, shown)
		}
	}
	return out, nil
}

func presentLoaded(e *parry.LoadedEntry) api.LoadedEntry {
	out := api.LoadedEntry{Source: parry.FormatPrefix(e.Source), Protocol: string(e.Protocol), Port: int(e.Port), Interface: e.Interface}
	if e.Destination.IsValid() {
		out.Destination = parry.FormatPrefix(e.Destination)
	}
	if e.Expires > 0 {
		out.ExpiresAt = time.Unix(e.Expires, 0).UTC()
	}
	if e.Packets >= 0 {
		out.Packets = &e.Packets
	}
	if e.Bytes >= 0 {
		out.Bytes = &e.Bytes
	}
	return out
}

func presentDrift(d *parry.Drift) api.Drift {
	return api.Drift{
		Since: d.Since.UTC(), RunID: string(d.RunID), Missing: d.Missing, MissingN: d.MissingN, Extra: d.Extra, ExtraN: d.ExtraN, Exempt: d.Exempt, Unlisted: !d.Listed,
	}
}

// unread is a line of /readyz about a firewall whose reality is not known although nothing is known to be wrong with it.
func unread(st *parry.FirewallState) string {
	when := "was never read"
	if !st.ProvedAt.IsZero() {
		when = "was read last at " + st.ProvedAt.UTC().Format(time.RFC3339)
	}
	return st.Name + " " + when + ": what it holds is unknown; parry firewalls verify " + st.Name
}
