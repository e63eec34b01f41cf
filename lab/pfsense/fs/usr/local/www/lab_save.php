<?php
/*
 * What a save in the web interface does, from a page's view: include (which reads the configuration, from the cache when there is one),
 * change something, write_config, filter_configure. Arguments: [pause=SECONDS] [floating=DESCRIPTION] [delete=TRACKER] [disable=TRACKER]
 */
parse_str(implode('&', array_slice($argv, 1)), $want);
$_SERVER['REMOTE_ADDR'] = '192.168.1.100';
$_SERVER['SCRIPT_NAME'] = '/system_advanced_admin.php';
$_SESSION['Username'] = 'admin';

require_once('config.inc');
require_once('functions.inc');
require_once('filter.inc');

usleep((int)(1e6 * (float)($want['pause'] ?? 0)));	/* the admin looks at the form */
$what = 'Dashboard columns changed';
config_set_path('system/webgui/dashboardcolumns', (string)(config_get_path('system/webgui/dashboardcolumns', 2) % 4 + 1));
$rules = config_get_path('filter/rule', []);
if (isset($want['floating'])) {
	$what = 'Firewall: Rules - saved/edited a firewall rule.';
	array_unshift($rules, ['id' => '', 'tracker' => (string)time(), 'type' => 'pass', 'floating' => 'yes', 'quick' => 'yes', 'interface' => 'wan',
	    'direction' => 'in', 'ipprotocol' => 'inet', 'protocol' => 'udp', 'source' => ['any' => ''],
	    'destination' => ['address' => '198.18.10.81', 'port' => '1194'], 'descr' => $want['floating']]);
}
if (isset($want['delete'])) {
	$what = 'Firewall: Rules - deleted a firewall rule.';
	$rules = array_values(array_filter($rules, fn($r) => ($r['tracker'] ?? '') !== $want['delete']));
}
if (isset($want['disable'])) {
	$what = 'Firewall: Rules - disabled a firewall rule.';
	$rules = array_map(fn($r) => ($r['tracker'] ?? '') === $want['disable'] ? $r + ['disabled' => ''] : $r, $rules);
}
config_set_path('filter/rule', $rules);
write_config($what);
filter_configure();
