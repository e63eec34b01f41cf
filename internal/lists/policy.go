package lists

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/parry/parry/internal/parry"
)

// Policy is what a list means for block requests whose source is on it. Only the configuration gives it.
type Policy struct {
	TTL     time.Duration // the block stands for so long at least
	Instead string        // nothing is blocked: the source is put on this list
}

// Configured is a list of the configuration.
type Configured struct {
	parry.List
	Blocks Policy
}

// policies are the lists that have one, and the list that blocked sources are put on.
type policies struct {
	lists   []listPolicy
	blocked string
}

type listPolicy struct {
	list string
	Policy
}

func (p *policies) of(name string) Policy {
	for _, x := range p.lists {
		if x.list == name {
			return x.Policy
		}
	}
	return Policy{}
}

// Configure takes up the lists of the configuration; blocked names the one that the source of each accepted block is put on, empty for none. It is
// for the start and each reload; on an error the old stays.
func (l *Lists) Configure(ctx context.Context, all []Configured, blocked string) error {
	p := &policies{blocked: blocked}
	list := make([]parry.List, len(all))
	for i := range all {
		list[i] = all[i].List
		if all[i].Blocks != (Policy{}) {
			p.lists = append(p.lists, listPolicy{all[i].Name, all[i].Blocks})
		}
	}
	slices.SortFunc(list, func(a, b parry.List) int { return cmp.Compare(a.Name, b.Name) })
	if err := l.o.Store.SyncLists(ctx, list); err != nil {
		return err
	}
	l.policies.Store(p)
	return l.refresh(ctx, 0)
}

// Verdict is what the lists say to a block of a source.
type Verdict struct {
	TTL     time.Duration // at least so long; 0: nothing is said
	Instead string        // put it on this list and block nothing
	List    string        // that says so
	Entry   *parry.ListEntry
}

// Judge asks the lists that have a policy. "Instead" goes before any TTL, and of several TTLs the longest counts.
func (l *Lists) Judge(source netip.Prefix) (v Verdict) {
	p := l.policies.Load()
	if len(p.lists) == 0 {
		return v
	}
	set, now := *l.set.Load(), l.o.Now()
	for i := range p.lists {
		x := set[p.lists[i].list]
		if x == nil {
			continue
		}
		e := x.on(source, now)
		switch {
		case e == nil:
		case p.lists[i].Instead != "":
			return Verdict{Instead: p.lists[i].Instead, List: p.lists[i].list, Entry: e}
		case p.lists[i].TTL > v.TTL:
			v = Verdict{TTL: p.lists[i].TTL, List: p.lists[i].list, Entry: e}
		}
	}
	return v
}

// OfBlock is what is to be put on lists with a block of the source: nothing unless that is configured. A prefix goes on a list of prefixes only.
// put is all but its key.
func (l *Lists) OfBlock(source netip.Prefix, put parry.ListPut) []parry.ListAsk {
	name := l.policies.Load().blocked
	if name == "" {
		return nil
	}
	if ok := l.fit(name, source, &put); !ok {
		return nil
	}
	return []parry.ListAsk{{List: name, ListPut: put}}
}

// fit fills in the key; ok is false where the list takes no such source.
func (l *Lists) fit(name string, source netip.Prefix, put *parry.ListPut) (ok bool) {
	x := (*l.set.Load())[name]
	if x == nil {
		return false
	}
	t := x.definition().Type
	key, err := Canonical(t, parry.FormatPrefix(source))
	put.Key = key
	return t.IsNetwork() && err == nil
}

// PutSource puts a source on a list of addresses or prefixes.
func (l *Lists) PutSource(ctx context.Context, name string, source netip.Prefix, put parry.ListPut) error {
	if !l.fit(name, source, &put) {
		return parry.Errorf(parry.KindRefused, "the list %s takes no %s", quote(name), parry.FormatPrefix(source))
	}
	_, err := l.Put(ctx, name, []parry.ListPut{put})
	return err
}
