package ansible

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

const (
	fixedPath      = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	connectTimeout = 10 * time.Second
)

// pathRE keeps paths to what means the same to ansible.cfg, to Ansible's argument splitting and to ssh: no blanks, quotes, %, ~ or ;.
var pathRE = regexp.MustCompile(`^/[A-Za-z0-9/._+@:,=-]*$`)

func checkPath(what, path string) error {
	if !pathRE.MatchString(path) {
		return fmt.Errorf("%s %q: write an absolute path of letters, digits and /._+@:,=- only", what, path)
	}
	return nil
}

// environ is all that a child sees of the outside; marker names its processes.
func (r *Runner) environ(dir, marker string) []string {
	return []string{
		"PATH=" + fixedPath,
		"LANG=C.UTF-8",
		"HOME=" + r.home,
		"ANSIBLE_HOME=" + r.home,
		"ANSIBLE_CONFIG=" + filepath.Join(dir, "ansible.cfg"),
		"ANSIBLE_LOCAL_TEMP=" + filepath.Join(dir, "tmp"),
		marker,
	}
}

// config makes an ansible.cfg. What the environment could change is fixed here: it is the only configuration that is read.
func (r *Runner) config(inventoryPlugins, sshArgs string, deadline time.Duration) []byte {
	return fmt.Appendf(nil, `# Made by parry for one run.
[defaults]
stdout_callback = default
callback_plugins = %s
callbacks_enabled = parry_events
collections_scan_sys_path = False
deprecation_warnings = False
devel_warning = False
localhost_warning = False
nocolor = True
nocows = True
forks = 1
gathering = explicit
host_key_checking = True
interpreter_python = auto_silent
jinja2_native = False
retry_files_enabled = False
timeout = %d
# Ends what is left of a run whose parry was killed.
task_timeout = %d

[inventory]
enable_plugins = %s
any_unparsed_is_failed = True

[ssh_connection]
pipelining = True
retries = 0
ssh_args = %s
`, r.plugins, int(connectTimeout.Seconds()), int((deadline+r.grace+time.Second)/time.Second), inventoryPlugins, sshArgs)
}

// sshOptions are the words that every ssh of parry gets: no configuration file, no question, pinned host keys, a peer that froze noticed.
func (r *Runner) sshOptions(control ...string) []string {
	o := []string{"-F", "none"}
	for _, opt := range append([]string{
		"BatchMode=yes",
		"StrictHostKeyChecking=yes",
		"UserKnownHostsFile=" + r.knownHosts,
		"GlobalKnownHostsFile=/dev/null",
		"UpdateHostKeys=no",
		"PreferredAuthentications=publickey",
		"IdentitiesOnly=yes",
		"ConnectTimeout=" + fmt.Sprint(int(connectTimeout.Seconds())),
		"ServerAliveInterval=3",
		"ServerAliveCountMax=2",
	}, control...) {
		o = append(o, "-o", opt)
	}
	return o
}

// prepare makes a directory ready to be a child's working directory.
func (r *Runner) prepare(dir, inventoryPlugins string, sshArgs []string, deadline time.Duration) error {
	if err := os.Mkdir(filepath.Join(dir, "tmp"), 0o700); err != nil {
		return err
	}
	return writeNew(filepath.Join(dir, "ansible.cfg"), r.config(inventoryPlugins, strings.Join(sshArgs, " "), deadline))
}
