"""The things that a run can be asked for: apply, verify, flush, and at boot restore."""
import hashlib

LOCK_SECONDS = {"apply": 20, "verify": 20, "flush": 5, "restore": 60}
TRIES = 8  # of a transaction that others get in the way of
ANSWER, LOADED = "PARRY-ANSWER ", "PARRY-LOADED"


def main(run, desired=b"", exempt=b"", program=b""):
    held = None
    try:
        if os.geteuid() != 0:
            raise Failure("internal", "nftables takes root's rights: set ansible_become for this host, or log in as root")
        tables = open_tables()
        if not run["check"]:
            held = lock(LOCK_SECONDS[run["mode"]])
            if held is None and run["mode"] == "flush":
                return answer(*flush_without_lock(run, tables))
            if held is None:
                raise Failure("busy", f"another parry run holds the host ({LOCK_SECONDS[run['mode']]} s waited); try again")
        if run["mode"] == "apply":
            result = apply(run, tables, desired, exempt if run["exempt"] else None, program)
        elif run["mode"] == "verify":
            result = verify(run, tables)
        else:
            result = flush(run, tables)
        return answer(*result)
    except Failure as failure:
        return answer({"failed": True, "msg": str(failure), "parry": {"failure": failure.code, **failure.facts}})
    except Exception as error:  # noqa: BLE001: whatever it is has to be told
        import traceback
        where = traceback.extract_tb(error.__traceback__)[-1]
        return answer({"failed": True, "msg": f"{type(error).__name__}: {error} (line {where.lineno} of the program, {where.name})", "parry": {"failure": "internal"}})


def open_tables():
    try:
        tables = Tables()
        tables.generation()
        return tables
    except OSError as error:
        raise Failure("unsupported_version", f"this kernel ({os.uname().release}) has no nf_tables that can be spoken to: {error}") from error


def answer(result, loaded=None):
    if loaded is not None:
        sys.stdout.write(f"{LOADED}\n{loaded}")
    sys.stdout.write(f"\n{ANSWER}{json.dumps(result)}\n")
    sys.stdout.flush()


def read_table(tables, *before):
    for _ in range(TRIES):
        try:
            return Loaded(tables, *before)
        except Changed:
            time.sleep(0.02)
    raise Failure("busy", "the ruleset is changed by somebody all the time, so that it cannot be read; try again")


# ---- the proof ----

def proof(loaded, texts=None):
    """What is in force, hashed. texts: shape → {key: first five columns}, to spare writing out what was read in."""
    standing = loaded.standing()
    lines = []
    for shape in loaded.shapes:
        if shape not in standing:
            continue
        known, keys = (texts or {}).get(shape, {}), loaded.keys(shape)
        if known.keys() == keys.keys():
            lines += known.values()
        else:
            lines += [known.get(key) or key_text(shape, key) for key in keys]
    lines.sort()
    exempt = sorted(written(key, kind[1]) for kind, keys in loaded.exempt.items() if kind in standing for key in keys)

    def digest(of):
        return hashlib.sha256("\n".join([*of, ""]).encode()).hexdigest()
    return {"sha256": digest(lines), "count": len(lines), "rules": len(standing & set(loaded.shapes)), "exempt_sha256": digest(exempt), "exempt_count": len(exempt)}


def facts_of(run, state, loaded, **more):
    told = {"added": 0, "removed": 0, "rejected": [], "capacity": run["capacity"], **more}
    return {**proof(loaded, told.pop("texts", None)), **told, "epoch": state["epoch"], "controller": state["controller"], "revision": state["revision"],
            "held": state["held"], "run_id": run["run_id"], **identity()}


def loaded_lines(loaded):
    standing, lines = loaded.standing(), []
    for shape in loaded.shapes:
        if shape in standing:
            for keys, ends, packets, octets in loaded.columns(shape):
                lines += [f"{key_text(shape, key)} {'-' if end == NEVER else round(end)} {count} {size}" for key, end, count, size in zip(keys, ends, packets, octets)]
    lines.sort(key=lambda line: line.rsplit(" ", 3)[0])
    return "".join(f"{line}\n" for line in lines)


def verify(run, tables):
    loaded = read_table(tables)
    told = facts_of(run, read_state(True), loaded, facts=facts())
    result = {"changed": False, "msg": f"{told['count']} entries in force in {told['rules']} sets", "parry": told}
    return result, loaded_lines(loaded) if run["loaded"] else None


# ---- apply ----

