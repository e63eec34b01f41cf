<?php
/* What the firewall says of the network around it: single addresses, and the port forwards by which a public address means another. */

const PARRY_MOST = 1024;        /* of each kind, as the contract has it */

/**
 * @param array<string,true> $keys enabled interfaces
 * @return array{addresses: list<string>, gateways: list<string>, resolvers: list<string>, forwards: list<array>}
 */
function parry_network(array $keys): array
{
    $single = fn(array $known) => array_slice(array_values(array_filter(array_map('strval', array_keys($known)),
        fn($address) => $known[$address] === strlen(inet_pton($address)) * 8 && parry_is_some_host($address))), 0, PARRY_MOST);
    return ['addresses' => $single(parry_own_addresses()), 'gateways' => $single(parry_gateways()), 'resolvers' => $single(parry_resolvers()),
        'forwards' => array_slice(array_merge(parry_port_forwards($keys), parry_one_to_one($keys)), 0, PARRY_MOST)];
}

/** Neither unspecified, nor loopback, nor multicast. */
function parry_is_some_host(string $address): bool
{
    foreach (['0.0.0.0/8', '127.0.0.0/8', '224.0.0.0/3', '::/127', 'ff00::/8'] as $network) {
        [$base, $bits] = explode('/', $network);
        if (parry_overlaps([inet_pton($address), strlen(inet_pton($address)) * 8], [$base => (int)$bits])) {
            return false;
        }
    }
    return true;
}

/**
 * Port forwards in the order in which pf tries them. Left out is what does not hold for everybody or cannot be said in one line: a forward for
 * some sources only, to several hosts, from a network, and whatever a "no redirect" rule above it may take away.
 */
function parry_port_forwards(array $keys): array
{
    $forwards = $kept = [];
    foreach (parry_list('nat/rule') as $rule) {
        if (!is_array($rule) || isset($rule['disabled']) || !isset($keys[(string)($rule['interface'] ?? '') ?: 'wan'])) {
            continue;
        }
        $found = parry_port_forward($rule);
        if (isset($rule['nordr'])) {
            if (!$found) {
                break;          /* what it takes away cannot be said */
            }
            array_push($kept, ...$found);
        } elseif (isset($rule['source']['any'])) {
            array_push($forwards, ...array_filter($found, fn($forward) => !array_filter($kept, fn($other) => parry_same_target($forward, $other))));
        }
    }
    return $forwards;
}

/** Whether a packet can be meant by both. */
function parry_same_target(array $one, array $other): bool
{
    return $one['destination'] === $other['destination']
        && ($one['protocol'] === '-' || $other['protocol'] === '-' || array_intersect(explode('/', $one['protocol']), explode('/', $other['protocol'])))
        && ($one['port'] === 0 || $other['port'] === 0 || ($one['port'] <= $other['port_end'] && $other['port'] <= $one['port_end']));
}

/** @return list<array> one rule of the NAT page, a line for each address and range of ports (filter_nat_rules_generate) */
function parry_port_forward(array $rule): array
{
    $family = ($rule['ipprotocol'] ?? '') === 'inet6' ? 'inet6' : 'inet';
    $protocol = strtolower((string)($rule['protocol'] ?? ''));
    $protocol = in_array($protocol, ['', 'any'], true) ? '-' : $protocol;
    $targets = isset($rule['nordr']) ? [''] : parry_hosts((string)($rule['target'] ?? ''), $family);
    $destination = is_array($rule['destination'] ?? null) ? $rule['destination'] : [];
    if (!in_array($protocol, PARRY_PROTOCOLS, true) || count($targets) !== 1 || isset($destination['not'])) {
        return [];
    }
    $named = (string)($destination['port'] ?? '');
    $local = (string)($rule['local-port'] ?? '');
    $ports = !in_array($protocol, PARRY_PORT_PROTOCOLS, true) || $named === '' ? [[0, 0]] : parry_ports($named);
    if ($local === '' || $local === $named) {
        $first = null;
    } elseif (!($first = parry_ports($local)[0][0] ?? 0)) {
        return [];
    }
    $lines = [];
    foreach (parry_hosts((string)($destination['network'] ?? $destination['address'] ?? ''), $family) as $address) {
        foreach ($ports as [$from, $to]) {
            /* to an alias of ports, or from one, pfSense sends all to the first port; a range to a port goes on counting from there */
            $counts = ctype_digit($local) && preg_match('/^\d+-\d+$/D', $named);
            if ($from !== 0 && $first !== null && $to > $from && (!$counts || $first + $to - $from > 65535)) {
                continue;
            }
            $lines[] = ['destination' => $address, 'protocol' => $protocol, 'port' => $from, 'port_end' => $to, 'to' => $targets[0],
                'to_port' => $from === 0 ? 0 : $first ?? $from];
        }
    }
    return $lines;
}

