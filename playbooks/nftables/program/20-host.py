"""What the program learns of the host, and what it keeps there: who controls it, and what a boot has to load."""
import fcntl
import json
import os
import sys

STATE = "/var/lib/parry-nftables"  # state.json; owed; entries, exempt and restore.py are for the boot
LOCK = "/run/parry-nftables.lock"
UNIT = "/etc/systemd/system/parry-nftables.service"
WANTS = ("/etc/systemd/system/sysinit.target.wants/parry-nftables.service", "/etc/systemd/system/nftables.service.wants/parry-nftables.service")
UNIT_TEXT = f"""\
# Made by parry's bundle nftables; flush.yml takes it away.
[Unit]
Description=Blocks that parry has put on this host, for what is left of their time
DefaultDependencies=no
RequiresMountsFor={STATE}
After=nftables.service
Before=network-pre.target shutdown.target
Wants=network-pre.target
Conflicts=shutdown.target
PartOf=nftables.service
ReloadPropagatedFrom=nftables.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/python3 -I -S {STATE}/restore.py
ExecReload=/usr/bin/python3 -I -S {STATE}/restore.py

[Install]
WantedBy=sysinit.target nftables.service
"""


class Failure(Exception):
    """What ends a run that must not go on; code is the contract's, facts go beside it into the answer."""

    def __init__(self, code, message, **facts):
        super().__init__(message)
        self.code, self.facts = code, facts


def lock(seconds):
    """The host's lock, or None when another run holds it for so long. It ends with the process."""
    file = open(LOCK, "a")
    end = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if time.monotonic() > end:
                return None
            time.sleep(0.05)


# ---- files ----

def read_file(path):
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""


