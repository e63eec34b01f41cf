# Shared by the scripts of this lab; sourced, never run.
# shellcheck shell=bash
# shellcheck source=lab/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

# lab_in DIR COMMAND...: runs a command on the firewall itself, not by ssh: as its console would.
lab_in() {
	local pid dir=$1
	shift
	pid=$(lab_pid "$dir") || lab_die "no firewall is running in $dir"
	nsenter --target "$pid" --mount --net --pid --uts --root env --chdir=/ -i PATH=/sbin:/bin:/usr/sbin:/usr/bin HOME=/root "$@"
}
