package reconcile

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strconv"
	"strings"

	"github.com/parry/parry/internal/bundle"
	"github.com/parry/parry/internal/nat"
	"github.com/parry/parry/internal/parry"
)

// Reject codes of the renderer's own; the others are contract 1's.
const (
	rejectInexpressible = "inexpressible"     // bundle.yml says that the kind of firewall has no such match
	rejectExempt        = "exempt"            // an exemption overlaps it
	rejectInterface     = "unknown_interface" // no interface is named, and the firewall has no default
	rejectExpired       = "expired"           // by the firewall's clock; parry's says otherwise, else it is none
	rejectForwards      = "too_many_forwards" // its destination is forwarded to more inside addresses than may stand for a block
)

// anyInterface, as a firewall's interface or as what one of its names stands for, is every interface; a bundle may reject it.
const anyInterface = "any"

// line is one line of the desired file.
type line struct {
	key    string // the hashed part, without line end
	expire int64
	first  parry.BlockID   // the block that asks for it
	more   []parry.BlockID // others that ask for the same
	covers bool            // entries of other blocks were left out for it
}

func (l *line) blocks() []parry.BlockID { return append([]parry.BlockID{l.first}, l.more...) }

// rendering is what a firewall should hold at a revision.
type rendering struct {
	revision parry.Revision
	lines    []line // sorted by key, unique
	sum      string // hex SHA-256 over the keys, each followed by a line end
	blocks   int    // that the firewall is meant for, those that it cannot express included
	rejects  map[parry.BlockID]string
	ends     map[parry.BlockID]int64 // as of then, of the blocks that have lines or are covered; nil where the firewall keeps none
}

// renderer makes a firewall's entries of blocks.
type renderer struct {
	firewall *parry.Firewall
	manifest *bundle.Manifest
	nat      *nat.Table               // nil: destinations are what they are
	noCover  map[parry.BlockID]string // blocks that the firewall rejected: their entries may not stand for others
}

// resolve appends what this firewall understands of the match: itself, or what stands for it behind the firewall's port forwards. With a
// reject code it appends nothing.
func (r *renderer) resolve(out []parry.Match, m parry.Match) ([]parry.Match, string) {
	if r.nat == nil || !m.Destination.IsValid() && m.Port == 0 {
		to, code := r.resolveOne(m)
		if code != "" {
			return out, code
		}
		return append(out, to), ""
	}
	all, err := r.nat.Translate(m)
	if err != nil {
		return out, rejectForwards
	}
	n := len(out)
	for _, m := range all {
		to, code := r.resolveOne(m)
		if code != "" {
			return out[:n], code
		}
		out = append(out, to)
	}
	return out, ""
}

func (r *renderer) resolveOne(m parry.Match) (parry.Match, string) {
	if err := r.manifest.Expresses(m); err != nil {
		return m, rejectInexpressible
	}
	if !r.manifest.Interfaces {
		return m, ""
	}
	name := cmp.Or(m.Interface, r.firewall.Interface)
	if own, ok := r.firewall.Interfaces[name]; ok {
		name = own
	}
	switch name {
	case "":
		return m, rejectInterface
	case anyInterface:
		m.Interface = ""
		return m, ""
	}
	m.Interface = strings.ToLower(name)
	return m, ""
}

