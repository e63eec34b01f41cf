<?php
/* The calls of PEAR's Net_IPv6 that pfSense's own sources make. */

class Net_IPv6 {
	public static function checkIPv6($ip) {
		return filter_var($ip, FILTER_VALIDATE_IP, FILTER_FLAG_IPV6) !== false;
	}

	public static function compress($ip, $force = false) {
		return inet_ntop(inet_pton($ip));
	}

	public static function uncompress($ip, $leadingZeros = false) {
		$groups = str_split(bin2hex(inet_pton($ip)), 4);
		return implode(':', $leadingZeros ? $groups : array_map(fn($g) => dechex(hexdec($g)), $groups));
	}

	public static function removeNetmaskSpec($ip) {
		return explode('/', $ip)[0];
	}

	public static function removePrefixLength($ip) {
		return explode('/', $ip)[0];
	}

	public static function getNetmask($ip, $bits = null) {
		$bin = inet_pton($ip);
		for ($i = 0; $i < strlen($bin); $i++) {
			$bin[$i] = chr(ord($bin[$i]) & (0xff << (8 - max(0, min(8, (int)$bits - 8 * $i))) & 0xff));
		}
		return inet_ntop($bin);
	}

	public static function isInNetmask($ip, $net, $bits = null) {
		return lab_ip_in($ip, $bits === null ? $net : "{$net}/{$bits}");
	}

	public static function _ip2Bin($ip) {
		return implode('', array_map(fn($c) => sprintf('%08b', ord($c)), str_split(inet_pton($ip))));
	}
}
