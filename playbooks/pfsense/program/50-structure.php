<?php
/* Aliases and rules in config.xml: what is there, what should be, and the change that takes both into pf and then into the file. */

/** A rule is ours by its mark alone: an administrator's rule that uses one of our aliases stays his. */
function parry_rule_mark($rule): ?string
{
    return is_array($rule) && preg_match('/^parry:([0-9a-f]{12}|exempt[46])$/D', (string)($rule['descr'] ?? ''), $found) ? $found[1] : null;
}

/**
 * @return array{aliases: array<string,array>, rules: array<string,list<array>>, first: bool} ours by id; first = no floating rule of others' that
 *         passes and ends evaluation, or sets a tag, stands above one of ours, and no drop above an exemption
 */
function parry_structure(): array
{
    $aliases = $rules = [];
    foreach (parry_list('aliases/alias') as $alias) {
        if (parry_is_ours((string)($alias['name'] ?? ''))) {
            $aliases[substr($alias['name'], 6)] = $alias;
        }
    }
    $first = true;
    $passed = $blocked = false;
    foreach (parry_list('filter/rule') as $rule) {
        $id = parry_rule_mark($rule);
        if ($id !== null) {
            $rules[$id][] = $rule;
            $first = $first && !$passed && !($blocked && isset(PARRY_EXEMPT_RULES[$id]));
            $blocked = $blocked || !isset(PARRY_EXEMPT_RULES[$id]);
        } elseif (is_array($rule) && isset($rule['floating']) && !isset($rule['disabled'])) {
            $passes = isset($rule['quick']) && !in_array($rule['type'] ?? 'pass', ['block', 'reject', 'match'], true);
            $passed = $passed || $passes || ($rule['tag'] ?? '') !== '';
        }
    }
    return ['aliases' => $aliases, 'rules' => $rules, 'first' => $first];
}

/** Reads a group back out of one of our rules; null when somebody changed what it matches, so that its name is no longer true. */
function parry_rule_group(string $id, array $rule): ?array
{
    $destination = is_array($rule['destination'] ?? null) ? $rule['destination'] : [];
    $group = ['id' => $id, 'family' => (string)($rule['ipprotocol'] ?? ''), 'destination' => (string)($destination['address'] ?? '-'),
        'protocol' => (string)($rule['protocol'] ?? '-'), 'port' => (string)($destination['port'] ?? '-'), 'interface' => (string)($rule['interface'] ?? '')];
    $true_id = parry_rule_id($group['family'], $group['destination'], $group['protocol'], $group['port'], $group['interface']);
    return $true_id === $id ? $group + ['sources' => [], 'lines' => []] : null;
}

function parry_wanted_alias(string $id): array
{
    /* file:// is never downloaded (download_file wants HTTP 200), so the periodic refresh leaves the file alone */
    $url = 'file://' . parry_table_path($id);
    return ['name' => parry_alias($id), 'type' => 'urltable', 'url' => $url, 'updatefreq' => '9999', 'address' => $url,
        'descr' => "parry:{$id}", 'detail' => ''];
}

/** @param array{action: string, log: bool} $settings */
function parry_wanted_rule(array $group, array $settings): array
{
    $rule = ['type' => $settings['action'], 'floating' => 'yes', 'quick' => 'yes',
        'interface' => $group['interface'], 'direction' => 'in', 'ipprotocol' => $group['family']];
    if ($group['protocol'] !== '-') {
        $rule['protocol'] = $group['protocol'];
    }
    if ($group['protocol'] === 'tcp') {
        /* else pfSense adds "flags S/SA", to block rules too; it adds none for tcp/udp or any protocol (filter_generate_user_rule) */
        $rule['tcpflags_any'] = '';
    }
    if ($settings['log']) {
        $rule['log'] = '';
    }
    $rule['source'] = ['address' => parry_alias($group['id'])];
    $rule['destination'] = $group['destination'] === '-' ? ['any' => ''] : ['address' => $group['destination']];
    if ($group['port'] !== '-') {
        $rule['destination']['port'] = $group['port'];
    }
    $rule['tagged'] = PARRY_TAG;
    $rule['nottagged'] = '';
    $rule['descr'] = "parry:{$group['id']}";
    return $rule;
}

