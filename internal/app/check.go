package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/parry/parry/internal/ansible"
	"github.com/parry/parry/internal/bundle"
	"github.com/parry/parry/internal/config"
	"github.com/parry/parry/internal/parry"
)

// Grade is how bad a finding is.
type Grade string

const (
	OK   Grade = "ok"
	Warn Grade = "warn" // works, but not as well as it should
	Fail Grade = "fail" // blocks will not be kept, enforced or told
)

// Finding is one line of `parry check`.
type Finding struct {
	Level  Grade  `json:"level"`
	Check  string `json:"check"`
	Detail string `json:"detail"` // may hold hostile text of a firewall
	Mend   string `json:"mend,omitempty"`
}

// CheckOptions say what to look over.
type CheckOptions struct {
	Config   *config.Config
	Offline  bool // leave out what needs the network
	SendMail bool // send a test mail instead of only trying the server
	Now      func() time.Time
}

// checker gathers findings; its methods may be called from several goroutines.
type checker struct {
	CheckOptions
	mu    sync.Mutex
	found []Finding
}

func (c *checker) add(level Grade, check, mend, format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.found = append(c.found, Finding{level, check, fmt.Sprintf(format, args...), mend})
}

// Check looks over everything that parry needs. It changes nothing: not the state directory, not the database, not the firewalls, and it
// may be run beside a parry that serves.
func Check(ctx context.Context, o CheckOptions) []Finding {
	if o.Now == nil {
		o.Now = time.Now
	}
	c := &checker{CheckOptions: o}
	c.stateDir()
	c.certificate()
	c.database(ctx)
	c.firewalls(ctx)
	c.mail(ctx)
	c.channels(ctx)
	return sorted(c.found)
}

const lowDisk = 1 << 30

func (c *checker) stateDir() {
	const name = "state_dir"
	dir := c.Config.StateDir
	st, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c.add(OK, name, "", "%s will be made at the first start", dir)
		return
	case err != nil:
		c.add(Fail, name, "let parry's user read it", "%v", err)
		return
	case !st.IsDir():
		c.add(Fail, name, "set state_dir to a directory", "%s is no directory", dir)
		return
	case st.Mode().Perm()&0o077 != 0:
		c.add(Warn, name, "chmod 700 "+dir, "%s is open to others (mode %04o)", dir, st.Mode().Perm())
	case unix.Access(dir, unix.W_OK) != nil:
		c.add(Fail, name, "run this as parry's user, or chown the directory", "%s cannot be written", dir)
	default:
		who := "no parry is running on it"
		if pid := running(dir); pid > 0 {
			who = "held by process " + strconv.Itoa(pid)
		}
		c.add(OK, name, "", "%s, %s", dir, who)
	}
	var fsinfo unix.Statfs_t
	if unix.Statfs(dir, &fsinfo) == nil {
		if free := fsinfo.Bavail * uint64(fsinfo.Bsize); free < lowDisk {
			c.add(Warn, "disk", "make room: a full disk refuses every block", "%d MiB are free for %s", free>>20, dir)
		}
	}
}

func (c *checker) certificate() {
	const name = "certificate"
	cfg := c.Config
	if cfg.Listen == "" {
		return
	}
	if cfg.TLS.CertFile == "" {
		path := filepath.Join(cfg.StateDir, "tls", "ca.crt")
		if _, err := os.Stat(path); err != nil {
			c.add(OK, name, "", "parry will make its own at the first start")
			return
		}
		c.add(OK, name, "", "parry's own; clients need %s", path)
		return
	}
	src, err := openCert(cfg, c.Now, slog.New(slog.DiscardHandler))
	if err != nil {
		c.add(Fail, name, "correct tls.cert_file and tls.key_file", "%v", err)
		return
	}
	end := src.Expires()
	switch left := end.Sub(c.Now()); {
	case left <= 0:
		c.add(Fail, name, "renew it", "it ended on %s", end.Format(time.DateOnly))
	case left < 14*24*time.Hour:
		c.add(Warn, name, "renew it; parry reads the new one by itself", "it ends on %s", end.Format(time.DateOnly))
	default:
		c.add(OK, name, "", "until %s", end.Format(time.DateOnly))
	}
}

