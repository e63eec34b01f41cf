package playbooks_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/parry/parry/internal/bundle"
	"github.com/parry/parry/internal/testenv"
)

// firewall is a lab firewall and the Ansible host's view of it: an inventory, and the bundle's playbooks run by real Ansible.
type firewall struct {
	*testenv.Lab
	t   *testing.T
	dir string
	run int

	claims *bundle.Manifest
}

// answer is what the play's last task answered, with the exit status of ansible-playbook.
type answer struct {
	Status      int
	Changed     bool
	Failed      bool // by the exit status: the result itself does not say
	Unreachable bool
	Msg         string
	Output      string // what ansible-playbook printed
	Parry       struct {
		SHA256       string
		Count        int
		Added        int
		Removed      int
		Rejected     []reject
		Rules        int
		Capacity     int
		Epoch        int
		Revision     int
		Controller   string
		Held         bool
		MachineID    string `json:"machine_id"`
		BootID       string `json:"boot_id"`
		RunID        string `json:"run_id"`
		StatesKilled int    `json:"states_killed"`
		OldRules     int    `json:"old_rules"`
		Refreshed    int
		ExemptSHA256 string `json:"exempt_sha256"`
		ExemptCount  int    `json:"exempt_count"`
		FlowsKilled  int    `json:"flows_killed"`
		Facts        struct {
			Addresses, Gateways, Resolvers []string
			Forwards                       []forward
		}
		Failure string
	}
}

// forward is a port forward as verify tells it.
type forward struct {
	Destination, Protocol, To string
	Port                      int
	PortEnd                   int `json:"port_end"`
	ToPort                    int `json:"to_port"`
}

type reject struct {
	Line int
	Code string
}

type vars map[string]any

func start(t *testing.T, version string) *firewall {
	t.Helper()
	if _, err := exec.LookPath("ansible-playbook"); err != nil {
		t.Skip("ansible-playbook is not installed")
	}
	return manage(t, testenv.StartLab(t, testenv.LabOptions{Name: "fw-a", Version: version}))
}

func manage(t *testing.T, lab *testenv.Lab) *firewall {
	t.Helper()
	manifest, err := os.ReadFile(filepath.Join(lab.Bundle, "bundle.yml"))
	if err != nil {
		t.Fatal(err)
	}
	f := &firewall{Lab: lab, t: t, dir: t.TempDir()}
	if f.claims, err = bundle.ParseManifest(manifest); err != nil {
		t.Fatal(err)
	}
	f.write("inventory.json", f.json(map[string]any{"all": map[string]any{"hosts": map[string]any{f.Name: map[string]any{
		"ansible_host": f.Addr.String(), "ansible_port": f.Port, "ansible_user": f.User, "ansible_ssh_private_key_file": f.KeyFile,
		"ansible_ssh_common_args": "-o StrictHostKeyChecking=yes -o UserKnownHostsFile=" + f.KnownHosts,
	}}}}))
	return f
}

var ansible testenv.Ansible

func TestMain(m *testing.M) {
	code := m.Run()
	if err := ansible.Close(); err != nil {
		fmt.Fprintln(os.Stderr, "ansible:", err)
		code = 1
	}
	os.Exit(code)
}

// play runs one of the bundle's playbooks with extra variables.
func (f *firewall) play(book string, v vars, args ...string) answer {
	f.t.Helper()
	f.run++
	results := filepath.Join(f.dir, fmt.Sprint("results", f.run))
	argv := append([]string{"-i", filepath.Join(f.dir, "inventory.json"), filepath.Join(f.Bundle, book)}, args...)
	if v != nil {
		argv = append(argv, "-e", "@"+f.write(fmt.Sprint("vars", f.run, ".json"), f.json(v)))
	}
	output := results + ".out"
	status, err := ansible.Play(f.t.Context(), argv, map[string]string{
		"ANSIBLE_CALLBACKS_ENABLED": "tree", "ANSIBLE_CALLBACK_TREE_DIR": results, "ANSIBLE_INVENTORY_ENABLED": "yaml", "ANSIBLE_NOCOLOR": "1",
		"ANSIBLE_PIPELINING":           "1", // as parry has it
		"ANSIBLE_SSH_CONTROL_PATH_DIR": filepath.Join(f.dir, "cp"), "ANSIBLE_SSH_ARGS": "-o ControlMaster=no",
	}, output)
	if err != nil {
		f.t.Fatal(err)
	}
	out, err := os.ReadFile(output)
	if err != nil {
		f.t.Fatal(err)
	}
	a := answer{Status: status, Output: string(out)}
	b, err := os.ReadFile(filepath.Join(results, f.Name))
	if err != nil {
		f.t.Fatalf("%s answered nothing: %v\n%s", book, err, out)
	}
	if err := json.Unmarshal(b, &a); err != nil {
		f.t.Fatalf("%s: %v in %s", book, err, b)
	}
	a.Failed, a.Unreachable = a.Status == 2, a.Status == 4
	f.t.Logf("%s: %s", book, a.Msg)
	return a
}

// apply converges to the entries, each "source destination protocol port interface"; the file is sorted as parry sends it.
func (f *firewall) apply(entries []string, v vars, args ...string) answer {
	f.t.Helper()
	lines := slices.Sorted(slices.Values(entries))
	for i := range lines {
		lines[i] += " 1893456000\n"
	}
	return f.applyFile(strings.Join(lines, ""), v, args...)
}

