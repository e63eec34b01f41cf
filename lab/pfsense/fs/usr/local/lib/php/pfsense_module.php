<?php
/*
 * The functions of pfSense's PHP extension (C on a real firewall) that a program may call; loaded before every script by php.ini.
 * They read and write the stand-in kernel's state in /.lab.
 */

/**
 * Calls $edit with the list of states, each a list: interface, protocol, source, port, destination, port; keeps what it returns. Under pf's
 * lock.
 */
function lab_pf_states(callable $edit): void {
	$lock = fopen('/.lab/pf/lock', 'c');
	flock($lock, LOCK_EX);
	$old = array_map(fn($l) => explode(' ', $l), @file('/.lab/pf/states', FILE_IGNORE_NEW_LINES | FILE_SKIP_EMPTY_LINES) ?: []);
	$new = $edit($old);
	if (count($new) !== count($old)) {
		file_put_contents('/.lab/pf/states', implode('', array_map(fn($s) => implode(' ', $s) . "\n", $new)));
	}
	fclose($lock);
}

/** True when $ip lies in $net (an address or a prefix) of the same family. */
function lab_ip_in(string $ip, string $net): bool {
	[$n, $bits] = explode('/', $net) + [1 => null];
	$i = @inet_pton($ip);
	$n = @inet_pton($n);
	if ($i === false || $n === false || strlen($i) !== strlen($n)) {
		return false;
	}
	$bits = (int)($bits ?? strlen($n) * 8);
	$whole = intdiv($bits, 8);
	$mask = $bits % 8 ? chr(0xff << (8 - $bits % 8) & 0xff) : '';
	return substr($i, 0, $whole) === substr($n, 0, $whole)
	    && ($mask === '' || ($i[$whole] & $mask) === ($n[$whole] & $mask));
}

/** Kills the states from $src (address or prefix), to $dst, on $iface, of $proto where given. No port. */
function pfSense_kill_states($src, $dst = null, $iface = null, $proto = null) {
	if (@filesize('/.lab/pf/states') === 0) {
		return null;
	}
	lab_pf_states(fn($states) => array_values(array_filter($states, fn($s) => !(
	    lab_ip_in($s[2], (string)$src)
	    && (empty($dst) || lab_ip_in($s[4], (string)$dst))
	    && (empty($iface) || $s[0] === $iface)
	    && (empty($proto) || $s[1] === strtolower((string)$proto))))));
	return null;
}

function pfSense_kill_srcstates($src, $dst = null) {
	return null;
}

/** As pfctl prints it: the same line has the same id. */
function lab_state_id(array $state): string {
	$h = 0;
	foreach (str_split(implode(' ', $state)) as $c) {
		$h = ($h * 33 + ord($c)) & 0xffffffff;
	}
	return sprintf('%016x', $h);
}

function lab_state_end(string $addr, string $port): string {
	return $port === '-' ? $addr : (str_contains($addr, ':') ? "{$addr}[{$port}]" : "{$addr}:{$port}");
}

function pfSense_get_pf_states($filters = null): array {
	$out = [];
	lab_pf_states(function ($states) use (&$out) {
		foreach ($states as $state) {
			[$if, $proto, $src, $sport, $dst, $dport] = $state;
			$out[] = ['if' => $if, 'proto' => $proto, 'direction' => 'in',
			    'src' => lab_state_end($src, $sport), 'dst' => lab_state_end($dst, $dport),
			    'state' => $proto === 'tcp' ? 'ESTABLISHED:ESTABLISHED' : 'MULTIPLE:MULTIPLE', 'age' => '00:00:10', 'expires in' => '24:00:00',
			    'packets total' => 2, 'packets in' => 1, 'packets out' => 1, 'bytes total' => 100, 'bytes in' => 50, 'bytes out' => 50,
			    'id' => lab_state_id($state), 'creatorid' => '00000001'];
		}
		return $states;
	});
	return $out;
}

function pfSense_interface_listget(): array {
	return ['em0', 'em1', 'em2', 'enc0', 'lo0', 'pflog0', 'pfsync0'];
}

function pfSense_get_interface_addresses(string $if): array {
	foreach (config_get_path('interfaces', []) as $i) {
		if ($i['if'] === $if) {
			return ['ipaddr' => $i['ipaddr'] ?? '', 'subnetbits' => $i['subnet'] ?? '', 'ipaddr6' => $i['ipaddrv6'] ?? '',
			    'subnetbits6' => $i['subnetv6'] ?? '', 'status' => 'up', 'macaddr' => '52:54:00:00:00:0' . substr($if, -1), 'mtu' => 1500];
		}
	}
	return [];
}

function pfSense_getall_interface_addresses(string $if): array {
	$a = pfSense_get_interface_addresses($if);
	return array_values(array_filter([
	    empty($a['ipaddr']) ? '' : "{$a['ipaddr']}/{$a['subnetbits']}", empty($a['ipaddr6']) ? '' : "{$a['ipaddr6']}/{$a['subnetbits6']}"]));
}

function pfSense_get_os_hw_data(): array {
	return [];
}

function pfSense_fsync(string $path): bool {
	return true;
}

/** [interface => its addresses], as pfSense's own sources read them in place of pfSense_get_interface_addresses. */
function pfSense_get_ifaddrs(string $if): array {
	$a = pfSense_get_interface_addresses($if);
	if (!$a) {
		return [];
	}
	return ['status' => 'up', 'macaddr' => $a['macaddr'], 'mtu' => 1500,
	    'addrs' => $a['ipaddr'] === '' ? [] : [['addr' => $a['ipaddr'], 'subnetbits' => (int)$a['subnetbits']]],
	    'addrs6' => $a['ipaddr6'] === '' ? [] : [['addr' => $a['ipaddr6'], 'subnetbits' => (int)$a['subnetbits6']]]];
}

/* pfSense's PHP has mbstring; Debian's php-cli may not. */
if (!function_exists('mb_strlen')) {
	function mb_strlen($s, $encoding = null) {
		return preg_match_all('/./us', (string)$s) ?: 0;
	}
}
