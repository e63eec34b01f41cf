package ansible

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/apenella/go-ansible/v2/pkg/playbook"
	"golang.org/x/sys/unix"

	"github.com/parry/parry/internal/bundle"
	"github.com/parry/parry/internal/parry"
)

const (
	eventFD     = 3 // the first of a child's extra descriptors
	eventsLimit = 16 << 20
	logTail     = 4 << 10
)

var (
	//go:embed plugins/parry_events.py
	eventsPlugin []byte
	//go:embed plugins/cli.py
	cliPy []byte
)

// Options of a Runner. StateDir is required.
type Options struct {
	StateDir     string        // absolute after New; keeps runs, lanes, sockets and Ansible's home
	PlaybookBin  string        // "" is ansible-playbook on a fixed PATH
	InventoryBin string        // "" is ansible-inventory beside PlaybookBin
	Inventory    string        // the operators' inventory, a file or directory; read by LoadInventory
	KnownHosts   string        // pinned host keys; "" is StateDir/known_hosts
	KeyFile      string        // for hosts whose inventory names none; "" leaves it to ssh's own defaults
	Deadline     time.Duration // of a run; 0 is 60 s
	Grace        time.Duration // between SIGINT and SIGKILL; 0 is 2 s
	OutputLimit  int64         // bytes of a run's log; 0 is 4 MiB
	Now          func() time.Time
	Logger       *slog.Logger
}

// Runner runs playbooks. Safe for concurrent use.
type Runner struct {
	stateDir, home, plugins string
	playbookBin, invBin     string
	inventory, ssh          string
	knownHosts, keyFile     string
	deadline, grace         time.Duration
	limit                   int64
	quick                   []string // starts programs of Ansible by cli.py; empty where that cannot be
	now                     func() time.Time
	log                     *slog.Logger

	mu      sync.Mutex
	active  map[parry.RunID]bool
	masters masters
}

// New makes the directories that runs need. Close ends what Warm started.
func New(o Options) (*Runner, error) {
	if o.StateDir == "" {
		return nil, errors.New("ansible: StateDir is required")
	}
	state, err := filepath.Abs(o.StateDir)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	r := &Runner{
		stateDir: state,
		home:     filepath.Join(state, "ansible"),
		plugins:  filepath.Join(state, "ansible", "callback"),
		deadline: o.Deadline, grace: o.Grace, limit: o.OutputLimit,
		now: o.Now, log: o.Logger,
		active: map[parry.RunID]bool{},
	}
	if r.deadline <= 0 {
		r.deadline = time.Minute
	}
	if r.grace <= 0 {
		r.grace = 2 * time.Second
	}
	if r.limit <= 0 {
		r.limit = 4 << 20
	}
	if r.now == nil {
		r.now = time.Now
	}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	if err := r.setPaths(&o); err != nil {
		return nil, err
	}
	for _, d := range []string{r.plugins, r.runsDir(), r.lanesDir()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("state directory: %w", err)
		}
	}
	if err := replaceFile(filepath.Join(r.plugins, "parry_events.py"), eventsPlugin); err != nil {
		return nil, fmt.Errorf("callback plugin: %w", err)
	}
	if python := interpreter(r.playbookBin); python != "" && python == interpreter(r.invBin) {
		script := filepath.Join(r.home, "cli.py")
		if err := replaceFile(script, cliPy); err != nil {
			return nil, fmt.Errorf("start script: %w", err)
		}
		r.quick = []string{python, "-I", script}
	}
	return r, r.masters.init(r)
}

func (r *Runner) setPaths(o *Options) (err error) {
	if r.playbookBin, err = lookPath(o.PlaybookBin, "ansible-playbook"); err != nil {
		return err
	}
	beside := o.InventoryBin
	if beside == "" && o.PlaybookBin != "" {
		beside = filepath.Join(filepath.Dir(r.playbookBin), "ansible-inventory")
	}
	if r.invBin, err = lookPath(beside, "ansible-inventory"); err != nil {
		return err
	}
	if r.ssh, err = lookPath("", "ssh"); err != nil {
		return err
	}
	for _, p := range []struct {
		what, path, or string
		to             *string
	}{
		{"state directory", r.stateDir, "", &r.stateDir},
		{"inventory", o.Inventory, "", &r.inventory},
		{"known_hosts", o.KnownHosts, filepath.Join(r.stateDir, "known_hosts"), &r.knownHosts},
		{"private key file", o.KeyFile, "", &r.keyFile},
	} {
		if p.path == "" {
			*p.to = p.or
			continue
		}
		if *p.to, err = filepath.Abs(p.path); err != nil {
			return fmt.Errorf("%s: %w", p.what, err)
		}
		if err := checkPath(p.what, *p.to); err != nil {
			return err
		}
	}
	return nil
}

