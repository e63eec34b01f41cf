"""Runs parry's program on a Linux host: one ssh operation, Python over stdin, no temporary file on the host.

The entries and the exemptions are read here, on the Ansible host, and never pass through a template. The program's parts (../program/*.py) are
joined and sent with its length before it; the run's settings follow as one line of JSON, then the entries and the exemptions as they are. The
answer is the last line of the output that starts with the marker.
"""
from __future__ import annotations

import glob
import json
import os
import re
import shlex

from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase

DOCUMENTATION = r"""
name: parry_nftables
short_description: Converge a Linux host's nftables to a set of blocked sources, read them back, or flush them
author: parry
options:
  mode: {description: What to do., choices: [apply, verify, flush], required: true}
  desired_file: {description: Absolute path on the Ansible host; apply only., type: path}
  exempt_file: {description: Absolute path on the Ansible host; apply only. Empty to change no exemption., type: path}
  loaded_file: {description: Absolute path on the Ansible host that verify writes to. Empty for none., type: path}
  controller: {description: Who controls the host., type: str}
  epoch: {description: Fencing number; an older one is refused., type: int}
  revision: {description: Revision of the desired state., type: int}
  sent_revision: {description: Highest revision that the controller may have applied before., type: int}
  run_id: {description: Name of this run., type: str}
  adopt: {description: Take over from another controller or after a flush., type: bool}
  max_rules: {description: Largest number of kinds of entries., type: int}
  capacity: {description: Largest number of entries., type: int}
  end_connections: {description: End open connections of new entries., type: bool}
"""

# What is sent first says how long the program is; the rest of the input is the program's to read.
BOOT = "import sys; i = sys.stdin.buffer; p = i.read(int(i.readline())); exec(compile(p, 'parry', 'exec')); run(i, p)"
COMMAND = f"python3 -I -S -c {shlex.quote(BOOT)}"
MARKER = "PARRY-ANSWER "
LOADED = "PARRY-LOADED\n"
MAX_FILE = 64 << 20
MAX_ANSWER = 80 << 20
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}\Z")
MODES = ("apply", "verify", "flush")
CONTRACT = 1


class ActionModule(ActionBase):
    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        del tmp
        try:
            run = self._settings()
            apply = run["mode"] == "apply"
            desired = self._file("desired_file") if apply else b""
            run["exempt"] = apply and bool(self._task.args.get("exempt_file"))
            exempt = self._file("exempt_file") if run["exempt"] else b""
            loaded = str(self._task.args.get("loaded_file") or "") if run["mode"] == "verify" else ""
            if loaded and not os.path.isabs(loaded):
                raise Refused("internal", "parry_loaded_file must be an absolute path on the Ansible host")
            run["loaded"] = bool(loaded)
        except Refused as refused:
            return dict(result, failed=True, msg=str(refused), parry={"failure": refused.code})
        output = self._low_level_execute_command(COMMAND, in_data=message(run, desired, exempt))
        result.update(answer(output))
        if loaded and not result.get("failed"):
            result.update(keep(output["stdout"], loaded))
        if "parry" in result and not result.get("failed"):
            # what set_stats would answer, without a task of its own
            result["ansible_stats"] = {"data": {"parry": result["parry"]}, "per_host": True, "aggregate": False}
        return result

    def _settings(self):
        """The task's arguments as plain types, each of them checked: they come from inventories and command lines, too."""
        args = self._task.args
        if number(args, "contract", 1) != CONTRACT:
            raise Refused("internal", f"this bundle speaks contract {CONTRACT}; parry_contract asks for {args.get('contract')}")
        run = {
            "mode": str(args.get("mode", "")),
            "check": bool(self._task.check_mode),
            "diff": bool(self._task.diff),
            "adopt": boolean(args.get("adopt", False)),
            "kill": boolean(args.get("end_connections", True)),
            "epoch": number(args, "epoch", 0),
            "revision": number(args, "revision", 0),
            "sent_revision": number(args, "sent_revision", 0),
            "max_rules": number(args, "max_rules", 200),
            "capacity": number(args, "capacity", 200000),
        }
        if run["mode"] not in MODES:
            raise Refused("internal", f"mode must be one of {', '.join(MODES)}")
        for key in ("controller", "run_id"):
            run[key] = str(args.get(key, "manual"))
            if not NAME.match(run[key]):
                raise Refused("internal", f"{key} must be letters, digits and . _ : @ - only, at most 128")
        return run

    def _file(self, key):
        path = str(self._task.args.get(key) or "")
        if not os.path.isabs(path):
            raise Refused("bad_desired", f"parry_{key} must be the absolute path of a file on the Ansible host")
        try:
            with open(path, "rb") as file:
                data = file.read(MAX_FILE + 1)
        except OSError as error:
            raise Refused("bad_desired", f"cannot read parry_{key}: {error}") from error
        if len(data) > MAX_FILE:
            raise Refused("bad_desired", f"parry_{key} is larger than {MAX_FILE >> 20} MiB")
        if data and not data.endswith(b"\n"):
            raise Refused("bad_desired", f"parry_{key} does not end with a line end: it may have been cut off")
        return data


class Refused(Exception):
    """A failure that is known before the host is asked; code is the contract's."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


def number(args, key, default):
    try:
        value = int(args.get(key, default))
    except (TypeError, ValueError) as error:
        raise Refused("internal", f"{key} must be a whole number") from error
    if not 0 <= value < 1 << 53:
        raise Refused("internal", f"{key} is out of range")
    return value


def message(run, desired, exempt):
    parts = []
    for path in sorted(glob.glob(os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "program", "*.py"))):
        with open(path, "rb") as file:
            parts.append(file.read())
    program = b"\n".join(parts)
    settings = json.dumps(dict(run, sizes=[len(desired), len(exempt)])).encode()
    return b"%d\n%b%b\n%b%b" % (len(program), program, settings, desired, exempt)


def answer(output):
    """The program's answer, or a failure that says what came instead. Only known keys are taken over: Ansible itself acts on others."""
    found, text = None, output["stdout"]
    at = text.rfind("\n" + MARKER)
    if at >= 0 and len(text) <= MAX_ANSWER:
        try:
            found = json.loads(text[at + 1 + len(MARKER):].split("\n", 1)[0])
        except ValueError:
            found = None
    if not isinstance(found, dict) or not isinstance(found.get("parry"), dict):
        said = " ".join((output["stderr"] + " " + text)[-600:].split())
        if output["rc"] == 127:
            return {"failed": True, "msg": f"the host has no python3 that can be run: {said}", "parry": {"failure": "unsupported_version"}}
        return {
            "failed": True,
            "msg": f"the program on the host gave no answer (exit status {output['rc']}): {said or 'no output'}",
            "parry": {"failure": "internal"},
        }
    result = {"changed": found.get("changed") is True, "msg": str(found.get("msg", ""))[:2000], "parry": found["parry"]}
    if found.get("failed"):
        result["failed"] = True
    if isinstance(found.get("diff"), dict):
        result["diff"] = {key: str(found["diff"].get(key, "")) for key in ("before", "after", "before_header", "after_header")}
    return result


def keep(text, path):
    """Writes what the program read back into a file that must not exist yet."""
    begin, end = text.find(LOADED), text.rfind("\n" + MARKER)
    if begin < 0 or end < begin:
        return {"failed": True, "msg": "the program did not tell what is loaded", "parry": {"failure": "internal"}}
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8", errors="replace") as file:
            file.write(text[begin + len(LOADED):end])
    except OSError as error:
        return {"failed": True, "msg": f"cannot write parry_loaded_file: {error}", "parry": {"failure": "internal"}}
    return {}