function parry_exempt_rule(string $id, string $family): array
{
    return ['type' => 'match', 'floating' => 'yes', 'interface' => 'any', 'direction' => 'in', 'ipprotocol' => $family,
        'source' => ['address' => parry_alias(PARRY_EXEMPT)], 'destination' => ['any' => ''], 'tag' => PARRY_TAG, 'descr' => "parry:{$id}"];
}

/** What a rule does, without bookkeeping and the empty fields that the GUI adds when it saves one. */
function parry_rule_meaning(array $rule): array
{
    unset($rule['id'], $rule['tracker'], $rule['created'], $rule['updated'], $rule['associated-rule-id']);
    if (($rule['statetype'] ?? '') === 'keep state') {
        unset($rule['statetype']);
    }
    $flags = ['any', 'log', 'tcpflags_any', 'nottagged', 'disabled', 'not'];
    foreach ($rule as $key => &$value) {
        if (is_array($value)) {
            $value = parry_rule_meaning($value);
        } elseif (in_array($key, $flags, true)) {
            $value = '';
        }
    }
    unset($value);
    $rule = array_filter($rule, fn($value, $key) => in_array($key, $flags, true) || ($value !== '' && $value !== []), ARRAY_FILTER_USE_BOTH);
    ksort($rule);
    return $rule;
}

/** @return list<string> the ids of the aliases that rules use */
function parry_alias_ids(array $rules): array
{
    return array_values(array_unique(array_map(fn($id) => isset(PARRY_EXEMPT_RULES[$id]) ? PARRY_EXEMPT : (string)$id, array_keys($rules))));
}

/**
 * Works out the rules to be: exemptions, then drops. Those that exist and are as wanted stay untouched, byte for byte.
 *
 * @param bool $exempt whether there are to be exemptions
 * @return array{rules: array<string,array>, changed: bool}
 */
function parry_plan(array $groups, bool $exempt, array $structure, array $settings): array
{
    $used = [];
    foreach (parry_list('filter/rule') as $rule) {
        if (is_array($rule) && isset($rule['tracker'])) {
            $used[(string)$rule['tracker']] = ($used[(string)$rule['tracker']] ?? 0) + 1;
        }
    }
    ksort($groups, SORT_STRING);
    $exemptions = $exempt ? PARRY_EXEMPT_RULES : [];
    $wanted = array_combine(array_keys($exemptions), array_map('parry_exempt_rule', array_keys($exemptions), $exemptions))
        + array_map(fn($group) => parry_wanted_rule($group, $settings), $groups);
    $aliases = parry_alias_ids($wanted);
    $changed = !$structure['first'] || array_diff_key($structure['rules'], $wanted) || array_diff_key($structure['aliases'], array_flip($aliases));
    $rules = [];
    foreach ($wanted as $id => $rule) {
        $old = $structure['rules'][$id][0] ?? null;
        $tracker = (int)($old['tracker'] ?? 0);
        if ($tracker < 900000000 || $tracker > 999999999 || $used[(string)$tracker] > 1) {
            /* pfSense's automatic trackers start at 1000000000; ours stay below, and unique among all rules */
            for ($tracker = 900000000 + crc32((string)$id) % 100000000; isset($used[(string)$tracker]); ) {
                $tracker = $tracker === 999999999 ? 900000000 : $tracker + 1;
            }
            $used[(string)$tracker] = 1;
        }
        $rule = ['id' => '', 'tracker' => (string)$tracker] + $rule;
        $same = $old !== null && count($structure['rules'][$id]) === 1 && (string)($old['tracker'] ?? '') === (string)$tracker
            && parry_rule_meaning($old) == parry_rule_meaning($rule);
        if (!$same) {
            $now = ['time' => (string)time(), 'username' => 'parry'];
            $rule += ['created' => $old['created'] ?? $now, 'updated' => $now];
        }
        $changed = $changed || !$same;
        $rules[$id] = $same ? $old : $rule;
    }
    foreach ($aliases as $id) {
        $alias = parry_wanted_alias($id);
        $changed = $changed || array_intersect_key($structure['aliases'][$id] ?? [], $alias) != $alias;
    }
    return ['rules' => $rules, 'changed' => (bool)$changed];
}

