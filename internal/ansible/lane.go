package ansible

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ErrOrphan tells that a run of a parry that was killed is still on for the firewall.
var ErrOrphan = errors.New("a run of a controller that was killed is still on")

func (r *Runner) lanesDir() string { return filepath.Join(r.stateDir, "lanes") }

// LockLane takes the machine-wide lock of a firewall's lane. Given as Spec.Lock it is inherited by the run, so that a parry that was
// restarted cannot begin one beside an orphan. The lock ends when the file is closed here and its last heir is gone. ErrOrphan when it is taken.
func (r *Runner) LockLane(name string) (*os.File, error) {
	if !hostRE.MatchString(name) {
		return nil, fmt.Errorf("lock lane %q: no firewall name", name)
	}
	f, err := os.OpenFile(filepath.Join(r.lanesDir(), name+".lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock lane %s: %w", name, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrOrphan
		}
		return nil, fmt.Errorf("lock lane %s: %w", name, err)
	}
	return f, nil
}
