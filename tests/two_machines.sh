#!/usr/bin/env bash
# Two machines on one: two network namespaces joined by a cable (a veth pair), each with a host name of its own.
#
#   two_machines.sh --probe                   0 where this can be done, else 77 and why, on stderr
#   two_machines.sh FOLDER COMMAND [WORD...]  the same command on both, at once; wants root
#
# The command finds NODE_RANK, MASTER_ADDR, MASTER_PORT and GLOO_SOCKET_IFNAME in its environment. FOLDER gets, of
# machine N (0 and 1), N.out, N.err, N.pid (of the command) and N.code (its exit code).
# SIGTERM to this script is handed to both commands, and 40 s later SIGKILL.
set -uo pipefail

readonly tag="mw$$"
readonly net="10.213.7"
killer=""

cleanup() {
    [[ -n "$killer" ]] && kill "$killer" 2> /dev/null
    for number in 0 1; do
        local name="$tag-$number"
        for id in $(ip netns pids "$name" 2> /dev/null); do kill -KILL "$id" 2> /dev/null; done
        ip netns delete "$name" 2> /dev/null
        rm -rf "/etc/netns/$name"
    done
    rmdir /etc/netns 2> /dev/null
    return 0
}

connect() {
    for number in 0 1; do
        local name="$tag-$number"
        ip netns add "$name" && mkdir -p "/etc/netns/$name" || return 1
        # `ip netns exec` lays these files over those of /etc.
        printf '127.0.0.1 localhost\n%s.1 machine-0\n%s.2 machine-1\n' "$net" "$net" > "/etc/netns/$name/hosts"
        ip -n "$name" link set lo up || return 1
    done
    ip -n "$tag-0" link add cable type veth peer name cable netns "$tag-1" || return 1
    for number in 0 1; do
        ip -n "$tag-$number" address add "$net.$((number + 1))/24" dev cable || return 1
        ip -n "$tag-$number" link set cable up || return 1
    done
    ip netns exec "$tag-0" unshare --uts hostname machine-0 || return 1
}

start() { # NUMBER COMMAND...
    local number="$1"
    shift
    # shellcheck disable=SC2016 - expanded by the inner shell
    NODE_RANK="$number" MASTER_ADDR="$net.1" MASTER_PORT="${MASTER_PORT:-29611}" GLOO_SOCKET_IFNAME=cable \
        exec ip netns exec "$tag-$number" unshare --uts bash -c \
        'hostname "machine-$NODE_RANK" && echo $$ > "$0/$NODE_RANK.pid" && exec "$@"' "$folder" "$@" \
        > "$folder/$number.out" 2> "$folder/$number.err"
}

command -v ip > /dev/null || { echo "two machines want the command ip (iproute2)" >&2; exit 77; }
[[ $EUID -eq 0 ]] || { echo "two machines want root (network namespaces)" >&2; exit 77; }
trap cleanup EXIT
connect || { echo "two machines want network namespaces and veth (CAP_NET_ADMIN, CAP_SYS_ADMIN)" >&2; exit 77; }
[[ "${1:-}" == "--probe" ]] && exit 0

readonly folder="$1"
shift
mkdir -p "$folder"
start 0 "$@" &
first=$!
start 1 "$@" &
second=$!
end() {
    kill -TERM "$first" "$second" 2> /dev/null
    (sleep 40; kill -KILL "$first" "$second" 2> /dev/null) &
    killer=$!
}
trap end TERM INT
for pair in "0 $first" "1 $second"; do
    read -r number id <<< "$pair"
    while true; do # a trapped signal ends `wait` early
        wait "$id"
        code=$?
        kill -0 "$id" 2> /dev/null || break
    done
    echo "$code" > "$folder/$number.code"
done
[[ "$(cat "$folder/0.code")" == 0 && "$(cat "$folder/1.code")" == 0 ]]
