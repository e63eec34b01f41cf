"""The desired entries: text in, keys of sets out. Entries of one shape share a set.

A shape is the family, how many bits of the source and of the destination count, and whether protocol, port and interface do. For 203.0.113.7 and
for 203.0.113.0/24 that are two shapes: each set holds addresses that are cut off to its bits, and its rule cuts off the packet's. So entries may
lie within each other and end at different times (an interval set would refuse the second), each keeps its timeout and its counter,
and all sets are hash tables, in which to change one element costs the same whether ten or 100,000 stand beside it.
"""
from collections import namedtuple

PROTOCOLS = {"tcp": 6, "udp": 17, "icmp": 1, "sctp": 132, "esp": 50, "gre": 47, "ah": 51}
PORTS = ("tcp", "udp", "tcp/udp", "sctp")
BYTES = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ:./_@+ -\n"
LEAST = 10  # seconds that an entry is loaded for at least, so that it can be read back
NEVER = 10 ** 12  # the end of what has none
SLACK = 2  # seconds by which the kernel's idea of an end may differ from what is wanted

# family 4 or 6; bits of the source; bits of the destination or None; protocol "", "one" (it is in the key) or "tcp/udp"; whether a port is in the
# key; name of the interface or "".
Shape = namedtuple("Shape", "family source destination protocol port interface")
EXEMPT = "exempt_"
PARTS = 16  # sets of one shape, when it has many entries


def shape_name(shape, part=""):
    return (f"ip{shape.family}_{shape.source}" + (f"_to_{shape.destination}" if shape.destination is not None else "")
            + {"": "", "one": "_proto", "tcp/udp": "_tcpudp"}[shape.protocol] + ("_port" if shape.port else "")
            + (f"_{part}" if part else "") + (f"_if_{shape.interface}" if shape.interface else ""))


def named_shape(name):
    """The shape that a set is named after, and which of how many sets of that shape it is; None when it is no name of ours."""
    import re
    found = re.fullmatch(r"ip([46])_(\d+)(?:_to_(\d+))?(?:_(proto|tcpudp))?(_port)?(?:_(\d+)of(\d+))?(?:_if_(\S{1,15}))?", name)
    if not found:
        return None
    family, source, destination, protocol, port, part, parts, interface = found.groups()
    width = 32 if family == "4" else 128
    if not 0 < int(source) <= width or int(destination or 0) > width or parts and (int(parts) != PARTS or int(part) >= PARTS):
        return None
    shape = Shape(int(family), int(source), int(destination) if destination else None, {None: "", "proto": "one", "tcpudp": "tcp/udp"}[protocol],
                  bool(port), interface or "")
    return shape, int(part or 0), int(parts or 1)


def part_name(shape, part, parts):
    return shape_name(shape, f"{part}of{parts}" if parts > 1 else "")


def cut(address, bits):
    """The address with all beyond the first bits zero."""
    width = len(address) * 8
    return (int.from_bytes(address, "big") >> width - bits << width - bits).to_bytes(len(address), "big")


def prefix(value):
    """(address, bits) of a canonical address or prefix, else None."""
    address, slash, bits = value.partition("/")
    found = packed(address)
    if found is None or unpacked(found) != address:
        return None
    width = len(found) * 8
    if not slash:
        return found, width
    if not (bits.isdecimal() and bits[0] != "0" and int(bits) < width) or cut(found, int(bits)) != found:
        return None
    return found, int(bits)


def written(address, bits):
    return unpacked(address) if bits == len(address) * 8 else f"{unpacked(address)}/{bits}"


def key_text(shape, key):
    """An entry's first five columns."""
    size = 4 if shape.family == 4 else 16
    at = size
    columns = [written(key[:size], shape.source), "-", "-", "-", shape.interface or "-"]
    if shape.destination is not None:
        columns[1] = written(key[at:at + size], shape.destination)
        at += size
    if shape.protocol == "tcp/udp":
        columns[2] = "tcp/udp"
    elif shape.protocol:
        code = key[at]
        columns[2] = next((name for name, value in PROTOCOLS.items() if value == code), str(code)) if code != 58 else "icmp"
        at += 4
    if shape.port:
        columns[3] = str(int.from_bytes(key[at:at + 2], "big"))
    return " ".join(columns)


