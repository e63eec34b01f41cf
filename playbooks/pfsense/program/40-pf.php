<?php
/* pf itself: what is loaded, and the few commands that change a table. Nothing here trusts config.xml or a file for what is in force. */

const PARRY_TABLES = '/var/db/aliastables';
const PARRY_ENDED = 1000;      /* entries a run whose open connections are ended, so that a storm cannot hold the firewall up */

function parry_alias(string $id): string
{
    return "parry_{$id}";
}

function parry_table_path(string $id): string
{
    return PARRY_TABLES . '/' . parry_alias($id) . '.txt';
}

/**
 * Reads the loaded ruleset and tells which of our rules really stand in it: block, in, quick, and matching exactly what their name says, on
 * nothing but their own table. A rule that someone narrowed (a flag, a tag, another port) hashes to another name and does not count, nor does
 * one below a rule of others' that could let packets past it. No rule counts while pf is switched off.
 *
 * @param array<string,string> $real pf's interface name → key
 * @return array{rules: array<string,array>, exempt: bool} groups without sources, by id; whether what is exempt gets past each of our rules
 */
function parry_loaded_rules(array $real): array
{
    $protocols = $rules = $exempt = [];
    $users = $passed = false;
    $tagged = true;
    $shown = (string)shell_exec('/sbin/pfctl -si 2>/dev/null; /sbin/pfctl -sr 2>/dev/null');
    if (preg_match('/^Status: Disabled/m', $shown)) {
        return ['rules' => [], 'exempt' => false];
    }
    foreach (explode("\n", $shown) as $line) {
        $line = preg_replace('/\s+/', ' ', trim($line));
        $users = $users || str_starts_with($line, 'anchor "userrules/');
        $bare = preg_replace('/ (label "[^"]*"|ridentifier \d+|flags any|keep state)/', '', $line);
        if (preg_match('/^match in (.*)from <parry_exempt(?::\d+)?> to (.*)tag ' . PARRY_TAG . '$/D', $bare, $part)) {
            if (in_array($part[1], ['inet ', 'inet6 '], true) && $part[2] === 'any ') {        /* as it should be, not narrowed */
                $exempt[trim($part[1])] = !$passed && !$protocols;
            }
            continue;
        }
        $passed = $passed || parry_lets_past($bare, $users || preg_match('/ label "(USER_RULE\b|tags=[^"]*\buser_rule\b)/', $line));
        if ($passed || !str_starts_with($line, 'block ') || !preg_match('/^(.*?) from [<$]parry_([0-9a-f]{12})(?::\d+)?>? to (.*)$/D', $line, $part)) {
            continue;
        }
        [, $head, $id, $tail] = $part;
        $tail = preg_replace('/ (label "[^"]*"|ridentifier \d+|flags any)/', '', $tail);
        $tail = preg_replace('/ ! tagged ' . PARRY_TAG . '(?= |$)/', '', $tail, -1, $leaves);
        $tagged = $tagged && $leaves;
        if (preg_match('/ (flags|os|user|group|icmp6?-type|tos|tag|tagged|prio|probability|allow-opts|received-on|no state|fragment) /', "{$tail} ")
            || !preg_match('/^(any|[0-9a-f.:]+(?:\/\d+)?)(?: port (?:= )?([a-z0-9-]+))?(?: |$)/', $tail, $to)
            || !preg_match('/ in .*?\bquick on (\{[^}]*\}|\S+)(?: reply-to \([^)]*\))? (inet6?)(?: proto (\{[^}]*\}|\S+))?$/', $head, $from)) {
            continue;
        }
        $names = str_replace('ipv6-icmp', 'icmp', trim($from[3] ?? '-', '{} '));
        /* pfctl shows one rule per member of a list, so tcp/udp comes back as two */
        foreach (preg_split('/[ ,]+/', trim($from[1], '{} ')) as $name) {
            $key = $real[$name] ?? null;
            foreach (preg_split('/[ ,]+/', $names) as $protocol) {
                $port = $to[2] ?? '-';
                if ($port !== '-' && !ctype_digit($port)) {
                    $port = (string)getservbyname($port, $protocol);
                }
                $protocols[$id]["{$from[2]} " . ($to[1] === 'any' ? '-' : $to[1]) . " {$port} {$key}"][$protocol] = true;
            }
        }
    }
    foreach ($protocols as $id => $matches) {
        foreach ($matches as $match => $names) {
            [$family, $destination, $port, $interface] = explode(' ', $match);
            $protocol = isset($names['tcp'], $names['udp']) ? 'tcp/udp' : (string)array_key_first($names);
            if (parry_rule_id($family, $destination, $protocol, $port, $interface) === (string)$id) {
                $rules[$id] = ['id' => (string)$id, 'family' => $family, 'destination' => $destination, 'protocol' => $protocol, 'port' => $port,
                    'interface' => $interface];
            }
        }
    }
    return ['rules' => $rules, 'exempt' => $tagged && array_filter($exempt) == ['inet' => true, 'inet6' => true]];
}

