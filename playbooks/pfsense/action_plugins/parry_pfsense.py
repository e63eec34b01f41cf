"""Runs parry's program on a pfSense firewall: one ssh operation, PHP over stdin, no Python and no temporary file on the firewall.

The desired entries are read here, on the Ansible host, and never pass through a template. The program's parts (../program/*.php) are joined,
the run's settings and the entries follow as literals, and the last line calls parry_main(). The answer is the last line of the output that
starts with the marker; everything else that PHP or pfSense printed is ignored. What verify found loaded comes compressed within it and is written
here, on the Ansible host.
"""
from __future__ import annotations

import base64
import glob
import json
import os
import re
import zlib

from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase

DOCUMENTATION = r"""
name: parry_pfsense
short_description: Converge a pfSense firewall to a set of blocked sources, read them back, or flush them
author: parry
options:
  mode: {description: What to do., choices: [apply, verify, flush], required: true}
  desired_file: {description: Absolute path on the Ansible host; apply only., type: path}
  exempt_file: {description: Absolute path on the Ansible host of what must never be dropped; apply only., type: path}
  loaded_file: {description: Absolute path on the Ansible host of a file to be made with the loaded entries; verify only., type: path}
  controller: {description: Who controls the firewall., type: str}
  epoch: {description: Fencing number; an older one is refused., type: int}
  revision: {description: Revision of the desired state., type: int}
  sent_revision: {description: Highest revision that the controller may have applied before., type: int}
  run_id: {description: Name of this run., type: str}
  adopt: {description: Take over from another controller or after a flush., type: bool}
  max_rules: {description: Largest number of rules., type: int}
  role: {description: Role in an HA pair., choices: [single, primary, secondary]}
  action: {description: What happens to a packet., choices: [block, reject]}
  log: {description: Log blocked packets., type: bool}
  kill_states: {description: End open connections of new entries., type: bool}
"""

# Ansible takes status 255 for a lost connection, and PHP ends with it when it cannot even start the program.
COMMAND = "/usr/local/bin/php || exit 1"
MARKER = "PARRY-ANSWER "
MAX_DESIRED = 64 << 20
MAX_ANSWER = 16 << 20
MAX_LOADED = 64 << 20
# Text of only these bytes can stand in a PHP nowdoc: the closing word is in capitals. Anything else goes as base64, to be rejected line by line.
PLAIN = b"0123456789abcdefghijklmnopqrstuvwxyz:./ -\n"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}\Z")
CHOICES = {
    "mode": ("apply", "verify", "flush"),
    "role": ("single", "primary", "secondary"),
    "action": ("block", "reject"),
}
# What PHP says of text on its standard input that it cannot parse: pfSense 2.6 has PHP 7.4, which does not get as far as asking for a version.
UNREADABLE = re.compile(r"^(PHP )?Parse error: .* in (Standard input code|-) on line", re.MULTILINE)
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
            desired = self._text("desired_file") if apply else b""
            exempt = self._text("exempt_file") if apply and self._task.args.get("exempt_file") else None
            loaded = self._loaded_file() if run["mode"] == "verify" else ""
        except Refused as refused:
            return dict(result, failed=True, msg=str(refused), parry={"failure": refused.code})
        run["loaded"] = loaded != ""
        output = self._low_level_execute_command(COMMAND, in_data=program(run, desired, exempt))
        found = answer(output)
        packed = found.pop("loaded", None)
        result.update(found)
        if loaded and not result.get("failed"):
            try:
                write_new(loaded, unpack(packed))
            except (OSError, ValueError) as error:
                return dict(result, failed=True, msg=f"cannot write parry_loaded_file: {error}", parry={"failure": "internal"})
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
            "check": bool(self._task.check_mode),
            "diff": bool(self._task.diff),
            "adopt": boolean(args.get("adopt", False)),
            "log": boolean(args.get("log", False)),
            "kill_states": boolean(args.get("kill_states", True)),
            "epoch": number(args, "epoch", 0),
            "revision": number(args, "revision", 0),
            "sent_revision": number(args, "sent_revision", 0),
            "max_rules": number(args, "max_rules", 200),
        }
        for key, default in (("mode", ""), ("role", "single"), ("action", "block")):
            run[key] = str(args.get(key, default))
            if run[key] not in CHOICES[key]:
                raise Refused("internal", f"{key} must be one of {', '.join(CHOICES[key])}")
        for key in ("controller", "run_id"):
            run[key] = str(args.get(key, "manual"))
            if not NAME.match(run[key]):
                raise Refused("internal", f"{key} must be letters, digits and . _ : @ - only, at most 128")
        return run

    def _loaded_file(self):
        path = str(self._task.args.get("loaded_file") or "")
        if path and not os.path.isabs(path):
            raise Refused("internal", "parry_loaded_file must be an absolute path on the Ansible host")
        return path

    def _text(self, name):
        path = str(self._task.args.get(name) or "")
        if not os.path.isabs(path):
            raise Refused("bad_desired", f"parry_{name} must be the absolute path of a file on the Ansible host")
        try:
            with open(path, "rb") as file:
                data = file.read(MAX_DESIRED + 1)
        except OSError as error:
            raise Refused("bad_desired", f"cannot read parry_{name}: {error}") from error
        if len(data) > MAX_DESIRED:
            raise Refused("bad_desired", f"parry_{name} is larger than {MAX_DESIRED >> 20} MiB")
        if data and not data.endswith(b"\n"):
            raise Refused("bad_desired", f"parry_{name} does not end with a line end: it may have been cut off")
        return data


