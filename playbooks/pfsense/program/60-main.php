<?php
/* The three things a run can be asked for: apply, verify, flush. */

const PARRY_LOCK_SECONDS = ['apply' => 20, 'verify' => 20, 'flush' => 5];
const PARRY_INERT_SECONDS = 86400;
const PARRY_CLAIM = ['controller' => 1, 'epoch' => 1, 'held' => 1, 'revision' => 1, 'owed' => 1];      /* what must be known before anything changes */
const PARRY_FEW = 256;         /* entries that are changed in a table one by one */

/**
 * @param array{mode: string, check: bool, diff: bool, controller: string, epoch: int, revision: int, sent_revision: int, run_id: string,
 *              adopt: bool, max_rules: int, role: string, action: string, log: bool, kill_states: bool, loaded: bool} $run
 */
function parry_main(array $run, string $desired, ?string $exempt): void
{
    try {
        parry_require_api();
        $lock = null;
        if (!$run['check']) {
            $lock = try_lock('parry', PARRY_LOCK_SECONDS[$run['mode']]);      /* not 'config': write_config() takes that one itself */
            if (!$lock && $run['mode'] === 'flush') {
                parry_flush_without_lock($run);
            }
            if (!$lock) {
                throw new ParryFailure('busy', 'another parry run holds the firewall (' . PARRY_LOCK_SECONDS[$run['mode']] . ' s waited); try again');
            }
        }
        parry_fresh_config();
        $firewall = parry_interfaces();
        $answer = match ($run['mode']) {
            'apply' => parry_apply($run, $desired, $exempt, $firewall),
            'verify' => parry_verify($run, $firewall),
            'flush' => parry_flush($run, $firewall),
        };
        unlock($lock);
        parry_answer($answer);
    } catch (ParryFailure $failure) {
        parry_answer_failure($failure->failure, $failure->getMessage(), $failure->facts);
    } catch (Throwable $error) {
        parry_answer_failure('internal', get_class($error) . ': ' . strtok($error->getMessage(), "\n") . " ({$error->getFile()}:{$error->getLine()})");
    }
}

/** The answer's common part: the proof and who holds the firewall. */
function parry_facts(array $run, array $state, array $loaded, array $more = []): array
{
    $exempt = $loaded['exempt'] ?? [];
    $more += ['exempt_sha256' => hash('sha256', $exempt ? implode("\n", $exempt) . "\n" : ''), 'exempt_count' => count($exempt)];
    return parry_proof($loaded['groups']) + $more + ['added' => 0, 'removed' => 0, 'rejected' => [], 'epoch' => $state['epoch'],
        'controller' => $state['controller'], 'revision' => $state['revision'], 'held' => $state['held'], 'run_id' => $run['run_id'], 'old_rules' => parry_old_rules(), 'version' => parry_version()] + parry_identity();
}

/** Rules that the practice before parry left behind; all of them bear this tracker. They are told, and left alone. */
function parry_old_rules(): int
{
    return count(array_filter(parry_list('filter/rule'), fn($rule) => is_array($rule) && ($rule['tracker'] ?? '') === '123456789'));
}

function parry_verify(array $run, array $firewall): array
{
    $loaded = parry_loaded($firewall['real']);
    $facts = parry_facts($run, parry_state_read(true), $loaded, ['capacity' => parry_capacity(), 'facts' => parry_network($firewall['keys'])]);
    $answer = ['changed' => false, 'msg' => "{$facts['count']} entries in force in {$facts['rules']} rules", 'parry' => $facts];
    if ($run['loaded']) {
        $lines = parry_lines($loaded['groups']);
        $answer['loaded'] = base64_encode(gzcompress($lines ? implode(" - - -\n", $lines) . " - - -\n" : '', 1));
    }
    return $answer;
}