class Desired:
    """What is wanted: shapes: shape → {key: number of its line}, ends: by line, as the kernel should keep them; and what is rejected."""

    def __init__(self, data, protected, known_interfaces, now, check=True):
        self.protected, self.interfaces, self.now, self.check = protected if check else frozenset(), known_interfaces, now, check
        self.shapes, self.rejected, self.groups, self.cut = {}, [], {}, {}
        self.clean = not data.translate(None, BYTES)
        self.lines = data.decode("ascii", "replace").split("\n")
        if self.lines[-1] == "":
            self.lines.pop()
        self.ends = [NEVER] * len(self.lines)
        self.heads = [""] * len(self.lines)  # the first five columns
        self.parse()

    def parse(self):
        pton, inet, inet6 = socket.inet_pton, socket.AF_INET, socket.AF_INET6
        protected, ends, heads, clean = self.protected, self.ends, self.heads, self.clean
        soonest = int(self.now) + LEAST
        single = {}, {}  # columns after the source → (keys of its shape, end of the key), for single addresses of IPv4 and of IPv6
        for i, line in enumerate(self.lines):
            head, _, end = line.rpartition(" ")
            source, _, rest = head.partition(" ")
            six = ":" in source
            known = single[six].get(rest)
            if known and clean:
                try:
                    address = pton(inet6 if six else inet, source)
                except OSError:
                    address = None  # a prefix, or none at all
                if address is None or address in protected or six and unpacked(address) != source:
                    known = None
            if not (known and clean):
                known, address = self.one(i, line, source, rest, end, single[six])
                if known is None:
                    continue
            keys, suffix = known
            stop = NEVER if end == "-" else int(end) if end.isdecimal() else -1
            if stop < soonest:
                if stop <= self.now:
                    self.reject(i, "malformed" if stop < 0 else "expired")
                    continue
                stop = soonest
            key = address + suffix
            if key in keys and ends[keys[key]] >= stop:  # a file written by hand: the one that ends later stands for both
                continue
            keys[key] = i
            ends[i] = stop
            heads[i] = head

    def one(self, i, line, source, rest, end, single):
        """((keys, end of the key), address) of a line that is looked at closely; (None, None) when it is rejected."""
        if not rest or end != "-" and not end.isdecimal() or not self.clean and line.encode("ascii", "replace").translate(None, BYTES):
            return self.reject(i, "malformed")
        whole = prefix(source)
        if whole is None:
            return self.reject(i, "malformed")
        address, bits = whole
        family = 4 if len(address) == 4 else 6
        if (rest, family) not in self.groups:
            self.groups[rest, family] = self.group(rest, family, self.check)
        group = self.groups[rest, family]
        if isinstance(group, str):
            return self.reject(i, group)
        if (len(address), bits) not in self.cut:
            self.cut[len(address), bits] = {cut(one, bits) for one in self.protected if len(one) == len(address)}
        if address in self.cut[len(address), bits]:
            return self.reject(i, "source_protected")
        shape, suffix = group
        known = self.shapes.setdefault(shape._replace(source=bits), {}), suffix
        if bits == len(address) * 8:
            single[rest] = known
        return known, address

    def reject(self, i, code):
        self.rejected.append({"line": i + 1, "code": code})
        return None, None

    def group(self, rest, family, check):
        """What the columns after the source come to, once for all lines that share them: a code, or (shape without source, end of the key)."""
        columns = rest.split(" ")
        if len(columns) != 4:
            return "malformed"
        destination, protocol, port, interface = columns
        bits, suffix = None, b""
        if protocol != "-" and protocol != "tcp/udp" and protocol not in PROTOCOLS:
            return "unsupported_protocol" if protocol and len(protocol) <= 16 and protocol.replace("-", "").replace("/", "").isalnum() else "malformed"
        if port != "-" and (protocol not in PORTS or not port.isdecimal() or port[0] == "0" or int(port) > 65535):
            return "malformed"
        if destination != "-":
            whole = prefix(destination)
            if whole is None:
                return "malformed"
            suffix, bits = whole
            if len(suffix) != (4 if family == 4 else 16):
                return "family_mismatch"
        if interface != "-" and (not 0 < len(interface) < 16 or check and interface not in self.interfaces):
            return "unknown_interface" if interface else "malformed"
        if protocol in PROTOCOLS:
            suffix += bytes([58 if protocol == "icmp" and family == 6 else PROTOCOLS[protocol], 0, 0, 0])
        if port != "-":
            suffix += int(port).to_bytes(2, "big") + b"\0\0"
        kind = "tcp/udp" if protocol == "tcp/udp" else "one" if protocol != "-" else ""
        return Shape(family, 0, bits, kind, port != "-", interface if interface != "-" else ""), suffix

    def limit(self, max_rules, capacity, standing):
        """Takes out what there is no room for; what stands already keeps its place. standing: shape → keys."""
        self.shapes = {shape: keys for shape, keys in self.shapes.items() if keys}
        if len(self.shapes) > max_rules:
            order = sorted(self.shapes, key=lambda shape: (shape not in standing, shape_name(shape)))
            for shape in order[max_rules:]:
                for i in self.shapes.pop(shape).values():
                    self.reject(i, "max_rules")
        over = sum(map(len, self.shapes.values())) - capacity
        for newcomers in (True, False):
            for shape, keys in self.shapes.items():
                if over <= 0:
                    break
                loaded = standing.get(shape, {})
                for key in [key for key in reversed(keys) if not newcomers or key not in loaded][:over]:
                    self.reject(keys.pop(key), "capacity")
                    over -= 1
        self.shapes = {shape: keys for shape, keys in self.shapes.items() if keys}
        self.rejected.sort(key=lambda reject: reject["line"])

    def texts(self):
        """shape → {key: first five columns}"""
        heads = self.heads
        return {shape: {key: heads[i] for key, i in keys.items()} for shape, keys in self.shapes.items()}

    def accepted(self):
        """The lines that are to be in force, for the boot."""
        return "".join(f"{self.lines[i]}\n" for keys in self.shapes.values() for i in keys.values()).encode()


def exemptions(data):
    """Exempt shapes: (family, bits) → addresses; a line that is no canonical address or prefix ends the run, as nobody would know of it."""
    found = {}
    for line in data.decode("ascii", "replace").splitlines():
        whole = prefix(line)
        if whole is None:
            raise Failure("bad_desired", f"parry_exempt_file holds {line[:80]!r}, which is no canonical address or prefix")
        found.setdefault((4 if len(whole[0]) == 4 else 6, whole[1]), set()).add(whole[0])
    return found