/**
 * Whether a rule above ours could let packets past them: one of others' that passes and ends evaluation, or that sets a tag, of which a packet
 * has but one. pfSense's own rules above the users' are as they were before parry, and stay.
 */
function parry_lets_past(string $rule, bool $by_user): bool
{
    if (preg_match('/^\S+(?: drop| return)? out /', $rule)) {
        return false;
    }
    return str_contains("{$rule} ", ' tag ' . PARRY_TAG . ' ') || ($by_user && preg_match('/^pass .*\bquick\b|^(?!anchor).* tag /', $rule));
}

/**
 * @param list<string> $ids
 * @return array<string,list<string>> what pf holds in the tables of rules, in pf's order, without the placeholder; one shell for all of them
 */
function parry_loaded_tables(array $ids): array
{
    $tables = array_fill_keys($ids, []);
    if (!$ids) {
        return $tables;
    }
    $names = implode(' ', array_map(fn($id) => parry_alias((string)$id), $ids));
    $shown = (string)shell_exec("for t in {$names}; do echo \"=\$t\"; /sbin/pfctl -t \$t -T show; done 2>/dev/null");
    foreach (array_filter(explode('=parry_', str_replace([' ', "\t"], '', $shown))) as $part) {
        $entries = explode("\n", rtrim($part, "\n"));
        $id = array_shift($entries);
        foreach (PARRY_NOBODY as $nobody) {
            if (($at = array_search($nobody, $entries, true)) !== false) {
                array_splice($entries, $at, 1);
            }
        }
        $tables[$id] = $entries;
    }
    return $tables;
}

/**
 * What is in force: the rules that stand, with what their tables hold, and what is exempt from them.
 *
 * @return array{groups: array<string,array>, exempt: ?list<string>} exempt is sorted; null while it does not get past the rules
 */
function parry_loaded(array $real): array
{
    ['rules' => $groups, 'exempt' => $exempt] = parry_loaded_rules($real);
    $tables = parry_loaded_tables(array_merge($exempt ? [PARRY_EXEMPT] : [], array_keys($groups)));
    foreach (array_keys($groups) as $id) {
        $groups[$id]['sources'] = $tables[$id];
    }
    if ($exempt) {
        sort($tables[PARRY_EXEMPT], SORT_STRING);
    }
    return ['groups' => $groups, 'exempt' => $exempt ? $tables[PARRY_EXEMPT] : null];
}

/** @return array{sha256: string, count: int, rules: int} the proof, over the lines of groups with sources */
function parry_proof(array $groups): array
{
    $filled = array_filter($groups, fn($group) => $group['sources']);
    if (count($filled) === 1) {         /* a blank sorts before all that an address can go on with, so sources sort as lines do */
        $group = reset($filled);
        $sources = $group['sources'];
        if (!isset($group['sorted'])) {
            sort($sources, SORT_STRING);
        }
        $end = ' ' . parry_columns($group) . "\n";
        $text = implode($end, $sources) . $end;
        $count = count($sources);
    } else {
        $lines = parry_lines($filled);
        $text = $lines ? implode("\n", $lines) . "\n" : '';
        $count = count($lines);
    }
    return ['sha256' => hash('sha256', $text), 'count' => $count, 'rules' => count($groups)];
}

/** @return list<string> lines of five columns, sorted bytewise */
function parry_lines(array $groups): array
{
    $lines = [];
    foreach ($groups as $group) {
        $end = ' ' . parry_columns($group);
        foreach ($group['sources'] as $source) {
            $lines[] = $source . $end;
        }
    }
    sort($lines, SORT_STRING);
    return $lines;
}