class Refused(Exception):
    """A failure that is known before the firewall is asked; code is the contract's."""

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


def unpack(packed):
    """The loaded entries out of the answer; the firewall's word, so it may not grow beyond measure."""
    try:
        data = base64.b64decode(packed, validate=True)
        inflate = zlib.decompressobj()
        text = inflate.decompress(data, MAX_LOADED)
    except (TypeError, ValueError, zlib.error) as error:
        raise ValueError("the firewall's answer does not hold the entries") from error
    if not inflate.eof:
        raise ValueError(f"the entries are cut off or larger than {MAX_LOADED >> 20} MiB")
    return text


def write_new(path, data):
    """A file that did not exist before, for its owner alone; no link is followed."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
        file.write(data)


def program(run, desired, exempt):
    """PHP source: the parts without their opening tags, then the call. Literals are nowdocs, in which PHP interprets nothing."""
    parts = [b"<?php\n"]
    for path in sorted(glob.glob(os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "program", "*.php"))):
        with open(path, "rb") as file:
            parts.append(file.read().removeprefix(b"<?php\n"))
    settings = base64.b64encode(json.dumps(run).encode())
    parts.append(b"\nparry_main(json_decode(base64_decode('" + settings + b"'), true), ")
    parts.extend((literal(desired), b", ", b"null" if exempt is None else literal(exempt), b");\n"))
    return b"".join(parts)


def literal(text):
    if not text:
        return b"''"
    if text.translate(None, PLAIN):
        return b"base64_decode('" + base64.b64encode(text) + b"')"
    return b"<<<'PARRYEND'\n" + text + b"PARRYEND"


def answer(output):
    """The program's answer, or a failure that says what came instead. Only known keys are taken over: Ansible itself acts on others."""
    found = None
    if len(output["stdout"]) <= MAX_ANSWER:
        for line in reversed(output["stdout"].splitlines()):
            if line.startswith(MARKER):
                try:
                    found = json.loads(line[len(MARKER):])
                except ValueError:
                    found = None
                break
    if not isinstance(found, dict) or not isinstance(found.get("parry"), dict):
        said = " ".join((output["stderr"] + " " + output["stdout"])[-600:].split())
        if UNREADABLE.search(output["stderr"] + "\n" + output["stdout"]):
            return {
                "failed": True,
                "msg": f"the firewall's PHP is too old for the program; pfSense 2.7.0 or later is needed: {said}",
                "parry": {"failure": "unsupported_version"},
            }
        return {
            "failed": True,
            "msg": f"the program on the firewall gave no answer (exit status {output['rc']}): {said or 'no output'}",
            "parry": {"failure": "internal"},
        }
    result = {"changed": found.get("changed") is True, "msg": str(found.get("msg", ""))[:2000], "parry": found["parry"]}
    if found.get("failed"):
        result["failed"] = True
    if "loaded" in found:
        result["loaded"] = found["loaded"]
    if found.get("noise"):
        result["noise"] = str(found["noise"])[:2000]
    if isinstance(found.get("diff"), dict):
        result["diff"] = {key: str(found["diff"].get(key, "")) for key in ("before", "after", "before_header", "after_header")}
    return result