var pythonRE = regexp.MustCompile(`^#! ?(/\S*/python[0-9.]*)( -\S+)?\n`)

// interpreter is the Python that a script names in its first line, empty when it is no Python script or does not name it by path.
func interpreter(script string) string {
	f, err := os.Open(script)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	line := make([]byte, 256)
	n, _ := io.ReadFull(f, line)
	if m := pythonRE.FindSubmatch(line[:n]); m != nil {
		return string(m[1])
	}
	return ""
}

// lookPath finds a program by its path, or by its name on the fixed PATH: parry's own environment does not decide.
func lookPath(path, name string) (string, error) {
	if path == "" {
		for _, d := range filepath.SplitList(fixedPath) {
			if p, err := exec.LookPath(filepath.Join(d, name)); err == nil {
				return p, nil
			}
		}
		return "", fmt.Errorf("%s is not installed: not found in %s", name, fixedPath)
	}
	p, err := exec.LookPath(path)
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	return filepath.Abs(p)
}

// Close ends the warm ssh masters and waits for them. Runs are ended by their contexts.
func (r *Runner) Close() error { return r.masters.close() }

var runIDRE = regexp.MustCompile(`^r-[0-9A-Z]{26}$`)

// Run runs one playbook against one host and returns when its last process is gone: at the latest the grace and a moment after ctx's end
// or the deadline. An error means that the run could not be begun for a reason of parry's own, such as a full disk or a wrong variable;
// all that has to do with the playbook or the firewall is in the Outcome.
func (r *Runner) Run(ctx context.Context, s Spec) (*Outcome, error) {
	if !runIDRE.MatchString(string(s.RunID)) {
		return nil, fmt.Errorf("run id %q", s.RunID)
	}
	if s.Kind == "" || s.Bundle.Dir == "" || s.Desired == nil && s.Kind != parry.RunVerify {
		return nil, errors.New("run without a kind, a bundle or a desired file")
	}
	r.setActive(s.RunID, true)
	defer r.setActive(s.RunID, false)
	dir := r.runDir(s.RunID)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("run directory: %w", err)
	}
	started := r.now()
	o, err := r.run(ctx, &s, dir)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("run %s on %s: %w", s.RunID, s.Host.Name, err), os.RemoveAll(dir))
	}
	o.Dir = dir
	if err := r.writeResult(dir, &s, o, started); err != nil { // the outcome itself is not lost
		r.log.Warn("cannot keep the result of a run", "run_id", s.RunID, "firewall", s.Host.Name, "err", err)
	}
	return o, nil
}

func (r *Runner) run(ctx context.Context, s *Spec, dir string) (*Outcome, error) {
	if s.Deadline <= 0 {
		s.Deadline = r.deadline
	}
	if err := s.Host.check(); err != nil {
		return &Outcome{State: parry.RunFailed, Failure: parry.FailInventory, Message: err.Error()}, nil
	}
	if s.Host.KeyFile == "" {
		s.Host.KeyFile = r.keyFile
	}
	held, err := s.Bundle.Hold()
	if err != nil {
		return &Outcome{State: parry.RunFailed, Failure: parry.FailBundle, Message: err.Error()}, nil
	}
	defer func() { _ = held.Close() }()

	control, warm := r.masters.control(s.Host)
	defer func() { _ = os.RemoveAll(filepath.Join(dir, "tmp")) }()
	if err := r.writeInputs(s, dir, control); err != nil {
		return nil, err
	}
	o, err := r.play(ctx, s, dir, held)
	if err != nil {
		return nil, err
	}
	o.Warm = warm
	r.masters.learn(s.Host.Name, o)
	return o, nil
}

// files are those of a run's directory that the playbooks get by a variable.
var files = map[string]string{"parry_desired_file": "desired.txt", "parry_exempt_file": "exempt.txt", "parry_loaded_file": "loaded.txt"}

const maxLoaded = 64 << 20

// takeLoaded reads what a verify wrote and takes it away: the outcome has it, and a directory kept for weeks need not.
func takeLoaded(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxLoaded+1))
	if err == nil && len(b) > maxLoaded {
		err = fmt.Errorf("the loaded file is over %d MiB", maxLoaded>>20)
	}
	return b, errors.Join(err, os.Remove(path))
}