func (f *firewall) applyFile(text string, v vars, args ...string) answer {
	f.t.Helper()
	all := vars{"parry_desired_file": f.write(fmt.Sprint("desired", f.run), text), "parry_controller": "test", "parry_run_id": fmt.Sprint("r-", f.run)}
	for name, value := range v {
		all[name] = value
	}
	return f.play("apply.yml", all, args...)
}

// mustApply is apply where a failure ends the test.
func (f *firewall) mustApply(entries []string, v vars, args ...string) answer {
	f.t.Helper()
	a := f.apply(entries, v, args...)
	if a.Failed || a.Status != 0 {
		f.t.Fatalf("apply failed: %s %s", a.Parry.Failure, a.Msg)
	}
	return a
}

// holdLock takes the firewall's lock as a run would, until /tmp/holder is killed or for ten minutes.
func (f *firewall) holdLock(path string) {
	f.t.Helper()
	f.SSH("(flock -o 9 && exec sleep 600) 9>" + path + " >/dev/null 2>&1 & echo $! >/tmp/holder; until ! flock -n " + path + " true; do sleep 0.01; done")
}

// loaded runs verify and returns its answer and the file that it wrote.
func (f *firewall) loaded() (answer, string) {
	f.t.Helper()
	path := filepath.Join(f.dir, fmt.Sprint("loaded", f.run))
	a := f.play("verify.yml", vars{"parry_loaded_file": path})
	b, err := os.ReadFile(path)
	if err != nil {
		f.t.Fatalf("verify wrote no loaded file: %v: %s", err, a.Msg)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		f.t.Errorf("the loaded file has mode %v (%v)", info.Mode(), err)
	}
	return a, string(b)
}

// inForce is verify's answer, with the lines of the loaded file where the bundle writes one.
func (f *firewall) inForce() (answer, []string) {
	f.t.Helper()
	if !f.claims.Loaded {
		return f.play("verify.yml", nil), nil
	}
	a, text := f.loaded()
	return a, slices.Collect(strings.Lines(text))
}

// needs skips the rest of a test that is about something which the bundle does not claim.
func (f *firewall) needs(what string, claimed bool) {
	f.t.Helper()
	if !claimed {
		f.t.Skipf("bundle.yml of %s does not claim %s", f.claims.Name, what)
	}
}

// wantLoaded holds a loaded file to its form: the entries, sorted, each with three columns that are dashes or whole numbers.
func (f *firewall) wantLoaded(text string, entries ...string) {
	f.t.Helper()
	want := slices.Sorted(slices.Values(entries))
	got := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if !strings.HasSuffix(text, "\n") || !slices.EqualFunc(got, want, func(line, entry string) bool {
		more, ok := strings.CutPrefix(line, entry+" ")
		return ok && regexp.MustCompile(`^(\d+|-) (\d+|-) (\d+|-)$`).MatchString(more)
	}) {
		f.t.Errorf("loaded:\n%s\nwant, each with three columns more:\n%s", text, strings.Join(want, "\n"))
	}
}

func (f *firewall) wantProof(a answer, entries ...string) {
	f.t.Helper()
	if got, want := a.Parry.SHA256, proof(entries); got != want || a.Parry.Count != len(entries) {
		f.t.Errorf("proof %s over %d entries, want %s over %d", got, a.Parry.Count, want, len(entries))
	}
}

func (f *firewall) wantFailure(a answer, code string) {
	f.t.Helper()
	if !a.Failed || a.Parry.Failure != code {
		f.t.Errorf("got failure %q (failed %t, exit status %d: %s), want %q", a.Parry.Failure, a.Failed, a.Status, a.Msg, code)
	}
}

func wantRejects(t *testing.T, a answer, want ...reject) {
	t.Helper()
	if !slices.Equal(a.Parry.Rejected, want) {
		t.Errorf("rejected %v, want %v", a.Parry.Rejected, want)
	}
}

// entries that pf holds in parry's tables, whatever the rules say.
func (f *firewall) tableEntries() []string {
	f.t.Helper()
	var all []string
	for name, entries := range f.Tables() {
		if strings.HasPrefix(name, "parry_") && name != "parry_exempt" {
			all = append(all, entries...)
		}
	}
	slices.Sort(all)
	return slices.DeleteFunc(all, func(e string) bool { return e == "255.255.255.255" || e == "ff00::" })
}

// ourRules are parry's rules as pf has them loaded.
func (f *firewall) ourRules() []string {
	f.t.Helper()
	return slices.DeleteFunc(strings.Split(f.Rules(), "\n"), func(r string) bool { return !strings.Contains(r, "<parry_") })
}

// structure is config.xml without its revision, which every save changes.
func (f *firewall) structure() string {
	f.t.Helper()
	return regexp.MustCompile(`(?s)<revision>.*?</revision>`).ReplaceAllString(f.Config(), "")
}

func (f *firewall) write(name, text string) string {
	f.t.Helper()
	path := filepath.Join(f.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
	return path
}

func (f *firewall) json(v any) string {
	f.t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		f.t.Fatal(err)
	}
	return string(b)
}

// proof is the hash that the contract names: over the sorted lines of five columns.
func proof(entries []string) string {
	h := sha256.New()
	for _, e := range slices.Sorted(slices.Values(entries)) {
		fmt.Fprintf(h, "%s\n", e)
	}
	return hex.EncodeToString(h.Sum(nil))
}
