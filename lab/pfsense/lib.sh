# Shared by the scripts of this lab; sourced, never run.
# shellcheck shell=bash
# shellcheck source=lab/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

# lab_wait_reload DIR: waits until the reloads that are queued are through.
lab_wait_reload() {
	local i
	for ((i = 0; i < 300; i++)); do
		compgen -G "$1/root/.lab/reloading.*" >/dev/null || return 0
		sleep 0.1
	done
	lab_die 'the reload did not end'
}
