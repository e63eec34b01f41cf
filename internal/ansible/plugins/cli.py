# Is ansible-playbook, quicker: no garbage collection while modules are loaded, and none of what runs of parry never use. Without
# cryptography Ansible cannot decrypt vaults, for which a run has no password anyway.
import gc
import sys

gc.disable()
for name in ('cryptography', 'winrm', 'pypsrp', 'paramiko'):
    sys.modules[name] = None  # its import fails as if it were not installed

from ansible.cli.playbook import main  # noqa: E402

sys.argv[0] = 'ansible-playbook'
gc.freeze()
gc.enable()
main()