/** @return array{list<string>,list<string>} what is only in $new, what is only in $old; neither need be sorted */
function parry_difference(array $old, array $new): array
{
    if ($old === $new) {
        return [[], []];
    }
    $old = array_flip($old);
    $new = array_flip($new);
    return [array_keys(array_diff_key($new, $old)), array_keys(array_diff_key($old, $new))];
}

/** The text of a rule's table file; never empty. */
function parry_table_text(array $group): string
{
    return ($group['sources'] ? implode("\n", $group['sources']) : PARRY_NOBODY[$group['family']]) . "\n";
}

/** Makes the running table equal to its file, without a reload (as rc.update_urltables does). Returns pf's complaint, '' when it took it. */
function parry_replace_table(string $id): string
{
    return parry_table_command($id, 'replace -f ' . escapeshellarg(parry_table_path($id)));
}

/** Takes a few entries in and out of a running table: pfctl needs far longer to read a file of 100,000 than to make one change. */
function parry_edit_table(string $id, array $in, array $out): string
{
    $complaint = $in ? parry_table_command($id, 'add ' . implode(' ', array_map('escapeshellarg', $in))) : '';
    return $complaint === '' && $out ? parry_table_command($id, 'delete ' . implode(' ', array_map('escapeshellarg', $out))) : $complaint;
}

function parry_table_command(string $id, string $command): string
{
    exec('/sbin/pfctl -q -t ' . parry_alias($id) . " -T {$command} 2>&1", $out, $status);
    return $status === 0 ? '' : (trim(implode(' ', $out)) ?: "pfctl ended with status {$status}");
}

/**
 * How many entries parry can hold here. A reload needs room for the old and the new contents of every table at once, or pf refuses the whole
 * ruleset; so half of the limit in force, less what bogons and others' URL tables take.
 */
function parry_capacity(): int
{
    preg_match('/table-entries\s+hard limit\s+(\d+)/', (string)shell_exec('/sbin/pfctl -sm 2>/dev/null'), $found);
    $limit = (int)($found[1] ?? config_get_path('system/maximumtableentries', 0)) ?: 200000;    /* pf's own default */
    $bogons = parry_count_lines('/etc/bogons') + (is_bogonsv6_used() ? parry_count_lines('/etc/bogonsv6') : 0);
    $others = 0;
    foreach (parry_list('aliases/alias') as $alias) {
        $name = (string)($alias['name'] ?? '');
        if (($alias['type'] ?? '') === 'urltable' && !parry_is_alias($name) && preg_match('/^\w+$/D', $name)) {
            $others += parry_count_lines(PARRY_TABLES . "/{$name}.txt");
        }
    }
    return max(0, intdiv($limit - $bogons, 2) - $others);
}

/** Whether a table or alias is one of parry's drops. */
function parry_is_alias(string $name): bool
{
    return preg_match('/^parry_[0-9a-f]{12}$/D', $name) === 1;
}

function parry_is_ours(string $name): bool
{
    return parry_is_alias($name) || $name === parry_alias(PARRY_EXEMPT);
}

function parry_count_lines(string $path): int
{
    return is_file($path) ? substr_count((string)file_get_contents($path), "\n") : 0;
}

/**
 * The entries whose open connections are to be ended: those that come into force, then those that runs loaded which did not get to their end.
 * Kept from before anything is loaded until it is done, as the next run finds loaded what this one leaves behind.
 *
 * @param list<array{string,array}> $added [source, group]   @param list<string> $owed of runs before   @return list<string> "rule id source"
 */
function parry_owed(array $added, array $owed): array
{
    $new = array_map(fn($entry) => "{$entry[1]['id']} {$entry[0]}", array_slice($added, 0, PARRY_ENDED));
    return array_slice(array_unique(array_merge($new, $owed)), 0, PARRY_ENDED);
}

/** @return list<array{string,array}> [source, group] of what is owed and in one of the groups */
function parry_owed_entries(array $owed, array $groups): array
{
    $entries = $sources = [];
    foreach ($owed as $entry) {
        [$id, $source] = explode(' ', $entry);
        $sources[$id] ??= array_flip($groups[$id]['sources'] ?? []);
        if (isset($sources[$id][$source])) {
            $entries[] = [$source, $groups[$id]];
        }
    }
    return $entries;
}

/**
 * Ends the open connections that newly blocked sources had through what is now blocked, and no other: pf goes on passing packets of a state
 * that was made before the block.
 *
 * @param list<array{string,array}> $added [source, group]   @return int entries looked after
 */
