"""The table `inet parry`: what it should look like, what it does look like, and the transaction that makes one of the other.

prerouting (before connection tracking and NAT) ── exempt ── sources ── flows
input, forward (behind destination NAT)         ── exempt ───────────── flows

Chain sources has the shapes that look at the source alone, flows those with a destination or a port: a packet is held to these twice, with the
destination that it came with and with the one that NAT gave it, so that either may be named. Rules look at nothing but the packet, so that a
connection that stands is cut like a new one.
"""
IPV4, IPV6 = 7, 8  # nft's types of keys, so that it can list them
INET_PROTOCOL, INET_SERVICE = 12, 13
TYPE_BITS = 6
TIME_LEFT = struct.Struct(">Q")  # milliseconds
VERDICT = 0xFFFFFF00
MAP, TIMEOUT = 0x8, 0x10
BASES = {"prerouting": (0, -310), "input": (1, -10), "forward": (2, -10)}
SPLIT, WHOLE = 4096, 1024  # entries of one shape beyond which it is split into PARTS sets, below which it is whole again


def parts_for(count, now):
    """One large set cannot be read back in time: the kernel goes through it from its start for every 32 KiB."""
    return PARTS if count > SPLIT or now == PARTS and count >= WHOLE else 1


def part_of(shape, key, parts):
    """Which of the sets a key belongs to: the last bits of its source decide."""
    size = 4 if shape.family == 4 else 16
    return (int.from_bytes(key[:size], "big") >> size * 8 - shape.source) % parts


def strangers(shape, part, parts, keys):
    """Keys in a part that they do not belong to."""
    if shape.source % 8 == 0:
        last = shape.source // 8 - 1
        if parts <= 256 and all(byte % parts == part for byte in {key[last] for key in keys}):
            return set()
    return {key for key in keys if part_of(shape, key, parts) != part}


def exempt_name(family, bits):
    return f"{EXEMPT}ip{family}_{bits}"


def is_flow(shape):
    return shape.destination is not None or shape.port


def masked(offset, size, bits, word):
    length = size * 8
    net = (((1 << bits) - 1) << length - bits).to_bytes(size, "big")
    return payload(1, offset, size, word) + (mask(net, word) if bits < length else b"")


def family_rule(family):
    return meta(15) + equals(b"\x02" if family == 4 else b"\x0a")


def matches(shape):
    """What leads to the lookup of a key: one expression list, or one each for tcp and udp."""
    size, at = (4, 12) if shape.family == 4 else (16, 8)
    head = family_rule(shape.family)
    if shape.interface:
        head += meta(6) + equals(shape.interface.encode().ljust(16, b"\0"))
    key, word = masked(at, size, shape.source, 0), size // 4
    if shape.destination is not None:
        key += masked(at + size, size, shape.destination, word)
        word += size // 4
    if shape.protocol == "one":
        key += meta(16, word)
        word += 1
    if shape.port:
        key += payload(2, 2, 2, word)
    if shape.protocol == "tcp/udp":
        return [head + meta(16) + equals(bytes([code])) + key for code in (6, 17)]
    return [head + key]


def key_type(shape):
    kind, size = (IPV4, 4) if shape.family == 4 else (IPV6, 16)
    length = size
    if shape.destination is not None:
        kind, length = kind << TYPE_BITS | kind & 63, length + size
    if shape.protocol == "one":
        kind, length = kind << TYPE_BITS | INET_PROTOCOL, length + 4
    if shape.port:
        kind, length = kind << TYPE_BITS | INET_SERVICE, length + 4
    return kind, length


