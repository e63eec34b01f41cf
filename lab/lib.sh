# Shared by the scripts of every lab; sourced by their own lib.sh, never run.
# shellcheck shell=bash
set -euo pipefail
umask 022

lab_here=$(cd "$(dirname "$0")" && pwd) # the directory of the script that is run: lab/KIND
lab_repo=$(cd "$lab_here/../.." && pwd)

lab_die() {
	echo "${0##*/}: $*" >&2
	exit 1
}

# The firewalls that the scripts mean when told nothing: inventory/lab names the same ports.
lab_default_port() {
	case $1 in
	fw-a) echo 2201 ;;
	fw-b) echo 2202 ;;
	fw-c) echo 2203 ;;
	fw-d) echo 2204 ;;
	*) return 1 ;;
	esac
}

lab_default_dir() { echo "${LAB_DIR:-$lab_repo/.lab}/$1"; }

# lab_pid DIR [FILE]: prints the process id of the instance's init (or of another process that FILE names), or fails when it is not running.
# The start time guards against a number that has been given to another process since.
lab_pid() {
	local pid start now
	read -r pid start 2>/dev/null <"$1/${2:-pid}" || return 1
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

# lab_only_dir DEFAULT "$@": for scripts whose first words are --dir DIR or --name NAME; sets dir and shifted.
lab_only_dir() {
	dir=$(lab_default_dir "$1") shifted=0
	shift
	while [ $# -ge 2 ]; do
		case $1 in
		--dir) dir=$2 ;;
		--name) dir=$(lab_default_dir "$2") ;;
		*) break ;;
		esac
		shift 2
		shifted=$((shifted + 2))
	done
	[ -d "$dir/root" ] || lab_die "no lab firewall in $dir ($lab_here/up makes one)"
}

# lab_options DEFAULT "$@": the options that every up has; sets dir, name, port, pubkey and owner, and locks dir. What is not known is given to
# lab_option NAME VALUE, which fails when it does not know it either.
lab_options() {
	local default=$1
	dir='' name='' port='' pubkey='' owner=''
	shift
	while [ $# -gt 0 ]; do
		[ $# -ge 2 ] || lab_die "$1 needs a value"
		case $1 in
		--dir) dir=$2 ;;
		--name) name=$2 ;;
		--port) port=$2 ;;
		--pubkey) pubkey=$2 ;;
		--owner) owner=$2 ;;
		*) lab_option "$1" "$2" || lab_die "unknown option $1" ;;
		esac
		shift 2
	done
	name=${name:-$(cat "${dir:-/nonexistent}/name" 2>/dev/null || echo "$default")}
	dir=${dir:-$(lab_default_dir "$name")}
	port=${port:-$(cat "$dir/port" 2>/dev/null || lab_default_port "$name")} || lab_die "--port is needed for $name"
	[[ $name =~ ^[a-z0-9][a-z0-9-]{0,30}$ ]] || lab_die "bad name '$name'"
	[[ $port =~ ^[0-9]{2,5}$ ]] || lab_die "bad port '$port'"
	[ -z "$pubkey" ] || [ -r "$pubkey" ] || lab_die "cannot read $pubkey"
	[ "$(id -u)" = 0 ] || lab_die 'must be run as root (namespaces)'
	[ -x /usr/sbin/sshd ] || lab_die 'needs openssh-server'
	mkdir -p "$dir"
	dir=$(cd "$dir" && pwd)
	exec 8>"$dir/lock"
	flock -n 8 || lab_die "another up is at work in $dir"
	! lab_pid "$dir" >/dev/null || lab_die "$name is already up in $dir"
}

# lab_host_dirs NEW: the top directories that are links into /usr on a merged system, as the host has them, and the place of what is mounted.
lab_host_dirs() {
	local d
	for d in bin lib lib32 lib64 libx32; do
		if [ -L "/$d" ]; then cp -P "/$d" "$1/$d"; elif [ -d "/$d" ]; then mkdir "$1/$d"; fi
	done
	mkdir -p "$1/etc/alternatives"
}

# lab_keys: host key, client key, known_hosts; port and name for a later up.
lab_keys() {
	local key=$dir/root/etc/ssh/ssh_host_ed25519_key type blob
	[ -e "$key" ] || ssh-keygen -q -t ed25519 -N '' -C "root@$name" -f "$key"
	[ -e "$dir/id_ed25519" ] || ssh-keygen -q -t ed25519 -N '' -C "lab client of $name" -f "$dir/id_ed25519"
	cp "$key.pub" "$dir/hostkey.pub"
	read -r type blob _ <"$key.pub"
	echo "[127.0.0.1]:$port $type $blob" >"$dir/known_hosts"
	cat "$dir/id_ed25519.pub" ${pubkey:+"$pubkey"} >"$dir/root/root/.ssh/authorized_keys"
	echo "$port" >"$dir/port"
	echo "$name" >"$dir/name"
}

