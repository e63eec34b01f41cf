"""Netlink: how the program speaks with the kernel, about tables, connections, addresses and routes. No other program is run for it.

Rules are written and read as the kernel's own expressions and not as text of nft, whose wording changes with its version; and 100,000
elements are read in a fraction of the time that nft takes to print them. `nft list table inet parry` shows all of it as usual.
"""
import errno
import functools
import gc
import socket
import struct
import time

gc.disable()  # nothing here lives long; looking through 100,000 entries for cycles takes longer than all the rest

NETLINK_ROUTE, NETLINK_NETFILTER = 0, 12
REQUEST, ACK, DUMP, CREATE, APPEND = 0x1, 0x4, 0x300, 0x400, 0x800
DUMP_INTERRUPTED = 0x10
ERROR, DONE = 2, 3
NESTED = 0x8000
HEADER = struct.Struct("=IHHII")
ATTRIBUTE = struct.Struct("=HH")


class Changed(Exception):
    """Somebody changed the ruleset while it was read or before it was written: to be read again."""


def attribute(kind, data):
    return ATTRIBUTE.pack(4 + len(data), kind) + data + bytes(-len(data) % 4)


def nested(kind, *parts):
    return attribute(kind | NESTED, b"".join(parts))


def text(kind, value):
    return attribute(kind, value.encode() + b"\0")


def number(kind, value):
    return attribute(kind, struct.pack(">I", value & 0xFFFFFFFF))


def attributes(data):
    """(kind, payload) of each attribute."""
    at, end = 0, len(data)
    while at + 4 <= end:
        length, kind = ATTRIBUTE.unpack_from(data, at)
        if length < 4:
            return
        yield kind & 0x3FFF, data[at + 4:at + length]
        at += (length + 3) & ~3


def words(value):
    return bytes(value).split(b"\0", 1)[0].decode("utf-8", "replace")


class Netlink:
    def __init__(self, protocol):
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 21)
        self.socket.bind((0, 0))
        self.sequence = 1

    def send(self, kind, flags, body):
        self.sequence += 1
        self.socket.sendto(HEADER.pack(16 + len(body), kind, REQUEST | flags, self.sequence, 0) + body, (0, 0))
        return self.sequence

    def replies(self, sequence):
        """(kind, payload) of each message that answers, until the last; a failure is an OSError."""
        while True:
            data = self.socket.recv(1 << 17)
            at = 0
            while at + 16 <= len(data):
                length, kind, flags, answers, _ = HEADER.unpack_from(data, at)
                payload = data[at + 16:at + length]
                at += (length + 3) & ~3
                if answers != sequence:
                    continue
                if flags & DUMP_INTERRUPTED:
                    raise Changed
                if kind == DONE:
                    return
                if kind == ERROR:
                    code = -struct.unpack_from("=i", payload)[0]
                    if code:
                        raise OSError(code, errno.errorcode.get(code, str(code)))
                    return
                yield kind, payload

    def dump(self, kind, body):
        return self.replies(self.send(kind, DUMP, body))

    def ask(self, kind, body):
        """The one answer to a request; None when there is no such thing."""
        try:
            answer = list(self.replies(self.send(kind, ACK, body)))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return answer[0][1] if answer else None


# ---- nf_tables (linux/netfilter/nf_tables.h) ----

TABLE = "parry"
INET = 1
NFT = 10 << 8
(NEWTABLE, GETTABLE, DELTABLE, NEWCHAIN, GETCHAIN, DELCHAIN, NEWRULE, GETRULE, DELRULE, NEWSET, GETSET, DELSET, NEWELEMENT, GETELEMENT,
 DELELEMENT, NEWGEN, GETGEN) = range(17)
BATCH_BEGIN, BATCH_END = 0x10, 0x11


def of_table(*parts):
    return struct.pack(">BBH", INET, 0, 0) + text(1, TABLE) + b"".join(parts)