// ownerOf is the uid that owns a directory: of the state directory it is parry's user, whoever checks. 0 when nobody knows.
func ownerOf(dir string) int {
	var st unix.Stat_t
	if unix.Stat(dir, &st) != nil {
		return 0
	}
	return int(st.Uid)
}

// readable tells what root reads here, but parry's user may not when it serves.
func (c *checker) readable(name, root string) {
	uid := ownerOf(c.Config.StateDir)
	if os.Geteuid() != 0 || uid == 0 {
		return
	}
	var groups []string
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		groups, _ = u.GroupIds()
	}
	_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err != nil || unix.Stat(path, &st) != nil {
			return nil // what is missing is told elsewhere
		}
		want := uint32(0o4)
		if d.IsDir() {
			want = 0o5
		}
		switch {
		case int(st.Uid) == uid:
			want <<= 6
		case slices.Contains(groups, strconv.Itoa(int(st.Gid))):
			want <<= 3
		}
		if st.Mode&want != want {
			c.add(Fail, name, "give it to parry's user, or, unless it is a secret: chmod a+rX "+path, "parry's user (uid %d) may not read %s", uid, path)
		}
		return nil
	})
}

func (c *checker) firewalls(ctx context.Context) {
	cfg := c.Config
	if len(cfg.Firewalls) == 0 {
		c.add(Warn, "firewalls", "list them under firewalls: in the configuration", "none is configured: every block is refused")
		return
	}
	// The runs' directories go to a place of their own, so that a parry that serves is not disturbed.
	tmp, err := os.MkdirTemp("", "parry-check-")
	if err != nil {
		c.add(Fail, "ansible", "make room in "+os.TempDir(), "%v", err)
		return
	}
	defer os.RemoveAll(tmp) //nolint:errcheck // temporary
	runner, err := newRunner(cfg, tmp, c.Now, slog.New(slog.DiscardHandler))
	if err != nil {
		c.add(Fail, "ansible", "install ansible-core, or set ansible.playbook_bin", "%v", err)
		return
	}
	defer runner.Close() //nolint:errcheck // nothing was kept warm
	library, err := bundle.New(bundle.Options{Root: cfg.Bundles, StateDir: tmp, Check: runner.Syntax, Owner: ownerOf(cfg.StateDir)})
	if err != nil {
		c.add(Fail, "bundles", "set bundles to the directory that holds them", "%v", err)
		return
	}
	hosts, err := runner.LoadInventory(ctx)
	if err != nil {
		c.add(Fail, "inventory", "correct it; try: ansible-inventory -i "+cfg.Ansible.Inventory+" --list", "%v", err)
	} else {
		c.add(OK, "inventory", "", "%s, %d hosts", cfg.Ansible.Inventory, len(hosts))
	}
	c.readable("inventory", cfg.Ansible.Inventory)
	c.readable("host keys", cfg.Ansible.KnownHosts)
	fleet := cfg.Fleet(func(string) string { return "" })
	bundles := map[string]bundle.Bundle{}
	for _, fw := range fleet.Firewalls {
		if _, done := bundles[fw.Bundle]; !done {
			b, err := library.Refresh(ctx, fw.Bundle)
			if bundles[fw.Bundle] = b; err != nil {
				c.add(Fail, "bundle "+fw.Bundle, "correct it: nothing is applied with it", "%v", err)
			} else {
				c.add(OK, "bundle "+fw.Bundle, "", "version %s, digest %.12s", b.Version, b.Digest)
			}
		}
	}
	var wg sync.WaitGroup
	slots := make(chan struct{}, 4)
	for i := range fleet.Firewalls {
		fw := &fleet.Firewalls[i]
		b := bundles[fw.Bundle]
		if b.Dir != "" {
			if err := b.Manifest.CheckSettings(fw.Settings); err != nil {
				c.add(Fail, fw.Name, "correct firewalls.settings", "%v", err)
				continue
			}
		}
		h, listed := hosts[fw.Name]
		if h.KeyFile != "" {
			c.readable(fw.Name, h.KeyFile)
		}
		switch {
		case hosts == nil || b.Dir == "":
			continue
		case !listed:
			c.add(Fail, fw.Name, "add it to the inventory, or correct its name", "it is not in the inventory")
			continue
		case h.Err != nil:
			c.add(Fail, fw.Name, "correct the inventory", "%v", h.Err)
			continue
		case c.Offline:
			c.add(OK, fw.Name, "", "listed; not asked")
			continue
		}
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			c.hostKey(ctx, fw.Name, h)
			c.firewall(ctx, runner, fw, h, b)
		})
	}
	wg.Wait()
}

