<?php
/* Included by pfSense's own sources; nothing more of it is needed here. */

class PEAR {
	public static function loadExtension($name) {
		return true;
	}
}
