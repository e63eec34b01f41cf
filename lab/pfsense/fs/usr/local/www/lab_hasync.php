<?php
/*
 * The two ends of an HA pair's configuration sync, as far as the filter goes: "export" prints the primary's sections without the items marked
 * nosync; "import" puts them, whole, in the place of the secondary's own, and queues a reload. Files are never carried.
 */
require_once('config.inc');
require_once('functions.inc');
require_once('filter.inc');

if ($argv[1] === 'export') {
	$sections = ['aliases' => config_get_path('aliases'), 'filter' => config_get_path('filter'), 'nat' => config_get_path('nat')];
	foreach (['aliases' => 'alias', 'filter' => 'rule'] as $section => $list) {
		$sections[$section][$list] = array_values(array_filter($sections[$section][$list] ?? [], fn($item) => !isset($item['nosync'])));
	}
	echo base64_encode(json_encode($sections)), "\n";
} else {
	foreach (json_decode(base64_decode(stream_get_contents(STDIN)), true) as $section => $value) {
		config_set_path($section, $value);
	}
	write_config('Merged in config (aliases, filter, nat sections) from XMLRPC client.', true, true);
	filter_configure();
}