def write_file(path, data, mode=0o600):
    """Replaces a file by rename, synced, so that a reader or a crash sees the old or the new text, never a part. False when it was so already."""
    if os.path.exists(path) and read_file(path) == data:
        return False
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temp = f"{path}.new"
        with open(temp, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temp, path)
        directory = os.open(os.path.dirname(path), os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
    except OSError as error:
        raise Failure("internal", f"cannot write {path} on the host: {error.strerror}") from error
    return True


NOBODY = {"controller": "", "epoch": 0, "held": False, "run_id": "", "revision": 0}


def read_state(adopt):
    data = read_file(f"{STATE}/state.json")
    if not data:
        return dict(NOBODY)
    try:
        state = json.loads(data)
        return {key: type(value)(state.get(key, value)) for key, value in NOBODY.items()}
    except (ValueError, AttributeError, TypeError) as error:
        if adopt:
            return dict(NOBODY)
        raise Failure("internal", f"{STATE}/state.json on the host is damaged, so it is not known who controls it; adopt the firewall "
                      "(parry_adopt=true) to start anew") from error


def write_state(state):
    write_file(f"{STATE}/state.json", json.dumps(state).encode() + b"\n")


def read_owed():
    """The entries, by their first five columns, that may be loaded while the connections that they block have not been ended: kept from before they
    are written until that is done, as a run finds loaded what one that broke off has left."""
    return set(read_file(f"{STATE}/owed").decode("ascii", "replace").splitlines())


def write_owed(entries):
    if entries:
        write_file(f"{STATE}/owed", "".join(f"{line}\n" for line in sorted(entries)).encode())
    elif os.path.exists(f"{STATE}/owed"):
        os.unlink(f"{STATE}/owed")


def write_boot(program, entries, exempt):
    """Keeps what a boot needs to load the same blocks for what is then left of their time: an nft file could only say how long from then on."""
    changed = write_file(f"{STATE}/restore.py", program + b"\nrestore()\n", 0o700)
    changed |= write_file(f"{STATE}/entries", entries)
    changed |= write_file(f"{STATE}/exempt", exempt)
    if not os.path.isdir(os.path.dirname(UNIT)):
        return changed  # no systemd
    new = write_file(UNIT, UNIT_TEXT.encode(), 0o644)
    for link in WANTS:
        if not os.path.islink(link):
            os.makedirs(os.path.dirname(link), exist_ok=True)
            os.symlink(UNIT, link)
            new = True
    if new:
        reload_systemd()
    return changed | new


def remove_boot():
    found = [path for path in (*WANTS, UNIT, *(f"{STATE}/{name}" for name in ("restore.py", "entries", "exempt", "owed"))) if os.path.lexists(path)]
    for path in found:
        os.unlink(path)
    if UNIT in found:
        reload_systemd()
    return bool(found)


def reload_systemd():
    if os.path.isdir("/run/systemd/system"):
        os.spawnvp(os.P_WAIT, "systemctl", ["systemctl", "daemon-reload"])


# ---- addresses ----

def route_dump(kind, family=0):
    route = Netlink(NETLINK_ROUTE)
    size = {18: 16, 22: 8, 26: 12}[kind]  # RTM_GETLINK, RTM_GETADDR, RTM_GETROUTE
    try:
        for _, payload_ in route.dump(kind, struct.pack("=B", family) + bytes(size - 1)):
            yield payload_[:size], dict(attributes(payload_[size:]))
    finally:
        route.socket.close()


def interfaces():
    return {words(found[3]) for _, found in route_dump(18) if 3 in found}


def own_addresses():
    return {bytes(found.get(2, found.get(1))) for _, found in route_dump(22) if 1 in found or 2 in found}


MAX_ROUTES = 20000  # a default route comes first; a router may hold a million others


def gateways():
    found = set()
    for family in (socket.AF_INET, socket.AF_INET6):
        for i, (_, route) in enumerate(route_dump(26, family)):
            if i == MAX_ROUTES:
                break
            hops = [route]
            hop = route.get(9, b"")  # RTA_MULTIPATH
            while len(hop) >= 8:
                length = struct.unpack_from("=H", hop)[0]
                hops.append(dict(attributes(hop[8:length])))
                hop = hop[max(8, (length + 3) & ~3):]
            for one in hops:
                if 5 in one:  # RTA_GATEWAY
                    found.add(bytes(one[5]))
                elif len(one.get(18, b"")) > 2:  # RTA_VIA: a gateway of the other family
                    found.add(bytes(one[18][2:]))
    return found


def resolvers():
    found = set()
    for path in ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"):
        for line in read_file(path).decode("ascii", "replace").splitlines():
            fields = line.split()
            if len(fields) > 1 and fields[0] == "nameserver":
                address = packed(fields[1].partition("%")[0])
                if address:
                    found.add(address)
    return found


def caller():
    """Who is logged in: the address of the Ansible host. sudo takes the variable away, but its own process still has it."""
    pid = os.getpid()
    for _ in range(16):
        for variable in read_file(f"/proc/{pid}/environ").split(b"\0"):
            if variable.startswith(b"SSH_CONNECTION="):
                address = packed(variable[15:].split(b" ")[0].decode("ascii", "replace").partition("%")[0])
                return {address} if address else set()
        stat = read_file(f"/proc/{pid}/stat").rpartition(b")")[2].split()
        pid = int(stat[1]) if len(stat) > 1 else 0
        if pid < 1:
            break
    return set()


def packed(address):
    try:
        return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
    except (OSError, ValueError):
        return None


def unpacked(address):
    if len(address) == 4:
        return socket.inet_ntop(socket.AF_INET, address)
    if address[:12] == bytes(12) and address[12:14] != bytes(2):  # libc writes these as IPv4
        import ipaddress
        return str(ipaddress.IPv6Address(address))
    return socket.inet_ntop(socket.AF_INET6, address)


def facts():
    """What parry should know of this host, single addresses that others can reach. A destination is looked at before and behind NAT, so that
    no port forward needs to be known."""
    def listed(addresses):
        return sorted(unpacked(a) for a in addresses if not (a[0] == 127 and len(a) == 4 or a == bytes(15) + b"\1" or a[:2] == b"\xfe\x80" or not any(a)))[:1024]
    return {"addresses": listed(own_addresses()), "gateways": listed(gateways()), "resolvers": listed(resolvers()), "forwards": []}


def identity():
    return {"machine_id": words(read_file("/etc/machine-id")).strip(), "boot_id": words(read_file("/proc/sys/kernel/random/boot_id")).strip(),
            "version": f"Linux {os.uname().release}"}
