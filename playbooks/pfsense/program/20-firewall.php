<?php
/* What the program learns from the firewall before it touches it: configuration, state file, interfaces, addresses that must stay reachable. */

/**
 * Reads config.xml itself into pfSense's global configuration. 2.7 trusts its cache blindly, and a write_config() on top of a stale cache would
 * take an administrator's change back.
 */
function parry_fresh_config(): void
{
    if (function_exists('config_read_file')) {      /* 2.8 and later */
        if (config_read_file(false, false) === false) {
            throw new ParryFailure('internal', 'config.xml cannot be read; restore it on the firewall, then run again');
        }
        return;
    }
    $GLOBALS['config'] = parse_config(true);        /* 2.7 */
}

function parry_config_hash(): string
{
    clearstatcache();
    return (string)hash_file('sha256', g_get('cf_conf_path') . '/config.xml');
}

function parry_list(string $path): array
{
    $list = config_get_path($path, []);
    return is_array($list) ? $list : [];
}

/** Fails early, before any change, on a pfSense whose API this program does not know. */
function parry_require_api(): void
{
    $missing = array_filter(
        ['config_get_path', 'config_set_path', 'write_config', 'filter_configure_sync', 'alias_make_table', 'try_lock', 'unlock', 'g_get'],
        fn($name) => !function_exists($name)
    );
    if (!function_exists('config_read_file') && !function_exists('parse_config')) {
        $missing[] = 'config_read_file';
    }
    if ($missing) {
        throw new ParryFailure('unsupported_version', 'this pfSense (' . parry_version() . ') lacks ' . implode(', ', $missing) . '; 2.7.0 or later is needed');
    }
}

function parry_version(): string
{
    return trim((string)@file_get_contents('/etc/version'));
}

/* ---- state file: who may change this firewall ---- */

function parry_state_path(): string
{
    return g_get('conf_path') . '/parry.json';
}

/**
 * {controller, epoch, held, run_id, revision, empty: {rule id: Unix time since which it has had no entry}, owed: ["rule id source" of what may be
 * loaded while its open connections are not ended]}
 */
function parry_state_read(bool $adopt): array
{
    $none = ['controller' => '', 'epoch' => 0, 'held' => false, 'run_id' => '', 'revision' => 0, 'empty' => [], 'owed' => []];
    $path = parry_state_path();
    if (!file_exists($path)) {
        return $none;
    }
    $state = json_decode((string)file_get_contents($path), true);
    if (!is_array($state)) {
        if ($adopt) {
            return $none;
        }
        throw new ParryFailure('internal', "{$path} on the firewall is damaged, so it is not known who controls it; adopt the firewall (parry_adopt=true) to start anew");
    }
    return array_intersect_key($state, $none) + $none;
}

function parry_state_write(array $state): void
{
    $state['empty'] = (object)$state['empty'];
    parry_write_file(parry_state_path(), json_encode($state, JSON_UNESCAPED_SLASHES) . "\n", 0600);
}

/** Replaces a file by rename, synced, so that a reader or a crash sees the old or the new text, never a part. */
function parry_write_file(string $path, string $text, int $mode = 0644): void
{
    $temp = "{$path}.parry" . getmypid();
    $file = @fopen($temp, 'w');
    $done = $file && fwrite($file, $text) === strlen($text) && fflush($file) && fsync($file);
    $done = $file && fclose($file) && $done && chmod($temp, $mode) && rename($temp, $path);
    if (!$done) {
        @unlink($temp);
        throw new ParryFailure('internal', "cannot write {$path} on the firewall (disk full or read-only?)");
    }
    if ($directory = @fopen(dirname($path), 'r')) {
        @fsync($directory);
        fclose($directory);
    }
}

/* ---- interfaces and addresses ---- */

/** @return array{keys: array<string,true>, real: array<string,string>} enabled interfaces by key, and the key of each name that pf shows */
function parry_interfaces(): array
{
    $keys = $real = [];
    foreach (parry_list('interfaces') as $key => $interface) {
        if (!is_array($interface) || !isset($interface['enable'])) {
            continue;
        }
        $keys[$key] = true;
        $name = (string)get_real_interface($key);
        if ($name !== '') {
            $real[$name] ??= $key;
        }
        $real["{$key}_stf"] = $key;     /* 6rd and 6to4 carry IPv6 on an interface of their own */
    }
    return ['keys' => $keys, 'real' => $real];
}

/** @return array<string,int> text → prefix length of the firewall's own addresses and the networks that it answers for (proxy ARP, other) */
function parry_own_addresses(): array
{
    $own = [];
    foreach (array_merge(array_values(get_configured_ip_addresses()), array_values(get_configured_ipv6_addresses())) as $address) {
        $own[strtok((string)$address, '%')] = null;
    }
    foreach (parry_list('virtualip/vip') as $vip) {
        $bits = in_array($vip['mode'] ?? '', ['proxyarp', 'other'], true) ? (int)($vip['subnet_bits'] ?? 0) : null;
        $own[(string)($vip['subnet'] ?? '')] = $bits ?: null;
    }
    return parry_with_bits($own);
}

/** Own addresses, gateways, resolvers and the address that this very session comes from: no source may overlap one of them. */
function parry_protected_addresses(array $own): array
{
    return $own + parry_gateways() + parry_resolvers() + parry_with_bits([(string)strtok((string)getenv('SSH_CONNECTION'), ' ') => null]);
}

/** @return array<string,int> text → prefix length of the configured and the dynamic gateways */
function parry_gateways(): array
{
    $more = [];
    foreach (parry_list('gateways/gateway_item') as $gateway) {
        $more[(string)($gateway['gateway'] ?? '')] = null;
    }
    foreach (array_keys(parry_interfaces()['keys']) as $key) {
        $more[(string)get_interface_gateway($key)] = null;
        $more[strtok((string)get_interface_gateway_v6($key), '%')] = null;
    }
    return parry_with_bits($more);
}

/** @return array<string,int> text → prefix length of the resolvers that are configured or in use */
function parry_resolvers(): array
{
    $more = [];
    foreach (parry_list('system/dnsserver') as $resolver) {
        $more[(string)$resolver] = null;
    }
    preg_match_all('/^\s*nameserver\s+(\S+)/m', (string)@file_get_contents('/etc/resolv.conf'), $found);
    foreach ($found[1] as $resolver) {
        $more[$resolver] = null;
    }
    return parry_with_bits($more);
}

/** Drops what is no address (a dynamic gateway has a word there) and fills in full prefix lengths. */
function parry_with_bits(array $addresses): array
{
    $known = [];
    foreach ($addresses as $address => $bits) {
        $binary = @inet_pton((string)$address);
        if ($binary !== false) {
            $known[inet_ntop($binary)] = $bits ?? strlen($binary) * 8;
        }
    }
    return $known;
}

/**
 * Which machine, and which of its boots, answers: a new boot id tells that table files on a RAM disk may be gone.
 *
 * @return array{machine_id: string, boot_id: string} FreeBSD's host uuid, and the second of the boot
 */
function parry_identity(): array
{
    $out = is_executable('/sbin/sysctl') ? (string)shell_exec('/sbin/sysctl -n kern.hostuuid kern.boottime 2>/dev/null') : '';
    return ['machine_id' => trim(strtok($out, "\n") ?: (string)@file_get_contents('/etc/hostid')),
        'boot_id' => preg_match('/\bsec = (\d+)/', $out, $found) ? $found[1] : ''];
}