/** 1:1 NAT of single hosts; pf tries it after the port forwards. */
function parry_one_to_one(array $keys): array
{
    $lines = [];
    foreach (parry_list('nat/onetoone') as $rule) {
        if (!is_array($rule) || isset($rule['disabled']) || isset($rule['nobinat']) || !isset($keys[(string)($rule['interface'] ?? '') ?: 'wan'])
            || !isset($rule['destination']['any']) || isset($rule['source']['not'])) {
            continue;
        }
        $family = ($rule['ipprotocol'] ?? '') === 'inet6' || str_contains((string)($rule['external'] ?? ''), ':') ? 'inet6' : 'inet';
        $outside = parry_hosts((string)($rule['external'] ?? ''), $family);
        $inside = parry_hosts((string)($rule['source']['network'] ?? $rule['source']['address'] ?? ''), $family);
        if (count($outside) === 1 && count($inside) === 1) {
            $lines[] = ['destination' => $outside[0], 'protocol' => '-', 'port' => 0, 'port_end' => 0, 'to' => $inside[0], 'to_port' => 0];
        }
    }
    return $lines;
}

/** @return list<string> the single addresses that a field of a NAT rule means: one, an alias of hosts, an interface's own; [] when it means others, too */
function parry_hosts(string $text, string $family): array
{
    $hosts = [];
    if ($text === '(self)') {
        $hosts = array_map('strval', array_keys(parry_own_addresses()));
    } elseif (preg_match('/^(\w+)ip$/D', $text, $found)) {
        $hosts = [(string)($family === 'inet' ? get_interface_ip($found[1]) : get_interface_ipv6($found[1]))];
    } elseif (($alias = parry_find_alias($text)) === null) {
        $hosts = [$text];
    } elseif (($alias['type'] ?? '') === 'host') {
        $hosts = preg_split('/\s+/', (string)($alias['address'] ?? ''), -1, PREG_SPLIT_NO_EMPTY);
    }
    $known = [];
    foreach ($hosts as $host) {
        $bytes = @inet_pton(preg_replace('#/(32|128)$#D', '', $host));
        if ($bytes === false && $text !== '(self)') {
            return [];          /* a network, a name, an alias within the alias */
        }
        if ($bytes !== false && strlen($bytes) === ($family === 'inet' ? 4 : 16) && parry_is_some_host(inet_ntop($bytes))) {
            $known[] = inet_ntop($bytes);
        }
    }
    return $known;
}

/** @return list<array{int,int}> ranges of "443", "8000-8010" or an alias of ports; [] when one of them is none */
function parry_ports(string $text): array
{
    $alias = parry_find_alias($text);
    $ranges = [];
    foreach ($alias === null ? [$text] : preg_split('/\s+/', (string)($alias['address'] ?? ''), -1, PREG_SPLIT_NO_EMPTY) as $range) {
        if (!preg_match('/^(\d{1,5})(?:[:-](\d{1,5}))?$/D', $range, $port)) {
            return [];
        }
        [$from, $to] = [(int)$port[1], (int)($port[2] ?? $port[1])];
        if ($from < 1 || $to < $from || $to > 65535) {
            return [];
        }
        $ranges[] = [$from, $to];
    }
    return $ranges;
}

function parry_find_alias(string $name): ?array
{
    foreach (parry_list('aliases/alias') as $alias) {
        if (is_array($alias) && $name !== '' && ($alias['name'] ?? '') === $name) {
            return $alias;
        }
    }
    return null;
}