// writeInputs makes all that ansible-playbook reads besides the bundle.
func (r *Runner) writeInputs(s *Spec, dir string, control []string) error {
	vars := map[string]any{}
	maps.Copy(vars, s.Vars)
	vars["parry_contract"], vars["parry_run_id"] = bundle.Contract, string(s.RunID)
	for name, file := range files {
		delete(vars, name)
		path := filepath.Join(dir, file)
		switch {
		case name == "parry_loaded_file" && s.Kind == parry.RunVerify && s.Bundle.Manifest.Loaded:
			vars[name] = path // for the play to write
		case name == "parry_desired_file" && s.Desired != nil && s.Kind != parry.RunVerify:
			vars[name] = path
			if err := writeNew(path, s.Desired); err != nil {
				return err
			}
		case name == "parry_exempt_file" && s.Exempt != nil && s.Kind != parry.RunVerify && s.Bundle.Manifest.Exemptions:
			vars[name] = path
			if err := writeNew(path, s.Exempt); err != nil {
				return err
			}
		}
	}
	b, err := extraVars(vars, &s.Bundle.Manifest)
	if err != nil {
		return err
	}
	if err := writeNew(filepath.Join(dir, "vars.json"), b); err != nil {
		return err
	}
	if b, err = inventoryJSON(&s.Host); err != nil {
		return err
	}
	if err := writeNew(filepath.Join(dir, "inventory.json"), b); err != nil {
		return err
	}
	return r.prepare(dir, "yaml", r.sshOptions(control...), s.Deadline)
}

// play runs ansible-playbook in a prepared directory.
func (r *Runner) play(ctx context.Context, s *Spec, dir string, held *os.File) (*Outcome, error) {
	out, err := newRecord(dir, r.limit)
	if err != nil {
		return nil, err
	}
	defer out.close()
	er, ew, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = er.Close() }()
	defer func() { _ = ew.Close() }()

	w := &witness{host: s.Host.Name}
	seen := make(chan struct{})
	go func() {
		defer close(seen)
		readEvents(er, func(e *Event, line []byte) {
			w.see(e)
			out.events.put(line)
		})
	}()

	marker := "PARRY_RUN=" + string(s.RunID)
	l := &launcher{
		dir: dir, grace: r.grace, marker: marker,
		env:    append(r.environ(dir, marker), fmt.Sprintf("PARRY_EVENT_FD=%d", eventFD)),
		before: r.quick,
		files:  []*os.File{ew, held},
	}
	if s.Lock != nil {
		l.files = append(l.files, s.Lock)
	}
	opts := &playbook.AnsiblePlaybookOptions{Inventory: filepath.Join(dir, "inventory.json"), Check: s.Check || s.Kind == parry.RunCheck, Diff: s.Diff || s.Kind == parry.RunCheck}
	if err := opts.AddExtraVarsFile(filepath.Join(dir, "vars.json")); err != nil {
		return nil, err
	}
	book := "apply.yml"
	if s.Kind == parry.RunVerify {
		book = "verify.yml"
	}
	cmd := playbook.NewAnsiblePlaybookCmd(playbook.WithBinary(r.playbookBin),
		playbook.WithPlaybooks(filepath.Join(s.Bundle.Dir, book)), playbook.WithPlaybookOptions(opts))

	revision, _ := s.Vars["parry_revision"].(int64)

	stderr := newCappedLog(io.Discard, 0)
	deadline, cancel := context.WithTimeout(ctx, s.Deadline)
	defer cancel()
	t0 := time.Now()
	err = l.run(deadline, cmd, out.log, io.MultiWriter(out.log, stderr))
	wall := time.Since(t0)
	_ = ew.Close()
	_ = er.SetReadDeadline(time.Now().Add(drainTime))
	<-seen
	if err != nil {
		return nil, err
	}

	o := &Outcome{Wall: wall, CPU: l.process.cpu, MaxRSS: l.process.maxRSS, Command: ByHand(r.playbookBin, dir, s.Bundle.Dir, s.Kind, parry.Revision(revision), s.Check)}
	w.judge(o, l.process, string(stderr.last(tailSize)), countLines(s.Desired))
	if l.process.ended {
		o.Failure, o.Message = parry.FailTimeout, fmt.Sprintf("ended at its deadline of %s", s.Deadline)
		if ctx.Err() != nil {
			o.Failure, o.Message = parry.FailCancelled, "ended from outside before it was done"
		}
	}
	if o.Loaded, err = takeLoaded(filepath.Join(dir, files["parry_loaded_file"])); err != nil {
		o.State, o.Failure, o.Message, o.Loaded = parry.RunFailed, parry.FailNoProof, "what the play says is loaded cannot be read: "+err.Error(), nil
	}
	o.LogTail = strings.ToValidUTF8(string(out.log.last(logTail)), "�")
	if err := out.finish(); err != nil { // what was decided is not undone by a full disk
		r.log.Warn("cannot keep the log of a run", "run_id", s.RunID, "firewall", s.Host.Name, "err", err)
	}
	return o, nil
}

