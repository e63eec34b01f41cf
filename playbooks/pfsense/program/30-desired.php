<?php
/* The desired entries: text in, groups of sources out. One group is one rule: family, destination, protocol, port and interface in common. */

const PARRY_PROTOCOLS = ['-', 'tcp', 'udp', 'tcp/udp', 'icmp', 'sctp', 'esp', 'gre', 'ah'];
const PARRY_BYTES = "0123456789abcdefghijklmnopqrstuvwxyz:./ -\n";
const PARRY_PORT_PROTOCOLS = ['tcp', 'udp', 'tcp/udp', 'sctp'];

/**
 * A rule without entries keeps this address in its table, because pfSense leaves a rule out (and raises an alert) whose table file is empty or
 * missing. Neither can be the source of a packet: the limited broadcast, and the reserved multicast scope (RFC 4291, 2.7).
 */
const PARRY_NOBODY = ['inet' => '255.255.255.255', 'inet6' => 'ff00::'];

/**
 * What must never be dropped: one table, and ahead of all drops one match rule per family that tags its packets and decides nothing else. The
 * drops leave tagged packets to the rules after them, so an exempt address gets past parry's rules and no further.
 */
const PARRY_EXEMPT = 'exempt';
const PARRY_EXEMPT_RULES = ['exempt4' => 'inet', 'exempt6' => 'inet6'];
const PARRY_TAG = 'parry_exempt';

/** The name of a rule is a hash over what it matches, so every controller and every node of a pair finds the same one. */
function parry_rule_id(string $family, string $destination, string $protocol, string $port, string $interface): string
{
    return substr(hash('sha256', "{$family} {$destination} {$protocol} {$port} {$interface}"), 0, 12);
}

/** @return ?array{string,int,string} [network bytes, prefix length, family] of a canonical address or prefix, else null */
function parry_prefix(string $text): ?array
{
    $slash = strpos($text, '/');
    $address = $slash === false ? $text : substr($text, 0, $slash);
    $bytes = @inet_pton($address);
    if ($bytes === false || inet_ntop($bytes) !== $address) {
        return null;
    }
    $width = strlen($bytes) * 8;
    $family = $width === 32 ? 'inet' : 'inet6';
    if ($slash === false) {
        return [$bytes, $width, $family];
    }
    $bits = substr($text, $slash + 1);
    if (!preg_match('/^[1-9]\d{0,2}$/', $bits) || (int)$bits >= $width || parry_mask($bytes, (int)$bits) !== $bytes) {
        return null;
    }
    return [$bytes, (int)$bits, $family];
}

function parry_mask(string $bytes, int $bits): string
{
    $length = strlen($bytes);
    $mask = str_repeat("\xff", $bits >> 3);
    if ($bits & 7) {
        $mask .= chr(0xff << (8 - ($bits & 7)) & 0xff);
    }
    return $bytes & str_pad($mask, $length, "\0");
}

/** @param array<string,int> $addresses text → prefix length. Whether the prefix and one of them have an address in common. */
function parry_overlaps(array $prefix, array $addresses): bool
{
    [$bytes, $bits] = $prefix;
    foreach ($addresses as $text => $other_bits) {
        $other = inet_pton((string)$text);
        if (strlen($other) === strlen($bytes)) {
            $shared = min($bits, $other_bits);
            if (parry_mask($bytes, $shared) === parry_mask($other, $shared)) {
                return true;
            }
        }
    }
    return false;
}

/**
 * Parses the desired text. One pass, no objects and no regular expression per line: 100,000 lines have to take well under a second.
 *
 * @param array{keys: array, own: array, protected: array} $firewall
 * @return array{groups: array<string,array>, rejected: list<array{line:int,code:string}>} groups by rule id, each {family, destination,
 *         protocol, port, interface, sources: sorted and unique, lines: their line numbers}
 */
function parry_desired(string $text, array $firewall): array
{
    $groups = $rejected = $known = $unsorted = [];
    $clean = strspn($text, PARRY_BYTES) === strlen($text);
    $text = $text === '' ? [] : explode("\n", $text);
    if ($text && end($text) === '') {
        array_pop($text);
    }
    $protected = $firewall['protected'];
    $networks = array_filter($protected, fn($bits, $address) => $bits < (str_contains((string)$address, ':') ? 128 : 32), ARRAY_FILTER_USE_BOTH);
    foreach ($text as $i => $line) {
        $first = strpos($line, ' ');
        $last = (int)strrpos($line, ' ');
        $expires = substr($line, $last + 1);
        if (!$first || $last <= $first || (!$clean && strspn($line, PARRY_BYTES) !== strlen($line)) || ($expires !== '-' && !ctype_digit($expires))) {
            $rejected[] = ['line' => $i + 1, 'code' => 'malformed'];
            continue;
        }
        $source = substr($line, 0, $first);
        $plain = strpos($source, '/') === false;
        $bytes = $plain ? @inet_pton($source) : null;
        $prefix = $plain ? null : parry_prefix($source);
        if ($plain ? $bytes === false || inet_ntop($bytes) !== $source || in_array($source, PARRY_NOBODY, true) : $prefix === null) {
            $rejected[] = ['line' => $i + 1, 'code' => 'malformed'];
            continue;
        }
        if (isset($protected[$source]) || (!$plain && parry_overlaps($prefix, $protected))
            || ($plain && $networks && parry_overlaps([$bytes, strlen($bytes) * 8], $networks))) {
            $rejected[] = ['line' => $i + 1, 'code' => 'source_protected'];
            continue;
        }
        /* the rest of the line decides the rule; it is looked at once per family */
        $rest = (strpos($source, ':') === false ? 'inet ' : 'inet6 ') . substr($line, $first + 1, $last - $first - 1);
        $group = $known[$rest] ??= parry_group($rest, $firewall);
        if (isset($group['code'])) {
            $rejected[] = ['line' => $i + 1, 'code' => $group['code']];
            continue;
        }
        $id = $group['id'];
        if (!isset($groups[$id])) {
            $groups[$id] = $group + ['sources' => [], 'lines' => []];
        } elseif (strcmp($source, end($groups[$id]['sources'])) <= 0) {
            $unsorted[$id] = true;
        }
        $groups[$id]['sources'][] = $source;
        $groups[$id]['lines'][] = $i + 1;
    }
    foreach (array_keys($unsorted) as $id) {    /* a file written by hand: sort, and collapse repeats */
        $lines = array_combine($groups[$id]['sources'], $groups[$id]['lines']);
        ksort($lines, SORT_STRING);
        $groups[$id]['sources'] = array_map('strval', array_keys($lines));
        $groups[$id]['lines'] = array_values($lines);
    }
    return ['groups' => $groups, 'rejected' => $rejected];
}