class Layout:
    """The sets, maps, chains and rules for shapes, each in so many parts, and for exemptions."""

    def __init__(self, shapes, exempt):
        self.shapes, self.exempt = shapes, exempt
        self.sets = {}  # name → (flags, type of key, length of key, type of data)
        self.maps = {}  # name → {key: chain}
        self.rules = {name: [] for name in (*BASES, "exempt", "sources", "flows")}  # chain → [expressions]
        self.uses = {}  # shape or exemption → the (chain, rule) pairs that it takes
        for family, bits in sorted(exempt):
            name = exempt_name(family, bits)
            self.sets[name] = (0, IPV4 if family == 4 else IPV6, 4 if family == 4 else 16, 0)
            self.rule((family, bits), "exempt", matches(Shape(family, bits, None, "", False, ""))[0] + lookup(name) + immediate(ACCEPT))
        for shape in sorted(shapes, key=shape_name):
            self.shape(shape, shapes[shape])
        for base in BASES:
            for chain in ("exempt", "sources", "flows") if base == "prerouting" else ("exempt", "flows"):
                self.rules[base].append(immediate(JUMP, chain))

    def shape(self, shape, parts):
        chain, (kind, length) = "flows" if is_flow(shape) else "sources", key_type(shape)
        if parts == 1:
            name = shape_name(shape)
            self.sets[name] = (TIMEOUT, kind, length, 0)
            for match in matches(shape):
                self.rule(shape, chain, match + lookup(name) + immediate(DROP))
            return
        name, size, at = shape_name(shape, "parts"), *((4, 12) if shape.family == 4 else (16, 8))
        shift = size * 8 - shape.source
        self.sets[name] = (MAP, kind, length, VERDICT)
        self.maps[name] = {}
        head = matches(shape._replace(source=size * 8))[0]
        self.rule(shape, chain, head + mask((parts - 1 << shift).to_bytes(size, "big")) + verdict_of(name))
        for part in range(parts):
            each = part_name(shape, part, parts)
            self.sets[each] = (TIMEOUT, kind, length, 0)
            self.maps[name][(part << shift).to_bytes(size, "big")] = each
            self.rules[each] = []
            self.rule(shape, each, family_rule(shape.family) + masked(at, size, shape.source, 0) + lookup(each) + immediate(DROP))

    def rule(self, user, chain, expressions):
        self.rules[chain].append(expressions)
        self.uses.setdefault(user, []).append((chain, canonical(expressions)))


# ---- what is loaded ----

def element(key, timeout=False, counted=None):
    """A timeout is zero until `timed` puts it in."""
    parts = [nested(1, attribute(1, key))]
    if timeout:
        parts.append(attribute(4, bytes(8)))
    if counted and any(counted):
        parts.append(counter(*counted))
    return nested(1, *parts)


def timed(elements, ends, now):
    """A list of elements with their timeouts. ends: (where the timeout stands, end)."""
    elements = bytearray(elements)
    for at, end in ends:
        TIME_LEFT.pack_into(elements, at, max(1000, int((end - now) * 1000)))
    return bytes(elements)


def plain_elements(data):
    """(key, milliseconds left or None, packets, bytes, data) of each element, whatever it has."""
    for _, one in attributes(data):
        fields = dict(attributes(one))
        key = bytes(dict(attributes(fields[1]))[1])
        left = struct.unpack(">Q", fields[5])[0] if 5 in fields else None
        packets = octets = 0
        if 7 in fields:
            said = dict(attributes(dict(attributes(fields[7])).get(2, b"")))
            octets, packets = (struct.unpack(">Q", said[kind])[0] if kind in said else 0 for kind in (1, 2))
        yield key, left, packets, octets, fields.get(2)


class Like:
    """Reads lists whose elements all look like the first one, with a timeout and a counter, in one go."""

    def __init__(self, one):
        self.first, self.size, self.format, self.fixed = one, len(one), "", []
        try:
            self.walk(one, 0, len(one), (0,))
            self.struct = struct.Struct(">" + self.format)
            self.ok = self.struct.size == self.size and self.format.count("Q") == 4
        except (KeyError, struct.error):
            self.ok = False

    NESTS = {(0,), (0, 1), (0, 1, 1), (0, 1, 7), (0, 1, 7, 2)}
    VALUES = {(0, 1, 1, 1), (0, 1, 7, 2, 1), (0, 1, 7, 2, 2), (0, 1, 5), (0, 1, 4)}

    def walk(self, data, at, end, path):
        while at + 4 <= end:
            length, kind = ATTRIBUTE.unpack_from(data, at)
            here = (*path, kind & 0x3FFF)
            self.fixed += range(at, at + 4)
            self.format += "4x"
            padded = (length + 3) & ~3
            if here in self.NESTS:
                self.walk(data, at + 4, at + length, here)
            elif here in self.VALUES:
                self.format += f"{length - 4}s" if here == (0, 1, 1, 1) else "Q"
                self.format += f"{padded - length}x" if padded > length else ""
            else:
                self.fixed += range(at + 4, at + length)
                self.format += f"{padded - 4}x"
            at += max(4, padded)

    def columns(self, data):
        """keys, bytes, packets, timeouts, milliseconds left; None when the elements do not all look like the first."""
        count, rest = divmod(len(data), self.size)
        if not self.ok or rest or any(data[at::self.size] != self.first[at:at + 1] * count for at in self.fixed):
            return None
        return list(zip(*self.struct.iter_unpack(data)))


