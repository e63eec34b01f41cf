"""Connections that a new entry blocks are ended, so that nothing of them goes on elsewhere: in a flow table that passes the rules by, or at the other
end, whose answers nobody would drop."""
CT = 1 << 8
NEWFLOW, GETFLOW, DELFLOW = range(3)


def tuple_of(data):
    """(source, destination, protocol, source port, destination port) of one direction; ports 0 for protocols without."""
    fields = dict(attributes(data))
    addresses = dict(attributes(fields.get(1, b"")))
    said = dict(attributes(fields.get(2, b"")))
    pair = [addresses.get(kind) for kind in ((1, 2) if 1 in addresses else (3, 4))]
    return (*map(bytes, (part or b"" for part in pair)), said.get(1, b"\0")[0], *(int.from_bytes(said.get(kind, b""), "big") for kind in (2, 3)))


def views(original, reply):
    """The flow's packets as the table sees them: (source, destination, protocol, port), before and behind destination NAT, in both directions."""
    source, to, protocol, sport, dport = original
    back, back_to, _, back_sport, back_dport = reply
    yield source, to, protocol, dport
    yield source, back, protocol, back_sport
    yield back, back_to, protocol, back_dport
    yield back, source, protocol, sport


def key_for(shape, view):
    """The key that a packet would be looked up with; None when it cannot be of this shape."""
    source, destination, protocol, port = view
    if len(source) != (4 if shape.family == 4 else 16):
        return None
    key = cut(source, shape.source)
    if shape.destination is not None:
        key += cut(destination, shape.destination)
    if shape.protocol == "one":
        key += bytes([protocol, 0, 0, 0])
    elif shape.protocol and protocol not in (6, 17):
        return None
    if shape.port:
        key += port.to_bytes(2, "big") + b"\0\0"
    return key


def comes_from(address, routes):
    """The name of the interface towards an address."""
    if address not in routes:
        route = Netlink(NETLINK_ROUTE)
        try:
            body = struct.pack("=BBBBBBBBI", 2 if len(address) == 4 else 10, len(address) * 8, 0, 0, 0, 0, 0, 0, 0) + attribute(1, address)
            said = dict(attributes((route.ask(26, body) or bytes(12))[12:]))
            routes[address] = socket.if_indextoname(int.from_bytes(said[4], sys.byteorder)) if 4 in said else ""
        except OSError:
            routes[address] = ""
        finally:
            route.socket.close()
    return routes[address]


def kill_flows(added, exempt):
    """Ends the flows that the entries block, and no others; how many. None found is as good."""
    def passes(address):
        family = 4 if len(address) == 4 else 6
        return any(kind == family and cut(address, bits) in keys for (kind, bits), keys in exempt.items())
    wanted, routes, killed = {}, {}, 0
    for shape, key in added:
        wanted.setdefault(shape, set()).add(key)
    sources = {}  # (bytes of an address, bits) → sources that are cut off so: to pass over the many flows of others at once
    for shape, keys in wanted.items():
        size = 4 if shape.family == 4 else 16
        sources.setdefault((size, shape.source), set()).update(key[:size] for key in keys)
    flows, victims = Netlink(NETLINK_NETFILTER), []
    try:
        for _, payload_ in flows.dump(CT | GETFLOW, struct.pack(">BBH", 0, 0, 0)):
            fields = dict(attributes(payload_[4:]))
            if 1 not in fields or 2 not in fields:
                continue
            ends = [bytes(a) for way in (1, 2) for kind, part in attributes(fields[way]) if kind == 1 for _, a in attributes(part)]
            if not any(cut(a, bits) in found for (size, bits), found in sources.items() for a in ends if len(a) == size):
                continue
            both = tuple_of(fields[1]), tuple_of(fields[2])
            if any(key_for(shape, view) in keys and not passes(view[0]) and (not shape.interface or comes_from(view[0], routes) == shape.interface)
                   for view in views(*both) for shape, keys in wanted.items()):
                victims.append((payload_[0], b"".join(attribute(kind | (NESTED if kind == 1 else 0), fields[kind]) for kind in (1, 12, 18) if kind in fields)))
        for family, which in victims:
            try:
                list(flows.replies(flows.send(CT | DELFLOW, ACK, struct.pack(">BBH", family, 0, 0) + which)))
                killed += 1
            except OSError:
                pass  # it has ended by itself
    except (OSError, Changed):
        pass  # no connection tracking here: nothing to end
    finally:
        flows.socket.close()
    return killed
