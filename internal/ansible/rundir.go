package ansible

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/parry/parry/internal/parry"
)

// A run's directory, StateDir/runs/RUNID, mode 0700: inventory.json, vars.json, desired.txt, ansible.cfg, log.txt, events.jsonl and, when
// the run has ended, result.json. With it the run can be repeated by hand: Outcome.Command.
func (r *Runner) runDir(id parry.RunID) string { return filepath.Join(r.runsDir(), string(id)) }

// ByHand is a run's command for a POSIX shell: the same playbooks, inventory, variables and settings, in the environment that the run had but for
// the caller's own home. It tells the firewall that the revision which this run brought is known; one that was brought to a later revision since
// refuses it. Checked, it changes nothing and shows what it would change, whatever the firewall was brought to since. The directories' paths
// are plain: see checkPath.
func ByHand(playbook, runDir, bundleDir string, kind parry.RunKind, revision parry.Revision, check bool) string {
	book, flags, more := "apply.yml", "", fmt.Sprintf(` -e '{"parry_sent_revision": %d}'`, revision)
	switch {
	case kind == parry.RunVerify:
		book, more = "verify.yml", ""
	case check, kind == parry.RunCheck:
		flags, more = " --check --diff", ` -e '{"parry_adopt": true}'`
	}
	return fmt.Sprintf(`env -i PATH=%s LANG=C.UTF-8 HOME="$HOME" ANSIBLE_CONFIG=%s %s -i %s%s %s -e @%s%s`, fixedPath, filepath.Join(runDir, "ansible.cfg"),
		quote(playbook), filepath.Join(runDir, "inventory.json"), flags, filepath.Join(bundleDir, book), filepath.Join(runDir, "vars.json"), more)
}

// quote writes a word for a POSIX shell.
func quote(s string) string {
	if pathRE.MatchString("/" + s) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// Playbook is the ansible-playbook that runs, by its path.
func (r *Runner) Playbook() string { return r.playbookBin }

func (r *Runner) runsDir() string { return filepath.Join(r.stateDir, "runs") }

// record is what a run writes down while it is on.
type record struct {
	files  [2]*os.File
	log    *cappedLog
	events *eventLog
}

func newRecord(dir string, limit int64) (*record, error) {
	var rec record
	for i, name := range []string{"log.txt", "events.jsonl"} {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			rec.close()
			return nil, err
		}
		rec.files[i] = f
	}
	rec.log = newCappedLog(rec.files[0], limit)
	rec.events = &eventLog{w: rec.files[1], left: eventsLimit}
	return &rec, nil
}

func (rec *record) finish() error { return errors.Join(rec.log.finish(), rec.events.finish()) }

func (rec *record) close() {
	for _, f := range rec.files {
		if f != nil {
			_ = f.Close()
		}
	}
}

// Log opens a run's log, of a run that is on too; fs.ErrNotExist when it has none (any more). Hostile text.
func (r *Runner) Log(id parry.RunID) (*os.File, error) { return r.open(id, "log.txt") }

// Events reads a run's events so far; fs.ErrNotExist when it has none (any more).
func (r *Runner) Events(id parry.RunID) ([]Event, error) {
	f, err := r.open(id, "events.jsonl")
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	var all []Event
	readEvents(f, func(e *Event, _ []byte) { all = append(all, *e) })
	return all, nil
}

func (r *Runner) open(id parry.RunID, name string) (*os.File, error) {
	if !runIDRE.MatchString(string(id)) {
		return nil, fmt.Errorf("run id %q: %w", id, fs.ErrNotExist)
	}
	return os.Open(filepath.Join(r.runDir(id), name))
}

// Prune removes the directories of ended runs that are older than keepAge, and beyond the newest keepCount of each firewall, as the store does
// with their rows; zero of either removes nothing for that reason. Directories of runs that are on stay; one without a result (its parry was
// killed) counts as ended when it is a day old.
func (r *Runner) Prune(keepAge time.Duration, keepCount int) error {
	entries, err := os.ReadDir(r.runsDir())
	if err != nil {
		return fmt.Errorf("prune runs: %w", err)
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(b.Name(), a.Name()) }) // newest first: ids sort by time
	var errs []error
	kept := map[string]int{} // by firewall
	for _, e := range entries {
		if !runIDRE.MatchString(e.Name()) {
			continue
		}
		if !r.ended(e) {
			continue
		}
		info, err := e.Info()
		if err != nil {
			continue
		}
		dir := filepath.Join(r.runsDir(), e.Name())
		keep := keepAge <= 0 || r.now().Sub(info.ModTime()) <= keepAge
		if keep && keepCount > 0 {
			fw := firewallOf(dir)
			kept[fw]++
			keep = kept[fw] <= keepCount
		}
		if !keep {
			errs = append(errs, os.RemoveAll(dir))
		}
	}
	return errors.Join(errs...)
}

// firewallOf is whose run a directory is of, by its result; empty when there is none. It reads no further than to the name, near the beginning.
func firewallOf(dir string) string {
	f, err := os.Open(filepath.Join(dir, "result.json"))
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	d := json.NewDecoder(f)
	for {
		switch t, err := d.Token(); {
		case err != nil:
			return ""
		case t == "firewall":
			t, _ = d.Token()
			name, _ := t.(string)
			return name
		}
	}
}

func (r *Runner) ended(e fs.DirEntry) bool {
	r.mu.Lock()
	on := r.active[parry.RunID(e.Name())]
	r.mu.Unlock()
	if on {
		return false
	}
	if _, err := os.Stat(filepath.Join(r.runsDir(), e.Name(), "result.json")); err == nil {
		return true
	}
	info, err := e.Info()
	return err == nil && r.now().Sub(info.ModTime()) > 24*time.Hour
}