def read_elements(tables, name):
    """[keys], [ends as Unix seconds or NEVER], [packets], [bytes] of a set of entries."""
    keys, ends, packets, octets = [], [], [], []
    like = None
    for data in tables.elements(name):
        if not data:
            continue
        now = time.time()
        columns = None
        if like is None:
            like = Like(data[:(ATTRIBUTE.unpack_from(data)[0] + 3) & ~3])
        if like.ok:
            columns = like.columns(data)
        if columns:
            keys += columns[0]
            octets += columns[1]
            packets += columns[2]
            ends += [now + left / 1000 for left in columns[4]]
            continue
        for key, left, count, size, _ in plain_elements(data):
            keys.append(key)
            ends.append(NEVER if left is None else now + left / 1000)
            packets.append(count)
            octets.append(size)
    return keys, ends, packets, octets


class Loaded:
    """The table as it is. elements: name of a set of entries → columns; shapes: shape → how many sets it is in."""

    def __init__(self, tables, before=None, written=()):
        self.generation = tables.generation()
        # Nobody else has changed anything since `before` was read and our own transaction made the next generation: what that did not touch is
        # as it was read.
        keep = before if before and self.generation == (before.generation + 1) & 0xFFFFFFFF else None
        found = tables.ask(NFT | GETTABLE, of_table())
        self.exists = found is not None
        self.dormant = self.exists and any(dict(attributes(found[4:])).get(2, b""))
        self.sets, self.chains, self.rules, self.elements, self.maps, self.exempt = {}, {}, {}, {}, {}, {}
        self.misplaced = []  # (set, key) where nobody looks for it
        self.by_shape = {}
        if self.exists:
            self.read(tables, keep, written)
        if tables.generation() != self.generation:
            raise Changed
        self.shapes = {}
        for name in self.elements:
            shape, _, parts = named_shape(name)
            self.shapes[shape] = max(parts, self.shapes.get(shape, 0))
        self.layout = Layout(self.shapes, set(self.exempt))
        self.sound = self.is_sound()

    def read(self, tables, keep, written):
        def value(found, kind):
            return int.from_bytes(found.get(kind, b""), "big")
        for found in tables.list(GETCHAIN):
            hook = dict(attributes(found[4])) if 4 in found else None
            self.chains[words(found[3])] = (value(hook, 1), struct.unpack(">i", hook[2])[0], words(found.get(7, b"")), value(found, 5)) if hook else None
        for found in tables.list(GETRULE):
            self.rules.setdefault(words(found[2]), []).append(canonical(found.get(4, b"")))
        for found in tables.list(GETSET):
            self.sets[words(found[2])] = (value(found, 3), value(found, 4), value(found, 5), value(found, 6))
        for name, (flags, _, length, _) in self.sets.items():
            shape = named_shape(name)
            if flags & MAP:
                self.maps[name] = {key: words(dict(attributes(dict(attributes(data)).get(2, b""))).get(2, b"")) if data else ""
                                   for part in tables.elements(name) for key, _, _, _, data in plain_elements(part)}
            elif name.startswith(EXEMPT):
                kind = named_shape(name[len(EXEMPT):])
                if kind and name == exempt_name(kind[0].family, kind[0].source) and self.sets[name] == (0, *key_type(kind[0]), 0):
                    self.exempt[kind[0].family, kind[0].source] = {
                        key for part in tables.elements(name) for key, *_ in plain_elements(part)}
            elif shape and self.sets[name] == (TIMEOUT, *key_type(shape[0]), 0):
                if keep and name in keep.elements and name not in written:
                    self.elements[name] = keep.elements[name]
                    continue
                for _ in range(40):  # a hash table that grows or shrinks under the reader shows an element twice and another one not
                    columns = read_elements(tables, name)
                    if len(set(columns[0])) == len(columns[0]):
                        break
                    time.sleep(0.01)
                shape, part, parts = shape
                lost = strangers(shape, part, parts, columns[0]) if parts > 1 else ()
                if lost:
                    self.misplaced += [(name, key) for key in lost]
                    columns = [list(column) for column in zip(*(row for row in zip(*columns) if row[0] not in lost))] or [[], [], [], []]
                self.elements[name] = columns

    def is_sound(self):
        """Whether only rules, sets and elements of ours can be missing or wrong; else the table is made anew."""
        layout = self.layout
        return (self.exists and not self.dormant
                and all(layout.sets.get(name) == kind for name, kind in self.sets.items()) and set(layout.sets) == set(self.sets)
                and set(layout.rules) == set(self.chains) and all(self.chains[name] == self.base(name) for name in self.chains)
                and all(self.maps.get(name) == kind for name, kind in layout.maps.items()))

    @staticmethod
    def base(name):
        return (*BASES[name], "filter", 1) if name in BASES else None

    def standing(self):
        """The shapes and exemptions whose rules all stand, with nothing of others ahead of them."""
        expected = {name: {canonical(rule) for rule in rules} for name, rules in self.layout.rules.items()}
        reached = {}
        for base in BASES:
            reached[base] = set()
            if self.chains.get(base) == self.base(base) and not self.dormant:
                self.walk(base, expected, reached[base])
        good = {}
        for user, uses in self.layout.uses.items():
            bases = BASES if not isinstance(user, Shape) or is_flow(user) else ("prerouting",)
            good[user] = all(use in reached[base] for use in uses for base in bases)
            if isinstance(user, Shape) and self.shapes[user] > 1:
                name = shape_name(user, "parts")
                good[user] &= self.maps.get(name) == self.layout.maps[name]
            elif not isinstance(user, Shape):
                first = (canonical(immediate(JUMP, "exempt")),)
                good[user] &= all(tuple(self.rules.get(base, ())[:1]) == first for base in BASES)
        return {user for user, stands in good.items() if stands}

    def walk(self, chain, expected, reached):
        """Follows a packet; False when it meets a rule that is none of ours, behind which nothing is sure."""
        for rule in self.rules.get(chain, ()):
            if rule not in expected.get(chain, ()):
                return False
            reached.add((chain, rule))
            for target in self.targets(rule):
                if self.chains.get(target, 0) is not None or not self.walk(target, expected, reached):
                    return False
        return True

    def targets(self, rule):
        name, parts = rule[-1]
        fields = dict(parts)
        if name == "immediate":
            said = dict(fields.get(2, ())).get(2, ())
            chain = dict(said).get(2) if isinstance(said, tuple) else None
            return [chain.decode()] if chain else []
        if name == "lookup":
            return list(self.maps.get(words(fields[1]), {}).values())
        return []

    def keys(self, shape):
        """key → end, of all the sets of a shape."""
        if shape not in self.by_shape:
            found = self.by_shape[shape] = {}
            for columns in self.columns(shape):
                found.update(zip(columns[0], columns[1]))
        return self.by_shape[shape]

    def columns(self, shape):
        parts = self.shapes.get(shape, 0)
        return [self.elements[name] for name in (part_name(shape, part, parts) for part in range(parts)) if name in self.elements]

    def counters(self, shape):
        """key → (packets, bytes)"""
        found = {}
        for columns in self.columns(shape):
            found.update(zip(columns[0], zip(columns[2], columns[3])))
        return found


