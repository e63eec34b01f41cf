# Shared by the scripts of the lab; sourced, never run.
# shellcheck shell=bash
set -euo pipefail
umask 022

lab_here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
lab_repo=$(cd "$lab_here/../.." && pwd)

lab_die() {
	echo "${0##*/}: $*" >&2
	exit 1
}

# The two firewalls that the scripts mean when told nothing: inventory/lab names the same ports.
lab_default_port() {
	case $1 in
	fw-a) echo 2201 ;;
	fw-b) echo 2202 ;;
	*) return 1 ;;
	esac
}

lab_default_dir() { echo "${LAB_DIR:-$lab_repo/.lab}/$1"; }

# lab_pid DIR: prints the process id of the instance's init, or fails when it is not running.
# The start time guards against a number that has been given to another process since.
lab_pid() {
	local pid start now
	read -r pid start 2>/dev/null <"$1/pid" || return 1
	now=$(lab_start_time "$pid") || return 1
	[ "$now" = "$start" ] || return 1
	echo "$pid"
}

lab_start_time() {
	local stat
	read -r stat 2>/dev/null <"/proc/$1/stat" || return 1
	stat=${stat##*) }
	# shellcheck disable=SC2086
	set -- $stat
	[ "$1" != Z ] && echo "${20}"
}

# lab_only_dir "$@": for scripts whose first words are --dir DIR or --name NAME; sets dir and shifted.
lab_only_dir() {
	dir=$(lab_default_dir fw-a) shifted=0
	while [ $# -ge 2 ]; do
		case $1 in
		--dir) dir=$2 ;;
		--name) dir=$(lab_default_dir "$2") ;;
		*) break ;;
		esac
		shift 2
		shifted=$((shifted + 2))
	done
	[ -d "$dir/root" ] || lab_die "no lab firewall in $dir (lab/pfsense/up makes one)"
}

# lab_wait_reload DIR: waits until the reloads that are queued are through.
lab_wait_reload() {
	local i
	for ((i = 0; i < 300; i++)); do
		compgen -G "$1/root/.lab/reloading.*" >/dev/null || return 0
		sleep 0.1
	done
	lab_die 'the reload did not end'
}