def claim(run, state):
    """Whose word counts here; the new state, not yet written."""
    if not run["adopt"]:
        who = {"controller": state["controller"], "epoch": state["epoch"]}
        if state["held"]:
            raise Failure("flushed", "flush.yml emptied this firewall and left a hold; adopt it (parry_adopt=true, parry firewalls adopt) to go on", **who)
        if state["controller"] not in ("", run["controller"]):
            raise Failure("foreign_controller", f"this firewall is held by controller {state['controller']}; adopt it (parry_adopt=true, "
                          "parry firewalls adopt) if that one is gone", **who)
        if run["epoch"] < state["epoch"]:
            raise Failure("stale_epoch", f"this run has epoch {run['epoch']}, the firewall knows {state['epoch']}: a newer controller is at work, "
                          "or this one was restored from a backup", **who)
        if run["sent_revision"] < state["revision"]:
            raise Failure("stale_revision", f"this firewall was brought to revision {state['revision']}, the controller knows of "
                          f"{run['sent_revision']} at most: it was restored from a backup, or this run is an old one", revision=state["revision"], **who)
    return {**state, "controller": run["controller"], "epoch": run["epoch"], "held": False, "revision": min(state["revision"], run["revision"])}


def apply(run, tables, data, exempt, program):
    known = read_state(run["adopt"])
    state = claim(run, known)
    protected = own_addresses() | gateways() | resolvers() | caller()
    names = interfaces()
    exempt = None if exempt is None else exemptions(exempt)
    for _ in range(TRIES):
        loaded = read_table(tables)
        desired = Desired(data, protected, names, time.time())
        desired.limit(run["max_rules"], run["capacity"], {shape: loaded.keys(shape) for shape in loaded.shapes})
        change = Change(loaded, desired, exempt)
        counts = {"added": len(change.added), "removed": len(change.removed), "refreshed": len(change.refreshed), "rejected": desired.rejected,
                  "texts": desired.texts()}
        difference = {"diff": diff(change)} if run["diff"] else {}
        if run["check"]:
            told = facts_of(run, known, loaded, **counts)
            return {"changed": bool(change), "msg": summary("would be ", told), "parry": told, **difference},
        if state != known:
            write_state(state)  # before any change: from here on an older epoch is refused
            known = state
        owed = still_owed(change, counts["texts"]) if run["kill"] else set()
        if change.added:
            write_owed(owed)
        if change:
            try:
                written_to = change.commit(tables)
            except Changed:
                claim(run, read_state(run["adopt"]))  # a flush that could not wait for us may have set a hold
                time.sleep(0.05)
                continue
            except OSError as error:
                raise Failure("pf_refused", f"the kernel did not take the change ({error}); nothing was changed") from error
            loaded = settled(tables, change, loaded, written_to)
            if tables.took > SLACK:
                loaded = punctual(tables, desired, exempt, loaded)
        ending = [(shape, key) for shape, keys in counts["texts"].items() for key, line in keys.items() if line in owed] if owed else []
        killed = kill_flows(ending, change.exempt) if ending else 0
        write_owed(set())
        kept = write_boot(program, desired.accepted(), b"".join(f"{line}\n".encode() for line in exempt_lines(change.exempt)))
        changed = bool(change) or kept
        if changed:
            state = {**state, "held": read_state(True)["held"], "run_id": run["run_id"], "revision": run["revision"]}
            write_state(state)
        told = facts_of(run, state, loaded, flows_killed=killed, **counts)
        return {"changed": changed, "msg": summary("", told), "parry": told, **difference},
    raise Failure("busy", "others change the ruleset all the time, so that no change of ours got in between; try again")


def still_owed(change, texts):
    """The first five columns of the entries whose connections are to be ended: what comes into force, and what runs loaded which broke off before
    that was done, unless it has gone meanwhile."""
    owed = read_owed()
    if owed:
        owed &= {line for keys in texts.values() for line in keys.values()} | {key_text(shape, key) for shape, key in change.removed}
    return owed | {texts[shape][key] for shape, key in change.added}


def settled(tables, change, before, written_to):
    """The table read back, once the sets that were written to have found their size: while they grow a reader may miss an element."""
    for _ in range(40):
        loaded = read_table(tables, before if not change.anew else None, written_to)
        if all(loaded.keys(shape).keys() == keys.keys() for shape, keys in change.desired.shapes.items()):
            break
        time.sleep(0.02)
    return loaded


def punctual(tables, desired, exempt, loaded):
    """On a busy host the kernel gets the last of 100,000 entries seconds later than their ends were reckoned for: those are set anew, at the pace
    that was seen."""
    for _ in range(TRIES):
        change = Change(loaded, desired, exempt)
        if not change.refreshed:
            break
        try:
            loaded = settled(tables, change, loaded, change.commit(tables))
        except Changed:
            break  # the next run does it
    return loaded