// render sorts, dedupes and thins out; blocks may come in any order. It takes O(n log n) time.
func (r *renderer) render(rev parry.Revision, blocks []standing) *rendering {
	out := &rendering{revision: rev, blocks: len(blocks), rejects: map[parry.BlockID]string{}}
	type item struct { // small, since sorting moves it
		key string
		i   int // of the match
	}
	items := make([]item, 0, len(blocks))
	ends := make([]int, 0, len(blocks))
	matches := make([]parry.Match, 0, len(blocks))
	of := make([]int, 0, len(blocks)) // the block of each match
	arena := make([]byte, 0, 48*len(blocks))
	if r.manifest.Timeouts {
		out.ends = make(map[parry.BlockID]int64, len(blocks))
	}
	for i := range blocks {
		var code string
		if matches, code = r.resolve(matches, blocks[i].Match); code != "" {
			out.rejects[blocks[i].id] = code
			continue
		}
		if out.ends != nil {
			out.ends[blocks[i].id] = blocks[i].expires
		}
		for k := len(of); k < len(matches); k++ {
			arena = parry.Entry{Match: matches[k]}.AppendKey(arena)
			items, ends, of = append(items, item{i: k}), append(ends, len(arena)), append(of, i)
		}
	}
	text, from := string(arena), 0 // one allocation that all keys share
	for i, end := range ends {
		items[i].key, from = text[from:end], end
	}
	slices.SortFunc(items, func(a, b item) int {
		if c := strings.Compare(a.key, b.key); c != 0 {
			return c
		}
		return strings.Compare(string(blocks[of[a.i]].id), string(blocks[of[b.i]].id))
	})

	entries := make([]parry.Entry, 0, len(items))
	lines := make([]line, 0, len(items))
	for _, it := range items {
		expires := int64(0)
		b := &blocks[of[it.i]]
		id := b.id
		if r.manifest.Timeouts {
			expires = b.expires
		}
		if n := len(lines); n > 0 && lines[n-1].key == it.key {
			l := &lines[n-1]
			l.more = append(l.more, id)
			if l.expire != 0 && (expires == 0 || expires > l.expire) {
				l.expire, entries[n-1].Expires = expires, expires
			}
			continue
		}
		lines = append(lines, line{key: it.key, expire: expires, first: id})
		entries = append(entries, parry.Entry{Match: matches[it.i], Expires: expires})
	}

	by := newCoverage(entries, func(i, by int) bool {
		if len(r.noCover) > 0 && r.refused(&lines[by]) {
			return false
		}
		// Where the firewall itself ends entries, a wider one that ends earlier may not stand for a narrower one.
		return entries[by].Expires == 0 || entries[i].Expires != 0 && entries[i].Expires <= entries[by].Expires
	}).covered()
	n := 0
	for i := range lines {
		if by[i] >= 0 {
			lines[by[i]].covers = true
		}
	}
	for i := range lines {
		if by[i] < 0 {
			lines[n] = lines[i]
			n++
		}
	}
	out.lines = lines[:n]
	out.sum = out.sumWithout(nil)
	return out
}

// refused tells whether the firewall rejected the line last time.
func (r *renderer) refused(l *line) bool {
	for _, id := range l.blocks() {
		if _, ok := r.noCover[id]; ok {
			return true
		}
	}
	return false
}

// sumWithout is the sum over the lines less some, given by index.
func (r *rendering) sumWithout(skip map[int]bool) string {
	h := sha256.New()
	buf := make([]byte, 0, 32<<10)
	for i := range r.lines {
		if skip[i] {
			continue
		}
		if buf = append(append(buf, r.lines[i].key...), '\n'); len(buf) > 31<<10 {
			h.Write(buf)
			buf = buf[:0]
		}
	}
	h.Write(buf)
	return hex.EncodeToString(h.Sum(nil))
}

// file is the desired file's content.
func (r *rendering) file() []byte {
	n := 0
	for i := range r.lines {
		n += len(r.lines[i].key) + 12
	}
	b := make([]byte, 0, n)
	for i := range r.lines {
		b = appendLine(b, r.lines[i].key, r.lines[i].expire)
	}
	return b
}

// missing returns the keys of old, in order, that the rendering has no line for. Both are sorted.
func (r *rendering) missing(old []byte) []string {
	var out []string
	i := 0
	for len(old) > 0 {
		var k []byte
		k, old, _ = bytes.Cut(old, []byte{'\n'})
		for i < len(r.lines) && r.lines[i].key < string(k) {
			i++
		}
		if i == len(r.lines) || r.lines[i].key != string(k) {
			out = append(out, string(k))
		}
	}
	return out
}

// fresh returns the keys, in order, of lines that old has not. Both are sorted.
func (r *rendering) fresh(old []byte) []string {
	var out []string
	var k []byte
	for i := range r.lines {
		for len(old) > 0 && string(k) < r.lines[i].key {
			k, old, _ = bytes.Cut(old, []byte{'\n'})
		}
		if string(k) != r.lines[i].key {
			out = append(out, r.lines[i].key)
		}
	}
	return out
}

func appendLine(b []byte, key string, expire int64) []byte {
	b = append(append(b, key...), ' ')
	if expire == 0 {
		b = append(b, '-')
	} else {
		b = strconv.AppendInt(b, expire, 10)
	}
	return append(b, '\n')
}
