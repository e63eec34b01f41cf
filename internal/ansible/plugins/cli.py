# Runs the program of Ansible's that is its first argument, quicker and with more patience: no garbage collection while modules are loaded, and none
# of what parry never uses. Without cryptography Ansible cannot decrypt vaults, for which a run has no password anyway.
import contextlib
import gc
import hashlib
import os
import pickle
import runpy
import subprocess
import sys

gc.disable()
for name in ('cryptography', 'winrm', 'pypsrp', 'paramiko'):
    sys.modules[name] = None  # its import fails as if it were not installed

import yaml  # noqa: E402

parse = yaml.load


def load(stream, Loader):
    """yaml.load that keeps beside this file what it made of a long text: Ansible parses its table of moved modules and its settings at each
    start, which is a quarter of it. What people write comes through a Loader of Ansible's own, and is parsed each time."""
    text = stream.read() if hasattr(stream, 'read') else stream
    if Loader is not getattr(yaml, 'CSafeLoader', yaml.SafeLoader) or len(text) < 1 << 14:
        return parse(text, Loader)
    raw = text if isinstance(text, bytes) else text.encode()
    path = f'{os.path.dirname(__file__)}/yaml-{hashlib.sha256(raw).hexdigest()}'
    with contextlib.suppress(Exception), open(path, 'rb') as kept:
        return pickle.load(kept)
    made = parse(text, Loader)
    with contextlib.suppress(OSError):
        with open(f'{path}.{os.getpid()}', 'xb') as new:
            pickle.dump(made, new)
        os.replace(new.name, path)
    return made


yaml.load = load

import ansible.cli  # noqa: E402, F401: most of what is loaded
from ansible.errors import AnsibleConnectionFailure  # noqa: E402
from ansible.plugins.loader import become_loader, connection_loader, shell_loader  # noqa: E402


def preload(loader, *names):
    """A play loads all classes of such plugins beforehand, so that its workers have them: a fifth of its start. Here it is those that runs use;
    any other is loaded when a task needs it."""
    every = loader.all

    def few(*args, **kwargs):
        return [loader.get(name, class_only=True) for name in names] if kwargs.get('class_only') else every(*args, **kwargs)

    loader.all = few


preload(connection_loader, 'ssh')
preload(shell_loader, 'sh')
preload(become_loader, 'sudo')

ssh = connection_loader.get('ansible.builtin.ssh', class_only=True)
send = getattr(ssh, '_send_initial_data', None)


def send_patiently(self, fh, in_data, ssh_process):
    """An ssh that is refused closes its input, then ends. Ansible waits a millisecond between the two, and drops what ssh said when that was
    too short: nobody would know why there is no connection."""
    try:
        send(self, fh, in_data, ssh_process)
    except AnsibleConnectionFailure:
        with contextlib.suppress(subprocess.TimeoutExpired):
            ssh_process.wait(2)
        if ssh_process.returncode is None:
            raise


if send:
    ssh._send_initial_data = send_patiently

gc.freeze()
gc.enable()
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name='__main__')