def exempt_lines(exempt):
    return sorted(written(key, kind[1]) for kind, keys in exempt.items() for key in keys)


def summary(mood, told):
    return (f"{told['added']} {mood}added, {told['removed']} removed, {told['refreshed']} with another end, {len(told['rejected'])} rejected; "
            f"{told['count']} in force in {told['rules']} sets")


def diff(change):
    """Up to 1000 entries in whole; beyond that only the lines that change, as a diff over 100,000 lines takes Ansible minutes."""
    def lines(pairs):
        return [key_text(shape, key) for shape, key in pairs]
    have = [(shape, key) for shape in change.loaded.standing() if isinstance(shape, Shape) for key in change.loaded.keys(shape)]
    want = [(shape, key) for shape, keys in change.desired.shapes.items() for key in keys]
    if len(have) + len(want) <= 2000:
        before, after = lines(have), lines(want)
    else:
        before, after = lines(change.removed[:1000]), lines(change.added[:1000])
    before += [f"exempt {line}" for line in exempt_lines({kind: change.loaded.exempt.get(kind, ()) for kind in change.exempt_changed})]
    after += [f"exempt {line}" for line in exempt_lines({kind: change.exempt.get(kind, ()) for kind in change.exempt_changed})]
    for shape, key in change.refreshed[:1000]:
        i = change.desired.shapes[shape][key]
        was, end = change.loaded.keys(shape)[key], change.desired.ends[i]
        before.append(f"{key_text(shape, key)} until {'-' if was == NEVER else round(was)}")
        after.append(f"{key_text(shape, key)} until {'-' if end == NEVER else end}")
    return {"before": "".join(f"{line}\n" for line in sorted(before)), "after": "".join(f"{line}\n" for line in sorted(after)),
            "before_header": "in force", "after_header": "desired"}


# ---- flush, restore ----

def take_out(tables):
    """Removes the table, whatever becomes of the ruleset meanwhile. Whether there was one."""
    for _ in range(TRIES):
        try:
            if tables.ask(NFT | GETTABLE, of_table()) is None:
                return False
            tables.batch.clear()
            tables.add(DELTABLE)
            tables.commit(tables.generation())
            return True
        except Changed:
            time.sleep(0.02)
    raise Failure("busy", "the ruleset is changed by somebody all the time, so that the table could not be taken out; try again")


def flush(run, tables):
    """Break-glass: nothing of parry's is in force any more, and no apply changes that until somebody adopts the firewall."""
    state, loaded = read_state(True), read_table(tables)
    removed = sum(len(loaded.keys(shape)) for shape in loaded.shapes)
    changed = not state["held"] or loaded.exists
    difference = {}
    if run["diff"]:
        difference = {"diff": diff(Change(loaded, Desired(b"", set(), set(), time.time()), {}))}
    if not run["check"]:
        if changed:
            state = {**state, "held": True, "run_id": run["run_id"]}
            write_state(state)
            take_out(tables)
        changed |= remove_boot()
        loaded = read_table(tables)
    told = facts_of(run, state, loaded, removed=removed)
    return {"changed": changed, "msg": f"{'would remove' if run['check'] else 'removed'} {removed} entries; {told['count']} in force; held until adopted",
            "parry": told, **difference},


def flush_without_lock(run, tables):
    """A run that hangs with the lock in hand must not keep an operator from opening the firewall."""
    write_state({**read_state(True), "held": True, "run_id": run["run_id"]})
    take_out(tables)
    raise Failure("busy", "another run holds the host. The table is taken out and the hold is set; run flush again when that run has ended, so that "
                  "nothing of it is left")


def restore():
    """At boot, and after a reload of nftables, which flushes every table: the blocks that were in force, for what is left of their time. Interfaces and
    addresses may not be there yet; all of it was admitted once."""
    held = lock(LOCK_SECONDS["restore"])
    if held is None or read_state(True)["held"]:
        return
    tables = open_tables()
    exempt = exemptions(read_file(f"{STATE}/exempt"))
    for _ in range(TRIES):
        loaded = read_table(tables)
        change = Change(loaded, Desired(read_file(f"{STATE}/entries"), frozenset(), (), time.time(), check=False), exempt)
        try:
            if change:
                change.commit(tables)
            return
        except Changed:
            time.sleep(0.05)


def run(source, program):
    """What the first line of the program's input calls: the run's settings and its files follow there."""
    settings = json.loads(source.readline())
    desired, exempt = (source.read(size) for size in settings.pop("sizes"))
    main(settings, desired, exempt, program)