// Syntax has Ansible parse a bundle's playbooks: YAML errors and missing modules are found, wrong filters are not.
func (r *Runner) Syntax(ctx context.Context, dir string) error {
	work, err := os.MkdirTemp(r.home, "syntax-")
	if err != nil {
		return fmt.Errorf("syntax check: %w", err)
	}
	defer func() { _ = os.RemoveAll(work) }()
	if err := r.prepare(work, "yaml", r.sshOptions("ControlMaster=no", "ControlPath=none"), r.deadline); err != nil {
		return fmt.Errorf("syntax check: %w", err)
	}
	inventory := filepath.Join(work, "inventory.json")
	if err := writeNew(inventory, []byte(`{"all":{"hosts":{"syntax":{}}}}`)); err != nil {
		return fmt.Errorf("syntax check: %w", err)
	}
	var books []string
	for _, b := range bundle.Playbooks {
		books = append(books, filepath.Join(dir, b))
	}
	cmd := playbook.NewAnsiblePlaybookCmd(playbook.WithBinary(r.playbookBin), playbook.WithPlaybooks(books...),
		playbook.WithPlaybookOptions(&playbook.AnsiblePlaybookOptions{Inventory: inventory, SyntaxCheck: true}))
	out := newCappedLog(io.Discard, 0)
	ctx, cancel := context.WithTimeout(ctx, r.deadline)
	defer cancel()
	p, err := r.aside(ctx, work, cmd, io.Discard, out)
	switch {
	case err != nil:
		return fmt.Errorf("syntax check: %w", err)
	case p.ended:
		return fmt.Errorf("syntax check: %w", ctx.Err())
	case p.rc != 0:
		return fmt.Errorf("syntax check: %s", strings.ReplaceAll(ansibleError(string(out.last(tailSize)), p.rc), dir+"/", ""))
	}
	return nil
}

// aside runs one of Ansible's programs that is no run against a firewall, in a prepared directory.
func (r *Runner) aside(ctx context.Context, dir string, cmd interface {
	Command() ([]string, error)
	String() string
}, stdout, stderr io.Writer) (*process, error) {
	marker := "PARRY_RUN=" + filepath.Base(dir)
	l := &launcher{dir: dir, grace: r.grace, marker: marker, env: r.environ(dir, marker), before: r.quick}
	if err := l.run(ctx, cmd, stdout, stderr); err != nil {
		return nil, err
	}
	return l.process, nil
}

func (r *Runner) setActive(id parry.RunID, on bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if on {
		r.active[id] = true
	} else {
		delete(r.active, id)
	}
}

// resultFile is result.json.
type resultFile struct {
	RunID    parry.RunID     `json:"run_id"`
	Firewall string          `json:"firewall"`
	Address  string          `json:"address"`
	Kind     parry.RunKind   `json:"kind"`
	Check    bool            `json:"check,omitempty"`
	Bundle   parry.BundleRef `json:"bundle"`
	Started  time.Time       `json:"started"`
	Ended    time.Time       `json:"ended"`
	*Outcome
}

func (r *Runner) writeResult(dir string, s *Spec, o *Outcome, started time.Time) error {
	b, err := json.MarshalIndent(resultFile{s.RunID, s.Host.Name, s.Host.address(), s.Kind, s.Check, s.Bundle.BundleRef, started, r.now(), o}, "", "  ")
	if err != nil {
		return err
	}
	return replaceFile(filepath.Join(dir, "result.json"), append(b, '\n'))
}

// replaceFile writes a file as a whole, if it differs.
func replaceFile(path string, b []byte) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, b) {
		return nil
	}
	_ = os.Remove(path + ".new")
	if err := writeNew(path+".new", b); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