# lab_start WHAT COMMAND...: starts the instance's first process and returns when sshd listens. With an owner, its end is the end of the instance.
lab_start() {
	local what=$1 log=$dir/sshd.log i said tick
	shift
	: >"$log"
	rm -f "$dir/pid"
	setsid "$@" </dev/null >>"$log" 2>&1 8>&- &
	outer=$!
	trap 'kill -9 "$outer" 2>/dev/null || :' EXIT # until it listens, it dies with us
	exec {tick}<> <(:) # nothing comes from it: to read it is to sleep, without a process for each time
	for ((i = 0; i < 1500; i++)); do
		IFS= read -rd '' said <"$log" || :
		if [[ $said == *"Server listening on 127.0.0.1 port $port."* ]]; then
			trap - EXIT
			disown "$outer"
			if [ -n "$owner" ]; then
				# shellcheck disable=SC2016
				setsid bash -c 'tail --pid="$1" -s 1 -f /dev/null; exec "$2/down" --dir "$3"' - "$owner" "$lab_here" "$dir" \
					</dev/null >/dev/null 2>&1 8>&- {tick}>&- &
				disown $!
			fi
			echo "$name: $what on 127.0.0.1 port $port, $dir"
			exit 0
		fi
		kill -0 "$outer" 2>/dev/null || break
		read -rt 0.01 -u "$tick" || :
	done
	cat "$log" >&2
	lab_die "$name did not come up"
}

# lab_down NAMES -- "$@": ends instances, by default those named; their state stays for the next up unless --purge is given.
lab_down() {
	local dirs=() defaults=() purge='' pid
	while [ "$1" != -- ]; do
		defaults+=("$(lab_default_dir "$1")")
		shift
	done
	shift
	while [ $# -gt 0 ]; do
		case $1 in
		--purge) purge=1 ;;
		--dir) dirs+=("${2:?--dir needs a value}") && shift ;;
		--name) dirs+=("$(lab_default_dir "${2:?--name needs a value}")") && shift ;;
		*) lab_die "unknown option $1" ;;
		esac
		shift
	done
	[ ${#dirs[@]} -gt 0 ] || dirs=("${defaults[@]}")
	for dir in "${dirs[@]}"; do
		if pid=$(lab_pid "$dir"); then
			kill -9 "$pid" # it is pid 1 of its namespace: all of the instance's processes and mounts go with it
			while lab_start_time "$pid" >/dev/null; do sleep 0.01; done
		fi
		rm -f "$dir/pid"
		if [ -n "$purge" ] && [ -d "$dir/root" ]; then
			rm -rf --one-file-system "$dir"/{root,usr-local,root.new,usr-local.new}
			rm -f "$dir"/{hostkey.pub,known_hosts,id_ed25519,id_ed25519.pub,name,port,lock,sshd.log,attacker.pid,server.pid}
			rmdir --ignore-fail-on-non-empty "$dir"
			rmdir "$(lab_default_dir '')" 2>/dev/null || :
		fi
	done
}

# lab_ssh USER DIR [CMD...]: a command on the firewall, or its console.
lab_ssh() {
	local user=$1 dir=$2
	shift 2
	exec ssh -F none -i "$dir/id_ed25519" -o IdentitiesOnly=yes -o BatchMode=yes -o StrictHostKeyChecking=yes \
		-o UserKnownHostsFile="$dir/known_hosts" -o LogLevel=ERROR -p "$(cat "$dir/port")" "$user@127.0.0.1" "$@"
}

# lab_ro FROM TO: FROM read-only at TO.
lab_ro() {
	mount --bind "$1" "$2"
	mount -o remount,bind,ro "$2"
}

# lab_note_pid FILE: the process that reads this, by the number that the host knows (/proc must still be the host's), and its start time.
lab_note_pid() {
	local pid
	read -r pid _ </proc/self/stat
	echo "$pid $(lab_start_time "$pid")" >"$1.new"
	mv "$1.new" "$1"
}

# lab_mounts ROOT NAME: what the firewall sees of the host below ROOT: /usr read-only, a /dev of its own, its own /proc and host name.
lab_mounts() {
	local root=$1 d
	mount --bind "$root" "$root"
	lab_ro /usr "$root/usr"
	lab_ro /etc/alternatives "$root/etc/alternatives"
	for d in bin lib lib32 lib64 libx32; do
		if [ ! -L "/$d" ] && [ -d "/$d" ]; then lab_ro "/$d" "$root/$d"; fi
	done
	mount -t tmpfs -o mode=755,size=64k lab "$root/dev"
	for d in null zero full random urandom tty; do
		: >"$root/dev/$d"
		mount --bind "/dev/$d" "$root/dev/$d"
	done
	mkdir "$root/dev/pts"
	mount --bind /dev/pts "$root/dev/pts"
	ln -s pts/ptmx "$root/dev/ptmx"
	ln -s /proc/self/fd "$root/dev/fd"
	mount -t proc proc "$root/proc"
	echo "$2" >/proc/sys/kernel/hostname
}

# lab_enter ROOT: leaves the host's file system.
lab_enter() {
	cd "$1"
	mkdir -p .lab/host
	pivot_root . .lab/host
	cd /
	umount -l /.lab/host
	export PATH=/sbin:/bin:/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin HOME=/root
	unset LAB_DIR
}

# lab_fault PLACES slow SECONDS [PLACE] | hang [PLACE] | off: sets a fault in one of the places, login when none is named.
lab_fault() {
	local file=$dir/root/.lab/fault fault where="login" places=$1
	shift
	case ${1:-} in
	off)
		rm -f "$file"
		return
		;;
	slow)
		[[ ${2:-} =~ ^[0-9]+(\.[0-9]+)?$ ]] || lab_die 'slow needs SECONDS'
		fault="slow $2" where=${3:-login}
		;;
	hang) fault=$1 where=${2:-login} ;;
	*) lab_die "unknown fault '${1:-}'" ;;
	esac
	[[ " $places " == *" $where "* ]] || lab_die "a fault is in $places, not '$where'"
	lab_set_fault "$where $fault"
}

lab_set_fault() {
	echo "$1" >"$dir/root/.lab/fault.new"
	mv "$dir/root/.lab/fault.new" "$dir/root/.lab/fault"
}
