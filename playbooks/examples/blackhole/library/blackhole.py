#!/usr/bin/python3
"""Drops what comes from a source by a rule of the kernel's routing policy: ip rule add from SOURCE [to DESTINATION] blackhole.

Runs on the router, which needs iproute2 and Python 3.9. docs/PLAYBOOKS.md walks through it.
"""
import fcntl
import hashlib
import ipaddress
import json
import os

from ansible.module_utils.basic import AnsibleModule

STATE = "/var/lib/parry-blackhole.json"  # outlives a reboot; the rules do not
LOCK = "/run/lock/parry-blackhole"
PREF = 1         # asked at 0: which addresses are the router's own; asked after us: all routes
MARK = "112"     # the "protocol" of our rules, which says whose they are
CAPACITY = 1000  # the kernel goes through the rules for each packet
FRESH = {"controller": "", "epoch": 0, "revision": 0, "held": False}
FAMILIES = ("-4", "-6")


class Refused(Exception):
    """Ends the run: a code of the contract, a message for people, what else the answer tells."""


def main():
    module = AnsibleModule(supports_check_mode=True, argument_spec=dict(
        mode=dict(choices=["apply", "verify", "flush"], required=True), desired=dict(type="str"), adopt=dict(type="bool", default=False),
        run_id=dict(type="str"), controller=dict(type="str"), epoch=dict(type="int", default=0),
        revision=dict(type="int", default=0), sent_revision=dict(type="int", default=0)))
    try:
        with open(LOCK, "w") as lock:  # freed when the process ends, however it ends
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Refused("busy", "another run holds the router; try again") from None
            before = loaded(module)
            changed, after, parry = {"apply": apply, "verify": verify, "flush": flush}[module.params["mode"]](module, before)
            lines = loaded(module)  # never what was sent
    except Refused as refused:
        code, message, *more = refused.args
        module.fail_json(msg=message, parry=dict(*more, failure=code))
    parry.update(sha256=hashlib.sha256(text(lines).encode()).hexdigest(), count=len(lines), rules=len(lines), capacity=CAPACITY,
                 run_id=module.params["run_id"], machine_id=read("/etc/machine-id"), boot_id=read("/proc/sys/kernel/random/boot_id"))
    module.exit_json(changed=changed, msg=f"{len(lines)} entries in force", parry=parry, diff=dict(before=text(before), after=text(after)))


def apply(module, before):
    run = module.params
    state = read_state(run["adopt"])
    claim = may_change(run, state)
    wanted, rejected = parse(run["desired"], own_addresses(module))
    added, removed = [[e for e in one if e not in other] for one, other in ((wanted, before), (before, wanted))]
    broken = marked(module) != len(before)  # some of ours do not stand as they should
    changed = bool(added or removed or broken)
    counts = dict(added=len(added), removed=len(removed), rejected=rejected)
    if not module.check_mode:
        write_state(claim)  # before any change: from here on an older run is refused
        if broken:
            empty(module)
            added, removed = wanted, []
        batch(module, [("add", e) for e in added] + [("del", e) for e in removed])
        if loaded(module) != wanted:
            raise Refused("internal", "the rules do not stand as written: does somebody else's stand ahead of them? See ip rule and ip -6 rule")
        state = dict(claim, revision=run["revision"]) if changed else claim
        write_state(state)
    return changed, wanted, dict(state, **counts)


def verify(module, before):
    return False, before, read_state(afresh=True)


def flush(module, before):
    state = read_state(afresh=True)
    changed = not state["held"] or marked(module) > 0
    state["held"] = True
    if not module.check_mode:
        write_state(state)
        empty(module)
    return changed, [], dict(state, removed=len(before))


def may_change(run, state):
    """The state to be, if this run is one that may change the router."""
    if run["adopt"]:
        pass
    elif state["held"]:
        raise Refused("flushed", "flush.yml emptied this router and left a hold; adopt it to go on", state)
    elif state["controller"] not in ("", run["controller"]):
        raise Refused("foreign_controller", f"this router is held by controller {state['controller']}; adopt it if that one is gone", state)
    elif run["epoch"] < state["epoch"]:
        raise Refused("stale_epoch", f"this run has epoch {run['epoch']}, the router knows {state['epoch']}", state)
    elif run["sent_revision"] < state["revision"]:
        raise Refused("stale_revision", f"this router is at revision {state['revision']}, its controller knows {run['sent_revision']} at most", state)
    return dict(controller=run["controller"], epoch=run["epoch"], revision=min(state["revision"], run["revision"]), held=False)