class Tables(Netlink):
    def __init__(self):
        super().__init__(NETLINK_NETFILTER)
        self.batch = []
        self.took = self.pace = 0  # seconds of the last commit, and of each of its messages

    def generation(self):
        answer = self.ask(NFT | GETGEN, struct.pack(">BBH", 0, 0, 0))
        return struct.unpack(">I", dict(attributes(answer[4:]))[1])[0]

    def list(self, kind, *parts):
        """Attributes of each of the table's chains, rules or sets."""
        for _, payload in self.dump(NFT | kind, of_table(*parts)):
            found = dict(attributes(payload[4:]))
            if payload[0] == INET and words(found.get(1, b"")) == TABLE:
                yield found

    def elements(self, name):
        """The raw lists of a set's elements."""
        for _, payload in self.dump(NFT | GETELEMENT, of_table(text(2, name))):
            for kind, data in attributes(payload[4:]):
                if kind == 3:
                    yield data

    def add(self, kind, *parts, flags=0):
        """A part may be a function of the time at which it is sent, in Unix seconds."""
        self.batch.append((NFT | kind, flags, parts))

    def commit(self, generation):
        """Makes all that was added true at once, if the ruleset is still of this generation; Changed when it is not."""
        first, began = self.sequence + 1, time.time()
        now = began + self.pace * len(self.batch) / 2
        batch = [(kind, flags, of_table(*[part(now) if callable(part) else part for part in parts])) for kind, flags, parts in self.batch]
        self.batch.clear()
        messages = [(BATCH_BEGIN, 0, struct.pack(">BBH", 0, 0, 10) + number(1, generation))]
        messages += batch[:-1] + [(batch[-1][0], batch[-1][1] | ACK, batch[-1][2])]
        messages.append((BATCH_END, 0, struct.pack(">BBH", 0, 0, 10)))
        data = b"".join(
            HEADER.pack(16 + len(body), kind, REQUEST | flags, first + i, 0) + body + bytes(-len(body) % 4)
            for i, (kind, flags, body) in enumerate(messages))
        self.sequence += len(messages)
        self.socket.setsockopt(socket.SOL_SOCKET, 32, len(data) + (1 << 16))  # SO_SNDBUFFORCE: all of it is one message
        self.socket.sendto(data, (0, 0))
        while True:  # errors come before the acknowledgement, which is the last message's
            for answers, code in self.errors():
                if code in (errno.ERESTART, errno.ENOENT, errno.EEXIST, errno.EINTR):  # among others, an element that has ended meanwhile
                    raise Changed
                if code:
                    raise OSError(code, errno.errorcode.get(code, str(code)))
                if answers == first + len(batch):
                    self.took = time.time() - began
                    self.pace = self.took / len(batch)
                    return

    def errors(self):
        data, at = self.socket.recv(1 << 17), 0
        while at + 20 <= len(data):
            length, kind, _, answers, _ = HEADER.unpack_from(data, at)
            if kind == ERROR:
                yield answers, -struct.unpack_from("=i", data, at + 16)[0]
            at += (length + 3) & ~3


# ---- expressions: what a rule is made of ----

def expression(name, *parts):
    return nested(1, text(1, name), nested(2, *parts))


def register(word):
    """The kernel's name of the register that begins at this 32-bit word of those for data."""
    return 1 + word // 4 if word % 4 == 0 else 8 + word


def meta(key, word=0):
    return expression("meta", number(2, key), number(1, register(word)))


def payload(base, offset, length, word=0):
    return expression("payload", number(1, register(word)), number(2, base), number(3, offset), number(4, length))


def mask(value, word=0):
    return expression("bitwise", number(1, register(word)), number(2, register(word)), number(3, len(value)),
                      nested(4, attribute(1, value)), nested(5, attribute(1, bytes(len(value)))))


def equals(value, word=0):
    return expression("cmp", number(1, register(word)), number(2, 0), nested(3, attribute(1, value)))


def lookup(name):
    return expression("lookup", text(1, name), number(2, register(0)))


def verdict_of(name):
    return expression("lookup", text(1, name), number(2, register(0)), number(3, 0))


ACCEPT, DROP, JUMP = 1, 0, -3


def verdict(code, chain=""):
    return nested(2, number(1, code), *([text(2, chain)] if chain else []))


def immediate(code, chain=""):
    return expression("immediate", number(1, 0), nested(2, verdict(code, chain)))


def counter(packets, octets):
    return nested(7, text(1, "counter"), nested(2, attribute(1, struct.pack(">Q", octets)), attribute(2, struct.pack(">Q", packets))))


DATA = {"cmp": (3,), "bitwise": (4, 5), "immediate": (2,)}  # attributes that hold a value or a verdict


def canonical(expressions):
    """A rule in a form that can be compared: what is zero is left out, since the kernel says more of that than it was told."""
    rule = []
    for _, one in attributes(expressions):
        fields = dict(attributes(one))
        name = words(fields[1])
        parts = []
        for kind, value in attributes(fields.get(2, b"")):
            if kind in DATA.get(name, ()):
                value = tuple((k, tuple((n, bytes(v).rstrip(b"\0")) for n, v in attributes(v) if any(v)) if k == 2 else bytes(v))
                              for k, v in attributes(value) if any(v))
            else:
                value = bytes(value)
            if any(value):
                parts.append((kind, value))
        rule.append((name, tuple(sorted(parts))))
    return tuple(rule)