/** Whose word counts here; the new state, not yet written. */
function parry_claim(array $run, array $state): array
{
    if (!$run['adopt']) {
        if ($state['held']) {
            throw new ParryFailure('flushed', 'flush.yml emptied this firewall and left a hold; adopt it (parry_adopt=true, parry firewalls adopt) to go on', ['controller' => $state['controller'], 'epoch' => $state['epoch']]);
        }
        if ($state['controller'] !== '' && $state['controller'] !== $run['controller']) {
            throw new ParryFailure('foreign_controller', "this firewall is held by controller {$state['controller']}; adopt it (parry_adopt=true, parry firewalls adopt) if that one is gone", ['controller' => $state['controller'], 'epoch' => $state['epoch']]);
        }
        if ($run['epoch'] < $state['epoch']) {
            throw new ParryFailure('stale_epoch', "this run has epoch {$run['epoch']}, the firewall knows {$state['epoch']}: a newer controller is at work, or this one was restored from a backup", ['epoch' => $state['epoch'], 'controller' => $state['controller']]);
        }
        if ($run['sent_revision'] < $state['revision']) {
            throw new ParryFailure('stale_revision', "this firewall was brought to revision {$state['revision']}, the controller knows of {$run['sent_revision']} at most: it was restored from a backup, or this run is an old one", ['revision' => $state['revision'], 'epoch' => $state['epoch'], 'controller' => $state['controller']]);
        }
    }
    return ['controller' => $run['controller'], 'epoch' => $run['epoch'], 'held' => false, 'revision' => min($state['revision'], $run['revision'])] + $state;
}

function parry_apply(array $run, string $desired, ?string $exempt, array $firewall): array
{
    $known = parry_state_read($run['adopt']);
    $state = parry_claim($run, $known);
    if (config_path_enabled('system', 'disablefilter')) {
        throw new ParryFailure('pf_refused', 'the packet filter is turned off (System > Advanced > Firewall & NAT), nothing can be blocked; turn it on');
    }
    $hash = parry_config_hash();
    $secondary = $run['role'] === 'secondary';
    $own = parry_own_addresses();
    ['groups' => $groups, 'rejected' => $rejected] = parry_desired($desired, $firewall + ['own' => $own, 'protected' => parry_protected_addresses($own)]);
    unset($desired);
    $exempt = $exempt === null ? parry_exempt_standing() : parry_exempt_list($exempt);

    $before = parry_loaded($firewall['real']);
    $loaded = $before['groups'];
    $structure = parry_structure();
    $capacity = parry_capacity();
    parry_limit($groups, $rejected, $run['max_rules'], $capacity, $structure['rules'], array_map(fn($group) => $group['sources'], $loaded));
    $inert = parry_inert($groups, $structure, $state['empty'], $secondary ? PHP_INT_MAX : $run['max_rules']);
    $wanted = $groups + $inert;
    $state['empty'] = array_map(fn($group) => $group['since'], $inert);

    $ahead = $wanted || $exempt ? [PARRY_EXEMPT => ['family' => 'inet', 'sources' => $exempt]] : [];     /* filled before the drops are */

    $missing = $secondary ? array_diff_key($groups + ($exempt ? PARRY_EXEMPT_RULES : []), $structure['rules']) : [];
    $plan = $secondary ? ['rules' => [], 'changed' => false] : parry_plan($wanted, (bool)$ahead, $structure, $run);
    $files = parry_stale_files($ahead + $wanted);
    $unexempt = $ahead && $before['exempt'] === null && !array_diff_key(PARRY_EXEMPT_RULES, $structure['rules']);
    $reload = !$plan['changed'] && ($unexempt || array_diff_key($groups, $loaded, $missing));
    [$added, $removed] = parry_changes($loaded, $wanted);
    $changed = $plan['changed'] || $reload || $files || $added || $removed || ($ahead && $before['exempt'] !== $exempt && !$missing);
    array_multisort(array_column($rejected, 'line'), $rejected);
    $state['owed'] = $run['kill_states'] ? parry_owed($added, $known['owed']) : [];
    $counts = ['added' => count($added), 'removed' => count($removed), 'rejected' => $rejected, 'capacity' => $capacity];
    $diff = $run['diff'] ? ['diff' => parry_diff($loaded, $wanted, $added, $removed, $before['exempt'] ?? [], $exempt)] : [];
    if ($run['check']) {
        $facts = parry_facts($run, $known, $before, $counts);
        return ['changed' => (bool)$changed, 'msg' => parry_summary('would be', $facts), 'parry' => $facts] + $diff;
    }

    parry_claim($run, parry_state_read($run['adopt']));         /* a flush that could not wait for us may have set a hold */
    if (array_intersect_key($state, PARRY_CLAIM) != array_intersect_key($known, PARRY_CLAIM)) {
        parry_state_write($state);      /* before any change: from here on an older epoch is refused */
    }
    $undo = parry_write_tables($files);
    try {
        if ($plan['changed']) {
            parry_load_and_write($plan['rules'], $hash, "{$counts['added']} added, {$counts['removed']} removed");
        } elseif ($reload && !parry_reload()) {
            throw new ParryFailure('pf_refused', 'pf did not load the ruleset. pf said: ' . parry_reload_status());
        }
        $now = $plan['changed'] || $reload ? parry_loaded($firewall['real']) : $before;
        $now = parry_fill_tables($ahead + $wanted, ($now['exempt'] === null ? [] : [PARRY_EXEMPT => ['sources' => $now['exempt']]]) + $now['groups']);
        $loaded = ['groups' => array_diff_key($now, $ahead), 'exempt' => $now[PARRY_EXEMPT]['sources'] ?? null];
    } catch (Throwable $failure) {          /* pfSense's own code may throw, too */
        parry_restore_tables($undo);
        throw $failure;
    }
    if (!$secondary) {
        foreach (array_diff_key($structure['aliases'] + $structure['rules'], $ahead + $wanted) as $id => $_) {
            @unlink(parry_table_path((string)$id));
        }
    }
    /* before the run can fail below: connections through what is in force do not wait until the rest is, too */
    $exempted = !$exempt || $loaded['exempt'] === $exempt;
    $proved = $exempted ? array_filter($groups, fn($group, $id) => ($loaded['groups'][$id]['sources'] ?? null) === $group['sources'], ARRAY_FILTER_USE_BOTH) : [];
    $counts['states_killed'] = parry_kill_states(parry_owed_entries($state['owed'], $proved));
    $unproved = array_diff_key($groups, $proved);
    $state['owed'] = array_values(array_filter($state['owed'], fn($entry) => isset($unproved[strtok($entry, ' ')])));
    $state['held'] = parry_state_read(true)['held'];            /* a flush that could not wait for us may have set it */
    if ($unproved) {
        parry_state_write($state);
    }
    if ($missing) {
        throw new ParryFailure('structure_missing', count($missing) . ' rules are not in this node\'s configuration yet; the table files are written: apply to the primary, let it sync, then run again');
    }
    parry_require_loaded($groups, $loaded['groups']);
    if (!$exempted) {
        throw new ParryFailure('pf_refused', 'the exemptions did not come into force as written; see Status > Filter Reload on the firewall');
    }
    if ($changed || $state['empty'] != $known['empty'] || $known['owed']) {
        $state = ['run_id' => $run['run_id'], 'revision' => $run['revision']] + $state;
        parry_state_write($state);
    }
    $facts = parry_facts($run, $state, $loaded, $counts);
    return ['changed' => (bool)$changed, 'msg' => parry_summary('', $facts), 'parry' => $facts] + $diff;
}