func (c *checker) hostKey(ctx context.Context, name string, h ansible.Host) {
	at := h.Addr.String()
	if h.Port != 22 {
		at = fmt.Sprintf("[%s]:%d", h.Addr, h.Port)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := exec.CommandContext(ctx, "ssh-keygen", "-F", at, "-f", c.Config.Ansible.KnownHosts).Run(); err != nil {
		c.add(Fail, name, fmt.Sprintf("ssh-keyscan -p %d %s >> %s, and compare the fingerprint with the one on the firewall's console",
			h.Port, h.Addr, c.Config.Ansible.KnownHosts), "the host key of %s is not pinned", at)
	}
	if h.KeyFile != "" {
		if st, err := os.Stat(h.KeyFile); err != nil {
			c.add(Fail, name, "correct the inventory or ansible.private_key_file", "the ssh key: %v", err)
		} else if st.Mode().Perm()&0o077 != 0 {
			c.add(Fail, name, "chmod 600 "+h.KeyFile, "ssh refuses the key %s: it is open to others", h.KeyFile)
		}
	}
}

// firewall asks one what it holds, by the bundle's own verify.yml in check mode: that proves ssh, the host key, the login, the rights to
// read the ruleset, and that the bundle knows the kind of firewall.
func (c *checker) firewall(ctx context.Context, r *ansible.Runner, fw *parry.Firewall, h ansible.Host, b bundle.Bundle) {
	vars := maps.Clone(fw.Settings)
	if vars == nil {
		vars = map[string]any{}
	}
	maps.Copy(vars, map[string]any{
		"parry_contract": bundle.Contract, "parry_controller": "check", "parry_epoch": int64(0), "parry_revision": int64(0),
		"parry_max_rules": fw.MaxRules, "parry_adopt": false,
	})
	out, err := r.Run(ctx, ansible.Spec{RunID: parry.NewRunID(c.Now()), Host: h, Bundle: b, Kind: parry.RunVerify, Vars: vars, Check: true})
	switch {
	case err != nil:
		c.add(Fail, fw.Name, "", "%v", err)
		return
	case out.Failure != "" || out.Proof == nil:
		c.add(Fail, fw.Name, parry.Hint(out.Failure), "%s: %s", out.Failure, out.Message)
		return
	}
	p := out.Proof
	detail := fmt.Sprintf("answers in %s: %d entries in %d rules", out.Wall.Round(10*time.Millisecond), p.Count, p.Rules)
	if p.Capacity > 0 {
		detail += fmt.Sprintf(", room for %d", p.Capacity)
	}
	c.add(OK, fw.Name, "", "%s", detail)
	if need := max(c.Config.Blocks.MaxBlocks, int64(p.Count)); p.Capacity > 0 && int64(p.Capacity) < need {
		c.add(Warn, fw.Name, "raise the firewall's table limit (pfSense: System > Advanced > Firewall, Maximum Table Entries), or lower blocks.max_blocks",
			"it has room for %d entries, and max_blocks allows %d", p.Capacity, need)
	}
	if n := number(out.Details["old_rules"]); n > 0 {
		c.add(Warn, fw.Name, "remove them when parry's blocks are in force (docs/OPERATIONS.md, moving over)",
			"%d rules are left over from the practice before parry (tracker 123456789)", n)
	}
}

func number(v any) int64 {
	switch n := v.(type) {
	case json.Number:
		i, _ := n.Int64()
		return i
	case string:
		i, _ := strconv.ParseInt(n, 10, 64)
		return i
	}
	return 0
}

// sorted puts findings of one check together, in the order in which the checks began.
func sorted(found []Finding) []Finding {
	order := map[string]int{}
	for _, f := range found {
		key, _, _ := strings.Cut(f.Check, " ")
		if _, ok := order[key]; !ok {
			order[key] = len(order)
		}
	}
	slices.SortStableFunc(found, func(a, b Finding) int {
		ka, _, _ := strings.Cut(a.Check, " ")
		kb, _, _ := strings.Cut(b.Check, " ")
		return order[ka] - order[kb]
	})
	return found
}