def parse(desired, own):
    """The desired entries, sorted, each with five columns; and the lines that cannot be."""
    if desired is None:
        raise Refused("bad_desired", "parry_desired_file must be the absolute path of a file on the Ansible host")
    if desired and not desired.endswith("\n"):
        raise Refused("bad_desired", "parry_desired_file does not end with a line end: it may have been cut off")
    wanted, rejected = set(), []
    for number, line in enumerate(desired.split("\n")[:-1], 1):
        try:
            source, destination, protocol, port, interface, _ = line.split(" ")
            network = canonical(source)
            if destination != "-" and canonical(destination).version != network.version:
                code = "family_mismatch"
            elif (protocol, port, interface) != ("-", "-", "-"):
                code = "unsupported_protocol"
            elif any(address in network for address in own):
                code = "source_protected"  # what the router itself sends would be dropped, its answers to Ansible first of all
            elif len(wanted) == CAPACITY:
                code = "capacity"
            else:
                wanted.add(f"{source} {destination} - - -")
                continue
        except ValueError:
            code = "malformed"
        rejected.append(dict(line=number, code=code))
    return sorted(wanted), rejected


def canonical(name):
    """An address or prefix written as parry and the kernel write it; another way of writing would never be read back."""
    network = ipaddress.ip_network(name)
    if name != str(network).removesuffix(f"/{network.max_prefixlen}") or network.prefixlen == 0 or "%" in name:
        raise ValueError(name)
    return network


def own_addresses(module):
    return [ipaddress.ip_address(a["local"]) for link in json.loads(ip(module, "-j", "address")) for a in link["addr_info"] if "local" in a]


def rules(module, family):
    """The kernel's rules, in the order in which it asks them."""
    return json.loads(ip(module, family, "-N", "-j", "rule", "show"))


def marked(module):
    return sum(rule.get("protocol") == MARK for family in FAMILIES for rule in rules(module, family))


def loaded(module):
    """The entries in force, sorted: a rule counts when it says what we write and no more, and none of somebody else's is asked before it."""
    lines = set()
    for family in FAMILIES:
        for rule in rules(module, family):
            ends = [rule.pop(end, "-") + (f"/{rule.pop(end + 'len')}" if end + "len" in rule else "") for end in ("src", "dst")]
            if rule == {"priority": PREF, "action": "6", "protocol": MARK}:  # 6: blackhole
                lines.add(" ".join(ends) + " - - -")
            elif rule != {"priority": 0, "table": "255"}:  # 255: the router's own addresses
                break
    return sorted(lines)


def batch(module, todo):
    for family in FAMILIES:
        lines = []
        for verb, entry in todo:
            source, destination = entry.replace("-", "all").split(" ")[:2]
            if (":" in source) == (family == "-6"):
                lines.append(f"rule {verb} from {source} to {destination} pref {PREF} protocol {MARK} blackhole")
        if lines:
            ip(module, family, "-batch", "-", data=text(lines))


def empty(module):
    for family in FAMILIES:
        ip(module, family, "rule", "flush", "protocol", MARK)


def ip(module, *args, data=None):
    status, out, err = module.run_command(["ip", *args], data=data)
    if status != 0:
        raise Refused("internal", f"ip {' '.join(args)}: {err.strip()}")
    return out


def read_state(afresh):
    if not os.path.exists(STATE):
        return dict(FRESH)
    try:
        return {key: json.loads(read(STATE))[key] for key in FRESH}
    except (ValueError, TypeError, KeyError):
        if afresh:
            return dict(FRESH)
        raise Refused("internal", f"{STATE} is damaged, so it is not known who holds this router; adopt it to start anew") from None


def write_state(state):
    """By rename, so that a crash leaves the old or the new text."""
    if state == read_state(afresh=True):
        return
    with open(STATE + ".new", "w") as file:
        json.dump(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(STATE + ".new", STATE)


def read(path):
    with open(path) as file:
        return file.read().strip()


def text(lines):
    return "".join(f"{line}\n" for line in lines)


if __name__ == "__main__":
    main()