# ---- the transaction ----

def batches(elements):
    """Lists of elements, each short enough for the length of an attribute."""
    for i in range(0, len(elements), 400):
        yield elements[i:i + 400]


def elements_message(name, elements):
    for some in batches(elements):
        yield text(2, name), nested(3, *some)


class Change:
    """What makes the loaded table the wanted one. added, removed, refreshed (they get another end): (shape, key)."""

    def __init__(self, loaded, desired, exempt):
        self.loaded, self.desired = loaded, desired
        self.exempt = loaded.exempt if exempt is None else exempt
        shapes = {shape: parts_for(len(keys), loaded.shapes.get(shape)) for shape, keys in desired.shapes.items()}
        self.layout = Layout(shapes, {kind for kind, addresses in self.exempt.items() if addresses})
        self.anew = not loaded.sound
        self.missing, self.dead, self.removed, self.refreshed = [], [], [], []
        standing = loaded.standing()
        for shape in {**loaded.shapes, **shapes}:
            self.compare(shape, loaded.keys(shape), desired.shapes.get(shape, {}), shape in standing)
        self.added = self.missing + self.dead
        self.exempt_changed = {kind for kind in {**loaded.exempt, **self.exempt} if loaded.exempt.get(kind, set()) != self.exempt.get(kind, set())}
        self.structure = (self.anew or self.layout.sets != loaded.layout.sets
                          or any([canonical(rule) for rule in rules] != loaded.rules.get(name, []) for name, rules in self.layout.rules.items()))

    def compare(self, shape, have, want, stands):
        ends, now = self.desired.ends, self.desired.now
        if have.keys() != want.keys():
            self.removed += [(shape, key) for key in have if key not in want]
        if not stands:  # in the sets perhaps, and yet not in force
            self.dead += [(shape, key) for key in want if key in have]
        ends, now = self.desired.ends, self.desired.now
        for key, i in [pair for pair in want.items() if not -SLACK <= ends[pair[1]] - have.get(pair[0], 0) <= SLACK]:
            if key not in have:
                self.missing.append((shape, key))
            elif not (ends[i] <= now + LEAST and 0 <= have[key] - now <= LEAST + SLACK):  # its end was put off by as much before
                self.refreshed.append((shape, key))

    def __bool__(self):
        return bool(self.structure or self.added or self.removed or self.refreshed or self.exempt_changed or self.loaded.misplaced)

    def commit(self, tables):
        """Writes it; the names of the sets of entries that were written to."""
        tables.batch.clear()
        if self.anew:
            written = self.make(tables)
        else:
            written = self.amend(tables)
        tables.commit(self.loaded.generation)
        return written

    def make(self, tables):
        if self.loaded.exists:
            tables.add(DELTABLE)
        tables.add(NEWTABLE, number(2, 0), flags=CREATE)
        self.new_chains(tables, self.layout.rules)
        self.new_sets(tables, self.layout.sets)
        self.new_rules(tables, self.layout.rules)
        for shape, keys in self.desired.shapes.items():
            self.fill(tables, shape, keys)
        for kind in self.exempt:
            self.fill_exempt(tables, kind)
        return set(self.layout.sets)

    def amend(self, tables):
        loaded, layout = self.loaded, self.layout
        old_sets, old_chains = set(loaded.sets) - set(layout.sets), set(loaded.chains) - set(layout.rules)
        self.new_chains(tables, {name for name in layout.rules if name not in loaded.chains})
        self.new_sets(tables, {name for name in layout.sets if name not in loaded.sets})
        rewrite = {name for name, rules in layout.rules.items() if [canonical(rule) for rule in rules] != loaded.rules.get(name, [])}
        for name in rewrite | old_chains:
            if loaded.rules.get(name):
                tables.add(DELRULE, text(2, name))
        self.new_rules(tables, rewrite)
        written = set()
        gone, come = {}, {}
        for shape, key in self.removed:
            gone.setdefault(shape, []).append(key)
        for shape, key in self.refreshed:
            gone.setdefault(shape, []).append(key)
            come.setdefault(shape, []).append(key)
        for shape, key in self.missing:
            come.setdefault(shape, []).append(key)
        for name, key in loaded.misplaced:
            for message in elements_message(name, [element(key)]):
                tables.add(DELELEMENT, *message)
            written.add(name)
        for shape in {**gone, **come}:
            parts, was = layout.shapes.get(shape), loaded.shapes.get(shape)
            if parts != was:  # into new sets with all of them, while the old ones go
                if parts:
                    self.fill(tables, shape, self.desired.shapes[shape])
                    written |= {part_name(shape, part, parts) for part in range(parts)}
                continue
            have = loaded.keys(shape)
            written |= self.elements(tables, DELELEMENT, shape, parts, [key for key in gone.get(shape, []) if key in have], lambda key: (element(key), NEVER))
            written |= self.fill(tables, shape, come.get(shape, []))
        for shape, parts in layout.shapes.items():
            if shape not in gone and shape not in come and loaded.shapes.get(shape) != parts:
                self.fill(tables, shape, self.desired.shapes[shape])
                written |= {part_name(shape, part, parts) for part in range(parts)}
        for kind in self.exempt_changed:
            name = exempt_name(*kind)
            extra = loaded.exempt.get(kind, set()) - self.exempt.get(kind, set())
            if name in layout.sets and extra:
                for message in elements_message(name, [element(key) for key in extra]):
                    tables.add(DELELEMENT, *message)
            self.fill_exempt(tables, kind)
        for name in sorted(old_sets, key=lambda name: name not in loaded.maps):  # a map holds chains
            tables.add(DELSET, text(2, name))
        for name in old_chains:
            tables.add(DELCHAIN, text(3, name))
        return written

    def new_chains(self, tables, names):
        for name in names:
            hook = []
            if name in BASES:
                number_, priority = BASES[name]
                hook = [nested(4, number(1, number_), number(2, priority)), number(5, 1), text(7, "filter")]
            tables.add(NEWCHAIN, text(3, name), *hook, flags=CREATE)

    def new_sets(self, tables, names):
        for i, name in enumerate(names):
            flags, kind, length, data = self.layout.sets[name]
            more = [number(6, data), number(7, 16)] if data else []
            if flags & TIMEOUT:
                more.append(nested(17, text(1, "counter")))
            tables.add(NEWSET, text(2, name), number(3, flags), number(4, kind), number(5, length), *more, number(10, i + 1), flags=CREATE)
        for name in names:
            if name in self.layout.maps:
                elements = [nested(1, nested(1, attribute(1, key)), nested(2, verdict(JUMP, chain))) for key, chain in self.layout.maps[name].items()]
                for message in elements_message(name, elements):
                    tables.add(NEWELEMENT, *message, flags=CREATE)

    def new_rules(self, tables, names):
        for name in names:
            for rule in self.layout.rules[name]:
                tables.add(NEWRULE, text(2, name), nested(4, rule), flags=CREATE | APPEND)

    def fill(self, tables, shape, keys):
        """Puts keys into their sets, with the time that each has left and what it has counted so far."""
        have, want, ends = self.loaded.keys(shape), self.desired.shapes[shape], self.desired.ends
        counted = self.loaded.counters(shape) if any(key in have for key in keys) else {}

        def made(key):
            end = ends[want[key]]
            return element(key, end != NEVER, counted.get(key)), end
        return self.elements(tables, NEWELEMENT, shape, self.layout.shapes[shape], keys, made)

    def elements(self, tables, kind, shape, parts, keys, made):
        """made: key → element and end. What is left until the end is reckoned at the last moment: it can take seconds to make 100,000 elements."""
        by_part = {}
        for key in keys:
            by_part.setdefault(part_of(shape, key, parts) if parts > 1 else 0, []).append(made(key))
        names = set()
        for part, elements in by_part.items():
            name = part_name(shape, part, parts)
            names.add(name)
            for some in batches(elements):
                ends, at = [], 4 + 16 + key_type(shape)[1]
                for one, end in some:
                    if end != NEVER:
                        ends.append((at, end))
                    at += len(one)
                tables.add(kind, text(2, name), functools.partial(timed, nested(3, *[one for one, _ in some]), ends), flags=CREATE if kind == NEWELEMENT else 0)
        return names

    def fill_exempt(self, tables, kind):
        name = exempt_name(*kind)
        missing = self.exempt.get(kind, set()) - (set() if self.anew else self.loaded.exempt.get(kind, set()))
        if missing:
            for message in elements_message(name, [element(key) for key in sorted(missing)]):
                tables.add(NEWELEMENT, *message, flags=CREATE)
