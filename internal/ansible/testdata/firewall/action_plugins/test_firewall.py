from __future__ import annotations

import hashlib
import json
import shlex

from ansible.plugins.action import ActionBase

# Writes and reads a file. In check mode it only reads; as verify it also hands over what it read, and the facts that it is told.
PROGRAM = '''
old=$(cut -d" " -f1-5 "$1" 2>/dev/null | sha256sum | cut -d" " -f1)
echo "$$" > "$1.pid"
sleep "$3"
if [ "$2" = apply ]; then cat > "$1.new" && mv "$1.new" "$1"; fi
touch "$1"
new=$(cut -d" " -f1-5 "$1" | sha256sum | cut -d" " -f1)
echo "$new $(wc -l < "$1") $old"
cat "$1"
'''


class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        desired = task_vars.get('parry_desired_file')
        data = b''
        if desired:
            with open(desired, 'rb') as f:
                data = f.read()
        words = ['sh', '-c', PROGRAM, 'sh', str(task_vars['test_file']), 'apply' if desired and not self._task.check_mode else 'verify', str(task_vars.get('test_sleep', 0))]
        answer = self._low_level_execute_command(' '.join(shlex.quote(w) for w in words), in_data=data or b'\n', sudoable=False)
        if answer['rc'] != 0:
            result.update(failed=True, msg='the program failed', stderr=answer['stderr'], parry={'failure': 'internal'})
            return result
        head, _, lines = answer['stdout'].partition('\n')
        new, count, old = head.split()
        if task_vars.get('parry_loaded_file'):
            with open(task_vars['parry_loaded_file'], 'w') as f:
                f.write(''.join(line + ' 0 0\n' for line in lines.splitlines()))
        result.update(changed=new != old, parry=dict(
            sha256=new, count=int(count), added=0, removed=0, rejected=[], rules=0, capacity=0, epoch=int(task_vars.get('parry_epoch', 0)),
            controller=str(task_vars.get('parry_controller', '')), machine_id='test', run_id=task_vars['parry_run_id']))
        if task_vars.get('parry_exempt_file'):
            with open(task_vars['parry_exempt_file'], 'rb') as f:
                exempt = f.read()
            result['parry'].update(exempt_sha256=hashlib.sha256(exempt).hexdigest(), exempt_count=exempt.count(b'\n'))
        if task_vars.get('test_facts'):
            result['parry']['facts'] = json.loads(task_vars['test_facts'])
        return result
