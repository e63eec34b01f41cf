from __future__ import annotations

import shlex

from ansible.plugins.action import ActionBase

PROGRAM = '''
old=$(cut -d" " -f1-5 "$1" 2>/dev/null | sha256sum | cut -d" " -f1)
echo "$$" > "$1.pid"
sleep "$3"
if [ "$2" = apply ]; then cat > "$1.new" && mv "$1.new" "$1"; fi
touch "$1"
new=$(cut -d" " -f1-5 "$1" | sha256sum | cut -d" " -f1)
echo "$new $(wc -l < "$1") $old"
'''


class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        desired = task_vars.get('parry_desired_file')
        data = b''
        if desired:
            with open(desired, 'rb') as f:
                data = f.read()
        words = ['sh', '-c', PROGRAM, 'sh', str(task_vars['test_file']), 'apply' if desired else 'verify', str(task_vars.get('test_sleep', 0))]
        answer = self._low_level_execute_command(' '.join(shlex.quote(w) for w in words), in_data=data or b'\n', sudoable=False)
        if answer['rc'] != 0:
            result.update(failed=True, msg='the program failed', stderr=answer['stderr'], parry={'failure': 'internal'})
            return result
        new, count, old = answer['stdout'].split()
        result.update(changed=new != old, parry=dict(
            sha256=new, count=int(count), added=0, removed=0, rejected=[], rules=0, capacity=0, epoch=int(task_vars.get('parry_epoch', 0)),
            controller=str(task_vars.get('parry_controller', '')), machine_id='test', run_id=task_vars['parry_run_id']))
        return result