function parry_summary(string $mood, array $facts): string
{
    return trim("{$facts['added']} {$mood}") . " added, {$facts['removed']} removed, " . count($facts['rejected']) . " rejected; {$facts['count']} in force in {$facts['rules']} rules";
}

/**
 * The rules that have no entry now: they stay for a day, so that blocks that expire and come back do not rewrite the configuration, unless
 * max_rules needs their place; the longest empty go first.
 *
 * @return array<string,array> groups without sources and with {since}, by id
 */
function parry_inert(array $groups, array $structure, array $empty, int $max_rules): array
{
    $inert = [];
    $now = time();
    foreach (array_diff_key($structure['rules'], $groups) as $id => $rules) {
        $group = parry_rule_group((string)$id, $rules[0]);
        $since = min($now, (int)($empty[$id] ?? $now));
        if ($group !== null && $now - $since < PARRY_INERT_SECONDS) {
            $inert[$id] = $group + ['since' => $since];
        }
    }
    uasort($inert, fn($a, $b) => $b['since'] <=> $a['since']);
    return array_slice($inert, 0, max(0, $max_rules - count($groups)), true);
}

/** @return array<string,string> id → text of the table files that are not as they should be */
function parry_stale_files(array $wanted): array
{
    $files = [];
    foreach ($wanted as $id => $group) {
        $text = parry_table_text($group);
        if (@file_get_contents(parry_table_path((string)$id)) !== $text) {
            $files[$id] = $text;
        }
    }
    return $files;
}