function parry_kill_states(array $added): int
{
    if (!function_exists('pfSense_kill_states')) {
        return 0;
    }
    $with_port = [];
    foreach ($added as [$source, $group]) {
        if ($group['port'] !== '-') {
            $with_port[] = [$source, $group];
            continue;
        }
        $anywhere = $group['family'] === 'inet' ? '0.0.0.0/0' : '::/0';
        if ($group['destination'] === '-' && $group['protocol'] === '-') {
            pfSense_kill_states($source);
            pfSense_kill_states($anywhere, $source);
            continue;
        }
        $destination = $group['destination'] === '-' ? $anywhere : $group['destination'];
        foreach ($group['protocol'] === '-' ? [null] : explode('/', $group['protocol']) as $protocol) {
            $protocol = $protocol === 'icmp' && $group['family'] === 'inet6' ? 'icmpv6' : $protocol;
            $protocol === null ? pfSense_kill_states($source, $destination) : pfSense_kill_states($source, $destination, null, $protocol);
        }
    }
    if ($with_port) {
        parry_kill_states_by_port($with_port);
    }
    return count($added);
}

/** pfSense_kill_states() knows no port, so states are found in pf's list and ended by id. The list can be long: line by line, for 5 s at most. */
function parry_kill_states_by_port(array $added): void
{
    $by_source = $by_prefix = [];
    foreach ($added as [$source, $group]) {
        if (str_contains($source, '/')) {
            $by_prefix[] = [parry_prefix($source), $group];
        } else {
            $by_source[$source][] = $group;
        }
    }
    $list = popen('/sbin/pfctl -ss -vv 2>/dev/null', 'r');
    $ids = [];
    $hit = false;
    $until = microtime(true) + 5;
    while ($list && count($ids) < 1000 && microtime(true) < $until && ($line = fgets($list)) !== false) {
        if ($line[0] !== ' ' && $line[0] !== "\t") {
            $hit = parry_state_matches($line, $by_source, $by_prefix);
        } elseif ($hit && preg_match('/\bid: ([0-9a-f]+) creatorid: ([0-9a-f]+)/', $line, $found)) {
            $ids[] = "{$found[1]}/{$found[2]}";
        }
    }
    if ($list) {
        pclose($list);
    }
    foreach ($ids as $id) {
        exec('/sbin/pfctl -q -k id -k ' . escapeshellarg($id) . ' 2>/dev/null');
    }
}

/** "em0 tcp 10.0.0.5:22 (198.51.100.10:22) <- 203.0.113.7:50000 ESTABLISHED:ESTABLISHED"; IPv6 as 2001:db8::1[22] */
function parry_state_matches(string $line, array $by_source, array $by_prefix): bool
{
    if (!preg_match('/^\S+ (\S+) (\S+)(?: \(([^)]+)\))? (<-|->) (\S+)(?: \(([^)]+)\))?/', $line, $part)) {
        return false;
    }
    [, $protocol, $left, $left_nat, $arrow, $right] = $part;
    $to = array_filter($arrow === '<-' ? [$left, $left_nat] : [$right, $part[6] ?? '']);
    $from = array_filter($arrow === '<-' ? [$right, $part[6] ?? ''] : [$left, $left_nat]);
    $split = fn($end) => preg_match('/^(.*)[:\[](\d+)\]?$/D', $end, $x) ? [$x[1], $x[2]] : [$end, ''];
    foreach ($from as $end) {
        $source = $split($end)[0];
        $groups = $by_source[$source] ?? [];
        foreach ($by_prefix as [[$network, $bits], $group]) {
            $bytes = @inet_pton($source);
            if ($bytes !== false && strlen($bytes) === strlen($network) && parry_mask($bytes, $bits) === $network) {
                $groups[] = $group;
            }
        }
        foreach ($groups as $group) {
            foreach ($to as $target) {
                [$address, $port] = $split($target);
                $wanted = $group['destination'] === '-' ? null : parry_prefix($group['destination']);
                if ($port === $group['port'] && in_array($protocol, explode('/', $group['protocol']), true)
                    && (!$wanted || (@inet_pton($address) !== false && parry_overlaps($wanted, parry_with_bits([$address => null]))))) {
                    return true;
                }
            }
        }
    }
    return false;
}
