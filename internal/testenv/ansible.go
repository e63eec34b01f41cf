package testenv

import (
	"bufio"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
)

//go:embed ansible.py
var ansibleServer string

// Ansible plays playbooks as ansible-playbook does, with its own code, in forks of one process that has it loaded: of a short play the loading is
// more than half. What a test says of the program ansible-playbook, its start and its end, it must ask of that.
//
// Options of Ansible that are not a plugin's are those of the environment that the first play began with.
type Ansible struct {
	once   sync.Once
	err    error
	dir    string
	server *exec.Cmd
	stdin  io.Closer
}

// Play runs ansible-playbook with the arguments, and with more environment. Its output goes to the file. It answers the exit status.
func (a *Ansible) Play(ctx context.Context, args []string, env map[string]string, output string) (int, error) {
	a.once.Do(func() { a.err = a.start(env) })
	if a.err != nil {
		return 0, fmt.Errorf("load ansible: %w", a.err)
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", filepath.Join(a.dir, "s"))
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	if err := json.NewEncoder(conn).Encode(map[string]any{"args": args, "env": env, "output": output}); err != nil {
		return 0, err
	}
	var status int
	if _, err := fmt.Fscanln(conn, &status); err != nil {
		return 0, fmt.Errorf("ansible ended without a word: %w", err)
	}
	return status, nil
}

func (a *Ansible) start(env map[string]string) error {
	program, err := exec.LookPath("ansible-playbook")
	if err != nil {
		return err
	}
	text, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	line, _, _ := strings.Cut(string(text), "\n")
	python, ok := strings.CutPrefix(line, "#!")
	if !ok || !strings.Contains(python, "python") {
		return fmt.Errorf("%s is no program in Python, but begins with %q", program, line)
	}
	if a.dir, err = os.MkdirTemp("", "ansible"); err != nil {
		return err
	}
	a.server = exec.Command(strings.TrimSpace(python), "-c", ansibleServer, filepath.Join(a.dir, "s"))
	a.server.Env = append(os.Environ(), "ANSIBLE_LOCAL_TEMP="+filepath.Join(a.dir, "tmp"))
	for k, v := range env {
		a.server.Env = append(a.server.Env, k+"="+v)
	}
	a.server.Stderr = os.Stderr
	if a.stdin, err = a.server.StdinPipe(); err != nil {
		return err
	}
	out, err := a.server.StdoutPipe()
	if err != nil {
		return err
	}
	if err := a.server.Start(); err != nil {
		return err
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		return fmt.Errorf("it says %q: %w", line, err)
	}
	return nil
}

// Close ends the process that has Ansible loaded.
func (a *Ansible) Close() error {
	if a.server == nil || a.server.Process == nil {
		return nil
	}
	return errors.Join(a.stdin.Close(), a.server.Wait(), os.RemoveAll(a.dir))
}
