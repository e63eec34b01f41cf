# Streams one JSON object per event to the descriptor in PARRY_EVENT_FD. Works on ansible-core 2.14 and later; standard library only.
from __future__ import annotations

import json
import os
import time

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = '''
    name: parry_events
    type: aggregate
    short_description: structured run events for parry
    description: One JSON line per play, task, host result and the final statistics, with bounded fields.
'''

FIELD = 8192             # characters of an ordinary field
ANSWER = 2 * 1024 ** 2   # bytes of a play's answer, the key "parry": 10,000 rejected lines fit
KEEP = ('msg', 'rc', 'stdout', 'stderr', 'module_stdout', 'module_stderr', 'reason', 'skip_reason', 'censored', 'exception', 'diff')


def _clip(value):
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if not isinstance(value, str):
        try:
            value = json.dumps(value, default=str)
        except Exception as e:
            value = 'cannot be shown: %s' % e
    return value if len(value) <= FIELD else '%s… [%d more]' % (value[:FIELD], len(value) - FIELD)


def _answer(value):
    """The play's own answer is passed whole or, beyond the cap, not at all: half of one would mislead."""
    size = len(json.dumps(value, default=str))
    return {'parry': value} if size <= ANSWER else {'parry_too_large': size}


def _attr(result, name):
    """TaskResult's fields lost their underscore in 2.19."""
    value = getattr(result, name, None)
    return getattr(result, '_' + name) if value is None else value


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = 'aggregate'
    CALLBACK_NAME = 'parry_events'
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, display=None, options=None):
        super().__init__(display=display, options=options)
        self._fd = int(os.environ.get('PARRY_EVENT_FD', '-1'))
        if self._fd < 0:
            self.disabled = True
            return
        os.set_inheritable(self._fd, False)

    def _emit(self, event, **fields):
        fields.update(event=event, time=time.time())
        line = json.dumps(fields, default=str, separators=(',', ':')) + '\n'
        view = memoryview(line.encode('utf-8', 'replace'))
        try:
            while view:
                view = view[os.write(self._fd, view):]
        except OSError:  # parry is gone: the run itself goes on
            self.disabled = True

    def v2_playbook_on_play_start(self, play):
        self._emit('play', play=_clip(play.get_name()))

    def v2_playbook_on_task_start(self, task, is_conditional):
        self._emit('task', task=_clip(task.get_name()), action=_clip(task.action))

    def v2_playbook_on_handler_task_start(self, task):
        self.v2_playbook_on_task_start(task, False)

    def v2_playbook_on_no_hosts_matched(self):
        self._emit('no_hosts')

    def _result(self, status, result, ignored=False):
        r = _attr(result, 'result')
        kept = {k: _clip(r[k]) for k in KEEP if k in r}
        if isinstance(r.get('parry'), dict):
            kept.update(_answer(r['parry']))
        self._emit('result', status=status, host=_attr(result, 'host').get_name(), task=_clip(_attr(result, 'task').get_name()),
                   changed=bool(r.get('changed')), ignored=bool(ignored), result=kept)

    def v2_runner_on_ok(self, result):
        self._result('ok', result)

    def v2_runner_on_failed(self, result, ignore_errors=False):
        self._result('failed', result, ignore_errors)

    def v2_runner_on_unreachable(self, result):
        self._result('unreachable', result)

    def v2_runner_on_skipped(self, result):
        self._result('skipped', result)

    def v2_runner_item_on_failed(self, result):
        self._result('item_failed', result)

    def v2_runner_retry(self, result):
        self._result('retry', result)

    def v2_playbook_on_stats(self, stats):
        answers = {}
        for host, custom in stats.custom.items():  # set_stats: by host, or "_run"
            if isinstance(custom.get('parry'), dict):
                answers[host] = _answer(custom['parry'])
        self._emit('stats', hosts={h: stats.summarize(h) for h in sorted(stats.processed)}, answers=answers)