/** @return array{list<array{string,array}>,list<array{string,array}>} [source, group] that come into force, that go */
function parry_changes(array $loaded, array $wanted): array
{
    $added = $removed = [];
    foreach ($wanted + $loaded as $id => $any) {
        $old = $loaded[$id]['sources'] ?? [];
        $new = $wanted[$id]['sources'] ?? [];
        [$in, $out] = parry_difference($old, $new);
        $group = ['sources' => [], 'lines' => [], 'id' => (string)$id] + $any;
        foreach ($in as $source) {
            $added[] = [$source, $group];
        }
        foreach ($out as $source) {
            $removed[] = [$source, $group];
        }
    }
    return [$added, $removed];
}

/** What by hand nobody gave anew: the exemptions that the firewall has. */
function parry_exempt_standing(): array
{
    return parry_exempt_list((string)@file_get_contents(parry_table_path(PARRY_EXEMPT)));
}

/** Up to 1000 entries in whole; beyond that only the lines that change, as a diff over 100,000 lines takes Ansible minutes. */
function parry_diff(array $loaded, array $wanted, array $added, array $removed, array $exempt_before = [], array $exempt_after = []): array
{
    $line = fn($entry) => "{$entry[0]} " . parry_columns($entry[1]);
    $count = fn($groups) => array_sum(array_map(fn($group) => count($group['sources']), $groups));
    $small = $count($loaded) + $count($wanted) <= 2000;
    $before = $small ? parry_lines($loaded) : array_map($line, array_slice($removed, 0, 1000));
    $after = $small ? parry_lines($wanted) : array_map($line, array_slice($added, 0, 1000));
    if ($exempt_before !== $exempt_after) {
        array_unshift($before, ...array_map(fn($address) => "exempt {$address}", $exempt_before));
        array_unshift($after, ...array_map(fn($address) => "exempt {$address}", $exempt_after));
    }
    $text = fn($lines) => $lines ? implode("\n", $lines) . "\n" : '';
    return ['before' => $text($before), 'after' => $text($after), 'before_header' => 'in force', 'after_header' => 'desired'];
}

/** @param array<string,string> $files   @return array<string,?string> what stood there before, for parry_restore_tables */
function parry_write_tables(array $files): array
{
    $undo = [];
    if ($files && !is_dir(PARRY_TABLES)) {
        mkdir(PARRY_TABLES, 0755, true);
    }
    try {
        foreach ($files as $id => $text) {
            $path = parry_table_path((string)$id);
            $undo[$id] = is_file($path) ? (string)file_get_contents($path) : null;
            parry_write_file($path, $text);
        }
    } catch (ParryFailure $failure) {
        parry_restore_tables($undo);
        throw $failure;
    }
    return $undo;
}

function parry_restore_tables(array $undo): void
{
    foreach ($undo as $id => $text) {
        if ($text === null) {
            @unlink(parry_table_path((string)$id));
        } elseif (@file_get_contents(parry_table_path((string)$id)) !== $text) {
            parry_write_file(parry_table_path((string)$id), $text);
            parry_replace_table((string)$id);
        }
    }
}

/**
 * Brings the running tables of the rules that stand to what is wanted and reads each of them back. Few changes are made one by one; when pf
 * does not show the wanted entries after that, or there are many, the table is replaced from its file.
 */
function parry_fill_tables(array $wanted, array $loaded): array
{
    foreach (array_intersect_key($wanted, $loaded) as $id => $group) {
        $id = (string)$id;
        [$in, $out] = parry_difference($loaded[$id]['sources'], $group['sources']);
        if (($in || $out) && count($in) + count($out) <= PARRY_FEW && parry_edit_table($id, $in, $out) === '') {
            [$in, $out] = parry_difference($loaded[$id]['sources'] = parry_loaded_tables([$id])[$id], $group['sources']);
        }
        if ($in || $out) {
            $complaint = parry_replace_table($id);
            if ($complaint !== '') {
                throw new ParryFailure('pf_refused', 'pf did not take the entries; the old ones are in force. pf said: ' . substr($complaint, 0, 300));
            }
            [$in, $out] = parry_difference($loaded[$id]['sources'] = parry_loaded_tables([$id])[$id], $group['sources']);
        }
        if (!$in && !$out) {
            $loaded[$id] = ['sources' => $group['sources'], 'sorted' => true] + $loaded[$id];
        }
    }
    return $loaded;
}

