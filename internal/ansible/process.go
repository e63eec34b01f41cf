package ansible

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/apenella/go-ansible/v2/pkg/execute"
	goexec "github.com/apenella/go-ansible/v2/pkg/execute/exec"
	"github.com/apenella/go-ansible/v2/pkg/execute/result"
	"golang.org/x/sys/unix"
)

// drainTime is how long pipes are read on after the last process of a run is gone.
const drainTime = time.Second

// launcher makes go-ansible start its command as a supervised process: own group, given environment only, no standard input.
type launcher struct {
	dir   string
	env   []string      // must hold marker
	files []*os.File    // descriptors 3 and up of the child
	grace time.Duration // from SIGINT to SIGKILL
	// marker is an environment entry that only this run's processes have. Workers of ansible-core 2.19 and later are sessions of their
	// own, so that killing the group does not reach them.
	marker  string
	before  []string // program and first arguments to put before what go-ansible starts, if any
	process *process
}

// run executes the command through go-ansible until it ended, ctx's end included, and all its processes are gone. The error says why it
// could not be started; how it ended is in l.process.
func (l *launcher) run(ctx context.Context, cmd execute.Commander, stdout, stderr io.Writer) error {
	err := execute.NewDefaultExecute(
		execute.WithCmd(cmd),
		execute.WithExecutable(l),
		execute.WithOutput(drain{}),
		execute.WithWrite(stdout),
		execute.WithWriteError(stderr),
	).Execute(ctx)
	switch {
	case l.process == nil:
		return err
	case l.process.startErr != nil: // go-ansible's own error repeats the whole command line
		return l.process.startErr
	}
	return l.process.err
}

func (l *launcher) Command(name string, arg ...string) goexec.Cmder {
	return l.CommandContext(context.Background(), name, arg...)
}

// CommandContext takes over ctx: its end is SIGINT to the group, and SIGKILL after the grace.
func (l *launcher) CommandContext(ctx context.Context, name string, arg ...string) goexec.Cmder {
	if len(l.before) > 0 {
		name, arg = l.before[0], slices.Concat(l.before[1:], []string{name}, arg)
	}
	c := exec.Command(name, arg...)
	c.Dir, c.Env, c.ExtraFiles = l.dir, l.env, l.files
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	l.process = &process{Cmd: c, stop: ctx.Done(), grace: l.grace, marker: l.marker, done: make(chan struct{})}
	return l.process
}

// process is an exec.Cmder whose Wait never fails: go-ansible would put the command line and the environment into its error.
// The fields below done are valid once it is closed.
type process struct {
	*exec.Cmd
	stop     <-chan struct{}
	grace    time.Duration
	marker   string
	readers  []*os.File
	writers  []*os.File
	startErr error

	done   chan struct{}
	ended  bool // by us: at stop
	rc     int  // -1 when a signal ended it
	signal syscall.Signal
	cpu    time.Duration
	maxRSS int64 // bytes
	err    error // of waiting, not the exit code
}

func (p *process) pipe(to *io.Writer) (io.ReadCloser, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return io.NopCloser(bytes.NewReader(nil)), err // go-ansible closes it before it looks at the error
	}
	p.readers, p.writers = append(p.readers, r), append(p.writers, w)
	*to = w
	return r, nil
}

func (p *process) StdoutPipe() (io.ReadCloser, error) { return p.pipe(&p.Cmd.Stdout) }
func (p *process) StderrPipe() (io.ReadCloser, error) { return p.pipe(&p.Cmd.Stderr) }

func (p *process) Start() error {
	p.startErr = p.Cmd.Start()
	for _, w := range p.writers {
		_ = w.Close()
	}
	if p.startErr != nil {
		return p.startErr
	}
	go p.supervise()
	return nil
}

func (p *process) Wait() error {
	<-p.done
	return nil
}

// supervise ends the process at stop, and whatever it leaves behind in any case (a task's time-out leaves an ssh even on a normal exit).
// The leader stays unreaped until its group is gone, so that its pid, which names the group, cannot be taken by another.
func (p *process) supervise() {
	pid := p.Process.Pid
	exited := make(chan struct{})
	go func() {
		defer close(exited)
		for errors.Is(unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil), unix.EINTR) {
		}
	}()
	select {
	case <-exited:
	case <-p.stop:
		p.ended = true
		_ = syscall.Kill(-pid, syscall.SIGINT) // SIGTERM would leave Ansible's temporary files
		grace := time.NewTimer(p.grace)
		defer grace.Stop()
		select {
		case <-exited:
		case <-grace.C:
		}
	}
	_ = syscall.Kill(-pid, syscall.SIGKILL)
	killMarked(p.marker)
	<-exited
	err := p.Cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		p.err = err
	}
	st := p.ProcessState
	p.rc, p.cpu = st.ExitCode(), st.UserTime()+st.SystemTime()
	if ws, ok := st.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		p.signal = ws.Signal()
	}
	if ru, ok := st.SysUsage().(*syscall.Rusage); ok {
		p.maxRSS = ru.Maxrss * 1024
	}
	deadline := time.Now().Add(drainTime)
	for _, r := range p.readers {
		_ = r.SetReadDeadline(deadline)
	}
	close(p.done)
}

// killMarked ends every process whose environment holds the marker, until none is left; at most 50 rounds, for those that fork meanwhile.
func killMarked(marker string) {
	for range 50 {
		left := marked(marker)
		if len(left) == 0 {
			return
		}
		for _, pid := range left {
			killOne(pid, marker)
		}
	}
}

// killOne holds the process by a descriptor while it looks again, so that a pid that was taken by another meanwhile is not hit.
func killOne(pid int, marker string) {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ENOSYS) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	if err != nil {
		return
	}
	defer func() { _ = unix.Close(fd) }()
	if hasMarker(pid, []byte(marker)) {
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	}
}

// marked lists the living processes whose environment holds the entry.
func marked(marker string) []int {
	d, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer func() { _ = d.Close() }()
	names, _ := d.Readdirnames(-1)
	var pids []int
	for _, n := range names {
		if pid, err := strconv.Atoi(n); err == nil && hasMarker(pid, []byte(marker)) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func hasMarker(pid int, marker []byte) bool {
	env, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "environ")) // empty for a zombie
	for entry := range bytes.SplitSeq(env, []byte{0}) {
		if bytes.Equal(entry, marker) {
			return true
		}
	}
	return false
}

// drain copies a pipe to its end whatever the sink does, so that the child never blocks on it.
type drain struct{}

func (drain) Print(_ context.Context, r io.Reader, w io.Writer, _ ...result.OptionsFunc) error {
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			_, _ = w.Write(buf[:n])
		}
		if err != nil {
			return nil
		}
	}
}