/** Puts the planned rules first and the aliases last into pfSense's configuration in memory; everything of others' keeps its order. */
function parry_put(array $rules): void
{
    $old = parry_list('filter/rule');
    $others = array_values(array_filter($old, fn($rule) => parry_rule_mark($rule) === null));
    $separators = config_get_path('filter/separator/floatingrules', []);
    if (is_array($separators)) {
        $moved = parry_shift_separators($separators, $old, count($rules));
        if ($moved !== $separators) {
            config_set_path('filter/separator/floatingrules', $moved);
        }
    }
    $aliases = array_values(array_filter(parry_list('aliases/alias'), fn($alias) => !parry_is_ours((string)($alias['name'] ?? ''))));
    foreach (parry_alias_ids($rules) as $id) {
        $aliases[] = parry_wanted_alias($id);
    }
    config_set_path('aliases/alias', $aliases);
    config_set_path('filter/rule', array_merge(array_values($rules), $others));
    alias_make_table();
}

/** A separator's row counts the floating rules above it ("fr3"). Keep it below as many of the others' rules as before, and below all of ours. */
function parry_shift_separators(array $separators, array $old_rules, int $ours): array
{
    $others_above = [0];        /* by row: floating rules of others above it */
    foreach ($old_rules as $rule) {
        if (is_array($rule) && isset($rule['floating'])) {
            $others_above[] = end($others_above) + (parry_rule_mark($rule) === null ? 1 : 0);
        }
    }
    foreach ($separators as &$separator) {
        $row = is_array($separator) ? ($separator['row'] ?? null) : null;
        $text = is_array($row) ? ($row[0] ?? '') : $row;
        if (!is_string($text) || !preg_match('/^fr(\d+)$/D', $text, $found)) {
            continue;
        }
        $text = 'fr' . ($ours + ($others_above[(int)$found[1]] ?? end($others_above)));
        is_array($row) ? $separator['row'][0] = $text : $separator['row'] = $text;
    }
    return $separators;
}

/**
 * Loads the planned structure into pf, and writes config.xml only when pf has taken it: a ruleset that pf refuses leaves no trace in the
 * file, its history, the backups or the other node of a pair. Table files must be in place. Throws pf_refused or config_changed after it has
 * loaded the old configuration again; the caller puts table files back.
 */
function parry_load_and_write(array $rules, string $hash, string $message): void
{
    parry_put($rules);
    if (filter_configure_sync(false) !== 0 && !config_path_enabled('system', 'disablefilter')) {
        $reason = parry_reload_status();
        parry_reload_old();
        throw new ParryFailure('pf_refused', "pf did not load the ruleset; nothing was written, the old rules are in force. pf said: {$reason}");
    }
    /* the generators leave empty sections in the configuration in memory: start from the file again, as the file may have changed, too */
    parry_fresh_config();
    if (parry_config_hash() !== $hash) {
        parry_reload_old();
        throw new ParryFailure('config_changed', 'somebody saved the firewall\'s configuration at the same moment; nothing was written, run again');
    }
    parry_put($rules);
    $written = write_config("parry: {$message} -NoReMoTeBaCkUp");       /* the suffix keeps it from AutoConfigBackup */
    if ($written === false || $written === -1) {
        parry_reload_old();
        throw new ParryFailure('internal', 'pfSense refused to write config.xml (disk full or read-only?); the old rules are in force');
    }
}

function parry_reload_old(): void
{
    parry_fresh_config();
    parry_reload();
}

/** Loads the ruleset anew, also where 2.9 would skip it because it generated the same one before: pf may have been changed by hand since. */
function parry_reload(): bool
{
    @file_put_contents(g_get('tmp_path') . '/rules.debug', '');
    alias_make_table();
    return filter_configure_sync(false) === 0;
}

/** The last words of pfSense's own reload log; it does not return pf's message. */
function parry_reload_status(): string
{
    $lines = @file(g_get('varrun_path') . '/filter_reload_status', FILE_IGNORE_NEW_LINES | FILE_SKIP_EMPTY_LINES) ?: [];
    $errors = preg_grep('/error/i', $lines) ?: $lines;
    return $errors ? substr(preg_replace('/[^\x20-\x7e]/', ' ', end($errors)), 0, 300) : 'nothing (see Status > System Logs)';
}
