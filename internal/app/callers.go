package app

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/parry/parry/internal/parry"
)

const (
	callersName = "callers.json"
	callerAge   = 7 * 24 * time.Hour // a caller that was not seen for so long is none any more
	maxCallers  = 1024
)

// callers are the addresses from which valid tokens were used of late: the SIEMs, mostly. A spoofed alert must not make parry cut off the
// sensor that would see the next one. They are kept in a file, so that a restart does not forget those that are silent. A caller goes when
// its token is revoked, so that a stolen one does not shelter its thief.
type callers struct {
	path string
	now  func() time.Time

	mu      sync.Mutex
	seen    map[netip.Addr]caller
	changed bool          // since the last save
	fresh   chan struct{} // a new address came; buffered 1
}

type caller struct {
	At    time.Time     `json:"at"` // to the hour
	ID    parry.TokenID `json:"token_id"`
	Token string        `json:"token"`
}

func openCallers(stateDir string, now func() time.Time) (*callers, error) {
	c := &callers{path: filepath.Join(stateDir, callersName), now: now, seen: map[netip.Addr]caller{}, fresh: make(chan struct{}, 1)}
	b, err := os.ReadFile(c.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return c, nil
	case err != nil:
		return nil, fmt.Errorf("read the known callers: %w", err)
	}
	if err := json.Unmarshal(b, &c.seen); err != nil { // written whole or not at all; anything else is learned again
		c.seen = map[netip.Addr]caller{}
	}
	return c, nil
}

// note records a use of a token. It is called for every request.
func (c *callers) note(p *parry.Principal) {
	if !p.Remote.IsValid() || p.Remote.IsLoopback() {
		return
	}
	now := c.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	was, known := c.seen[p.Remote]
	if known && now.Sub(was.At) < time.Hour && was.ID == p.Token.ID || !known && len(c.seen) >= maxCallers {
		return
	}
	c.seen[p.Remote] = caller{At: now, ID: p.Token.ID, Token: p.Token.Name}
	c.changed = true
	if !known {
		select {
		case c.fresh <- struct{}{}:
		default:
		}
	}
}

// list gives those of tokens that are valid, forgets the others, and saves the file when something changed.
func (c *callers) list(valid func(parry.TokenID) bool) (map[netip.Addr]string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	out := make(map[netip.Addr]string, len(c.seen))
	for a, s := range c.seen {
		if now.Sub(s.At) > callerAge || !valid(s.ID) {
			delete(c.seen, a)
			c.changed = true
			continue
		}
		out[a] = s.Token
	}
	if !c.changed {
		return out, nil
	}
	b, err := json.Marshal(c.seen)
	if err == nil {
		err = os.WriteFile(c.path+".new", b, 0o600)
	}
	if err == nil {
		err = os.Rename(c.path+".new", c.path)
	}
	if err != nil {
		return out, fmt.Errorf("keep the known callers: %w", err)
	}
	c.changed = false
	return out, nil
}