/** "inet6 destination protocol port interface" → a group without sources, or {code} */
function parry_group(string $rest, array $firewall): array
{
    $fields = explode(' ', $rest);
    if (count($fields) !== 5) {
        return ['code' => 'malformed'];
    }
    [$family, $destination, $protocol, $port, $interface] = $fields;
    if (!in_array($protocol, PARRY_PROTOCOLS, true)) {
        return ['code' => preg_match('#^[a-z0-9/-]{1,16}$#D', $protocol) ? 'unsupported_protocol' : 'malformed'];
    }
    /* pfSense drops the port of a rule without a protocol and would block everything (filter_generate_port) */
    if ($port !== '-' && (!in_array($protocol, PARRY_PORT_PROTOCOLS, true) || !preg_match('/^[1-9]\d{0,4}$/D', $port) || (int)$port > 65535)) {
        return ['code' => 'malformed'];
    }
    if ($destination !== '-') {
        $prefix = parry_prefix($destination);
        /* pfSense merges a destination that starts with "::" into a delegated prefix (filter_generate_address) */
        if ($prefix === null || str_starts_with($destination, '::')) {
            return ['code' => 'malformed'];
        }
        if ($prefix[2] !== $family) {
            return ['code' => 'family_mismatch'];
        }
        if (!str_contains($destination, '/') && parry_overlaps($prefix, $firewall['own'])) {
            return ['code' => 'destination_is_firewall'];
        }
    }
    if (!preg_match('/^[a-z0-9]{1,32}$/D', $interface) || !isset($firewall['keys'][$interface])) {
        return ['code' => $interface === '' ? 'malformed' : 'unknown_interface'];
    }
    return ['id' => parry_rule_id($family, $destination, $protocol, $port, $interface), 'family' => $family, 'destination' => $destination,
        'protocol' => $protocol, 'port' => $port, 'interface' => $interface];
}

/** @return list<string> the exempt addresses and prefixes, sorted */
function parry_exempt_list(string $text): array
{
    $known = [];
    foreach ($text === '' ? [] : explode("\n", rtrim($text, "\n")) as $i => $line) {
        if (parry_prefix($line) === null) {
            throw new ParryFailure('bad_desired', 'line ' . ($i + 1) . ' of parry_exempt_file is no address or prefix in its canonical form');
        }
        $known[$line] = true;
    }
    $list = array_values(array_diff(array_map('strval', array_keys($known)), PARRY_NOBODY));
    sort($list, SORT_STRING);
    return $list;
}

/** The columns after the source. */
function parry_columns(array $group): string
{
    return "{$group['destination']} {$group['protocol']} {$group['port']} {$group['interface']}";
}

/**
 * Takes the groups that max_rules has no room for, and the sources that pf has no room for, out of $groups and into $rejected. What is in
 * force already keeps its place.
 *
 * @param array<string,true> $standing ids that the configuration has   @param array<string,list<string>> $loaded sources in force by id
 */
function parry_limit(array &$groups, array &$rejected, int $max_rules, int $capacity, array $standing, array $loaded): void
{
    if (count($groups) > $max_rules) {
        $order = array_merge(array_keys(array_intersect_key($groups, $standing)), array_keys(array_diff_key($groups, $standing)));
        foreach (array_slice($order, $max_rules) as $id) {
            foreach ($groups[$id]['lines'] as $line) {
                $rejected[] = ['line' => $line, 'code' => 'max_rules'];
            }
            unset($groups[$id]);
        }
    }
    $total = array_sum(array_map(fn($group) => count($group['sources']), $groups));
    if ($total <= $capacity) {
        return;
    }
    if ($capacity <= 0) {
        throw new ParryFailure('capacity', 'pf has no room for table entries; raise System > Advanced > Firewall & NAT > Firewall Maximum Table Entries', ['capacity' => 0]);
    }
    $over = $total - $capacity;
    foreach ([false, true] as $standing_too) {      /* newcomers give way first */
        foreach ($groups as $id => &$group) {
            $in_force = array_flip($loaded[$id] ?? []);
            for ($i = count($group['sources']) - 1; $i >= 0 && $over > 0; $i--) {
                if ($standing_too || !isset($in_force[$group['sources'][$i]])) {
                    $rejected[] = ['line' => $group['lines'][$i], 'code' => 'capacity'];
                    unset($group['sources'][$i], $group['lines'][$i]);
                    $over--;
                }
            }
            $group['sources'] = array_values($group['sources']);
            $group['lines'] = array_values($group['lines']);
        }
        unset($group);
        $groups = array_filter($groups, fn($group) => $group['sources']);
    }
}