/** pfSense leaves a rule out without a word to its caller (an interface that is down, a file that it cannot read): say so instead of claiming it. */
function parry_require_loaded(array $groups, array $loaded): void
{
    foreach ($groups as $id => $group) {
        if (($loaded[$id]['sources'] ?? null) !== $group['sources']) {
            throw new ParryFailure('pf_refused', "rule parry:{$id} (" . parry_columns($group) . ') did not come into force as written; see Status > Filter Reload on the firewall');
        }
    }
}

/** Break-glass: nothing of parry's is in force any more, and no apply changes that until somebody adopts the firewall. */
function parry_flush(array $run, array $firewall): array
{
    $state = parry_state_read(true);
    $loaded = parry_loaded($firewall['real']);
    $structure = parry_structure();
    $secondary = $run['role'] === 'secondary';      /* there the structure is the primary's, which would sync it back */
    $wanted = $secondary ? parry_inert([], $structure, [], PHP_INT_MAX) : [];
    $plan = $secondary ? ['rules' => [], 'changed' => false] : parry_plan([], false, $structure, $run);
    $files = $secondary ? parry_stale_files($wanted) : array_flip(preg_grep('/parry_([0-9a-f]{12}|exempt)\.txt$/D', glob(PARRY_TABLES . '/parry_*.txt') ?: []));
    [$added, $removed] = parry_changes($loaded['groups'], $wanted);
    $changed = !$state['held'] || $plan['changed'] || $files || $removed;
    $diff = $run['diff'] ? ['diff' => parry_diff($loaded['groups'], $wanted, $added, $removed)] : [];
    if ($changed && !$run['check']) {
        parry_state_write(['held' => true, 'run_id' => $run['run_id'], 'empty' => [], 'owed' => []] + $state);
        $state['held'] = true;
        parry_empty_tables();
        if ($secondary) {
            parry_write_tables($files);
            $loaded = parry_loaded($firewall['real']);
            $loaded['groups'] = parry_fill_tables($wanted, $loaded['groups']);
        } else {
            array_map('unlink', array_keys($files));        /* first: should the load fail, the old rules come back without entries */
            try {
                if ($plan['changed']) {
                    parry_load_and_write([], parry_config_hash(), 'flushed by hand');
                }
            } catch (ParryFailure $failure) {
                throw new ParryFailure($failure->failure, "the tables are empty and the hold is set, but the rules could not be taken out: {$failure->getMessage()}");
            }
            $loaded = parry_loaded($firewall['real']);
        }
    }
    $facts = parry_facts($run, $state, $loaded, ['removed' => count($removed), 'capacity' => parry_capacity()]);
    return ['changed' => (bool)$changed, 'msg' => ($run['check'] ? 'would remove ' : 'removed ') . "{$facts['removed']} entries; {$facts['count']} in force; held until adopted", 'parry' => $facts] + $diff;
}

/** A run that hangs with the lock in hand must not keep an operator from opening the firewall: tables are emptied, the structure stays. */
function parry_flush_without_lock(array $run): never
{
    parry_fresh_config();
    parry_state_write(['held' => true, 'run_id' => $run['run_id']] + parry_state_read(true));
    parry_empty_tables();
    throw new ParryFailure('busy', 'another run holds the firewall. The tables are empty and the hold is set; run flush again when that run has ended, to take the rules out');
}

/** Empties the running tables at once, whatever the configuration says. */
function parry_empty_tables(): void
{
    exec('/sbin/pfctl -sT 2>/dev/null', $tables);
    foreach (array_filter(array_map('trim', $tables), 'parry_is_alias') as $table) {
        exec("/sbin/pfctl -q -t {$table} -T flush 2>/dev/null");
    }
}
