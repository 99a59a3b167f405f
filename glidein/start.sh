#!/bin/bash
#
# start.sh: makes the resource it runs on an HTCondor execute node of our pool, and leaves no trace of it.
#
# README.md, beside this file, has the settings, the steps, the log and the exit codes. Top to bottom:
# words, settings, work directory and its end, node checks, configuration, life, main. Needs bash 4.4.

set -uo pipefail
umask 077
export LC_ALL=C TZ=UTC
IFS=$' \t\n'

readonly DONE=0 BAD_SETTINGS=80 BROKEN_NODE=81 NOT_JOINED=82 CONDOR_FAILED=83 STOPPED=84
readonly TICK_S=5 ASK_TIMEOUT_S=20 KILL_AFTER_S=20

# --------------------------------------------------------------------------------------------------- words

say() {
    local text="$*"
    printf '%(%Y-%m-%dT%H:%M:%SZ)T %s\n' -1 "${text//[^[:print:]]/?}" 2>/dev/null
    return 0
}

# Sets NOW, in seconds that no adjustment of the node's clock moves.
look_at_clock() {
    local up
    if read -r up _ < /proc/uptime; then NOW=${up%%.*}; else NOW=$SECONDS; fi 2>/dev/null
}

leave() {
    code=$1 why=$2
    exit "$code"
}

# Runs a command in the background: bash would hold back the traps while one runs in the foreground.
patiently() {
    "$@" {life}>&- &
    outlast $!
}

# Waits for a child also when signals interrupt the waiting; its status.
outlast() {
    local status
    while wait "$1" 2>/dev/null; status=$?; kill -0 "$1" 2>/dev/null; do :; done
    return "$status"
}

# ------------------------------------------------------------------------------------------------ settings

bad() { leave "$BAD_SETTINGS" "bad setting: $1 $2"; }

# A word that is published: nothing that could end a ClassAd string, start a macro, or begin a line.
word() {
    [ -n "${!1-}" ] || bad "$1" "is not set"
    [[ ${!1} =~ ^[A-Za-z0-9._@:/+-]{1,200}$ ]] || bad "$1" "must be 1 to 200 characters of A-Z a-z 0-9 . _ @ : / + -"
}

# number NAME DEFAULT LEAST
number() {
    local value=${!1:-$2}
    [ -n "$value" ] || bad "$1" "is not set"
    [[ $value =~ ^[0-9]{1,10}$ ]] || bad "$1" "must be a whole number"
    value=$((10#$value))
    ((value >= $3)) || bad "$1" "must be at least $3"
    printf -v "$1" %d "$value"
}

# text NAME DEFAULT PATTERN WHAT
text() {
    local value=${!1:-$2}
    [[ $value =~ ^($3)$ ]] || bad "$1" "must be $4"
    printf -v "$1" %s "$value"
}

# Paths end up in HTCondor's configuration, which has no quotes for them.
plain_path() { [[ $1 =~ ^/[A-Za-z0-9._@:/+,=~-]*$ ]]; }

read_settings() {
    local name host quarter
    for name in ID FACTORY QUEUE BACKEND OFFERING; do word "GLIDEIN_$name"; done

    host='([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(\?sock=[A-Za-z0-9._-]+)?'
    text GLIDEIN_COLLECTOR '' "$host(,$host)*" "HOST:PORT[,HOST:PORT...]"

    number GLIDEIN_CORES '' 1
    number GLIDEIN_MEMORY_MB 0 0
    number GLIDEIN_DISK_MB 0 0
    number GLIDEIN_GPUS 0 0
    number GLIDEIN_OVERCOMMIT 0 0
    number GLIDEIN_IDLE_S 600 0
    number GLIDEIN_WALLTIME_S 0 0
    number GLIDEIN_JOB_LIMIT_S 0 0
    number GLIDEIN_LEASE_S 0 0
    quarter=$((GLIDEIN_LEASE_S / 4))
    number GLIDEIN_LEASE_CHECK_S $((quarter < 10 ? 10 : quarter)) 1
    number GLIDEIN_JOIN_S 300 1
    number GLIDEIN_HOLD_S 1200 0
    number GLIDEIN_UPDATE_S 120 1
    number GLIDEIN_MAX_QUICK_FAILURES 5 0
    number GLIDEIN_QUICK_S 20 1

    text GLIDEIN_TOKEN ./token '.+' "the path of a file"
    text GLIDEIN_START True '[^$\]+' "one line without \$ and backslash"
    [[ $GLIDEIN_START =~ ^[[:print:]]+$ ]] || bad GLIDEIN_START "must be one line of ASCII"
    text GLIDEIN_NETWORK '' '[A-Za-z0-9.:*_-]*' "an address or the name of an interface"
    text GLIDEIN_DOMAIN '' '[A-Za-z0-9.-]*' "a domain name"
    text GLIDEIN_WORK '' '(/[A-Za-z0-9._@:/+,=~-]*)?' "an absolute path of A-Z a-z 0-9 . _ @ : / + , = ~ -"
    text GLIDEIN_USER nobody '[A-Za-z0-9._][A-Za-z0-9._-]*' "the name of a user"
    GLIDEIN_CHECKS=${GLIDEIN_CHECKS-} GLIDEIN_CONFIG=${GLIDEIN_CONFIG-} GLIDEIN_CONDOR=${GLIDEIN_CONDOR-}
    [ -z "$GLIDEIN_CONFIG" ] || [ -f "$GLIDEIN_CONFIG" ] || bad GLIDEIN_CONFIG "must be a file"
    if [ -n "$GLIDEIN_CHECKS" ]; then
        GLIDEIN_CHECKS=$(readlink -f -- "$GLIDEIN_CHECKS") && [ -f "$GLIDEIN_CHECKS" ] && [ -x "$GLIDEIN_CHECKS" ] \
            || bad GLIDEIN_CHECKS "must be an executable file"
    fi

    as_user=()
    if ((EUID == 0)); then
        [ "$(id -u "$GLIDEIN_USER" 2>/dev/null || echo 0)" != 0 ] || bad GLIDEIN_USER "must be a known user, and not root"
        as_user=(setpriv --reuid "$GLIDEIN_USER" --regid "$(id -g "$GLIDEIN_USER")" --clear-groups --)
    fi
}

# The job we run in may be HTCondor's as well, and may carry credentials that are none of our business.
clean_environment() {
    local name
    inherited_path=$PATH inherited_scratch=${_CONDOR_SCRATCH_DIR-}
    export PATH=/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin
    for name in $(compgen -e); do
        case ${name^^} in
            _CONDOR_* | CONDOR_* | LD_PRELOAD | LD_LIBRARY_PATH | BASH_ENV | ENV | CDPATH | OMP_* | GREP_* | \
                BEARER_TOKEN* | X509_USER_*) unset "$name" ;;
        esac
    done
}

# -------------------------------------------------------------------------------- work directory and its end

make_work() {
    local base made=''
    for base in "$GLIDEIN_WORK" "$inherited_scratch" "${OSG_WN_TMP-}" "${TMPDIR-}" "$PWD" /tmp; do
        if plain_path "$base" && made=$(mktemp -d "$base/apf-glidein.XXXXXXXXXX" 2>/dev/null); then
            chmod 711 "$made"
            "${as_user[@]}" test -x "$made/." && break
            rmdir "$made"
        fi
        made=''
        [ -z "$GLIDEIN_WORK" ] || break
    done
    [ -n "$made" ] || broken "there is no directory to work in"
    work=$(readlink -f -- "$made")

    # Every process of this glidein inherits the lock: while it is held, somebody uses the directory.
    exec {lock}> "$work/owner"
    flock -n "$lock" && cat /proc/sys/kernel/random/boot_id > "$work/owner"
    start_undertaker
    remove_stale "${work%/*}"

    # As root, only what is in these belongs to the user who runs the jobs.
    mkdir "$work"/{log,execute,spool,lock,run,cred,tmp,tokens.d,passwords.d} || broken "$work cannot be written"
    chmod 755 "$work/execute"
    give "$work"/*/
}

give() { ((EUID)) || chown -- "$GLIDEIN_USER:$(id -g "$GLIDEIN_USER")" "$@"; }

# Ends every process of the glidein in directory $1, whose condor_master is $2, and removes the directory. Daemons and
# jobs are known by the directory's random name in their environment, never by a number that may have been reused.
bury() {
    local work=$1 master=$2 left i
    if grep -qsF -- "$work/" "/proc/${master:-none}/environ" && kill -QUIT "$master"; then
        for ((i = 0; i < 100; i++)); do
            grep -qsF -- "$work/" "/proc/$master/environ" || break
            sleep 0.1
        done
    fi
    for ((i = 0; i < 20; i++)); do
        left=$(grep -slF -- "$work/" /proc/[0-9]*/environ | tr -cd '0-9\n')
        [ -n "$left" ] || break
        # shellcheck disable=SC2086
        kill -KILL $left
        sleep 0.1
    done
    rm -rf -- "$work" || { chmod -R u+rwx -- "$work"; rm -rf -- "$work"; }
} 2>/dev/null

# In a session of its own, asleep on a pipe that ends with this script, however that ends, kill -9 included.
start_undertaker() {
    local text
    text="$(declare -f bury)"$'\nmaster=; while read -r line; do master=$line; done; bury "$1" "$master"'
    exec {life}> >(exec setsid bash -c "$text" undertaker "$work" > /dev/null 2>&1)
    undertaker=$!
}

clean_up() {
    [ -n "$undertaker" ] || return 0
    exec {life}>&-
    outlast "$undertaker"
    undertaker=''
    [ ! -e "$work" ] || bury "$work" "$master"
}

# Removes what glideins left that were killed together with their undertakers: on this machine, since it was booted, and
# with a free lock. Anything less (another host on a shared file system, a container) is no proof of death.
remove_stale() {
    local dir old boot
    boot=$(< /proc/sys/kernel/random/boot_id)
    for dir in "$1"/apf-glidein.*; do
        if [ "$dir" != "$work" ] && [ -O "$dir" ] && [ "$(cat "$dir/owner" 2>/dev/null)" = "$boot" ] \
            && (exec {old}< "$dir/owner" && timeout 5 flock -n "$old" && rm -rf -- "$dir") 2>/dev/null; then
            say "removed $dir, left by a glidein that is dead"
        fi
    done
}

# shellcheck disable=SC2329  # a trap
finish() {
    local status=$? ran=''
    trap '' TERM INT QUIT HUP USR1 USR2 XCPU
    [ -n "$why" ] || { why="start.sh failed" code=$status; }
    [ -z "$napping" ] || kill "$napping" 2>/dev/null
    clean_up
    [ -z "$master" ] || ran="; jobs run: $jobs, failed: $failed_jobs"
    say "left: $why$ran; exit code $code"
    exit "$code"
}

# --------------------------------------------------------------------------------------------- node checks

# A broken node that gave its place back at once would be given the next glidein, and the next.
broken() {
    local hold=$GLIDEIN_HOLD_S
    code=$BROKEN_NODE why="broken node: $1"
    say "$why"
    clean_up
    look_at_clock
    if ((GLIDEIN_WALLTIME_S > 0 && hold > began + GLIDEIN_WALLTIME_S - NOW)); then
        hold=$((began + GLIDEIN_WALLTIME_S - NOW))
    fi
    if ((hold > 0)); then
        say "holding the node back for $hold s, so that it does not eat the queue"
        holding=1
        sleep "$hold" &
        napping=$!
        wait "$napping"
    fi
    exit "$code"
}

find_condor() {
    local found tool
    if [ -n "$GLIDEIN_CONDOR" ]; then
        release=$(readlink -f -- "$GLIDEIN_CONDOR") || broken "the directory GLIDEIN_CONDOR is not there"
    else
        found=$(PATH=$inherited_path:$PATH type -P condor_master) || broken "there is no condor_master on the PATH"
        found=$(readlink -f -- "$found")
        release=${found%/*/*}
    fi
    plain_path "$release" || broken "HTCondor lies in a directory with a name that it cannot take"
    for tool in sbin/condor_master sbin/condor_startd sbin/condor_starter bin/condor_status; do
        "${as_user[@]}" test -x "$release/$tool" || broken "$release/$tool is missing or cannot be executed"
    done
    for libexec in "$release/libexec/condor" "$release/lib/condor/libexec" "$release/libexec"; do
        [ ! -d "$libexec" ] || break
    done
    for library in "$release/lib64/condor" "$release/lib/condor" "$release/lib"; do
        [ ! -d "$library" ] || break
    done
}

# The token is the one secret: it moves into a private directory, and the delivered copy goes.
take_token() {
    local line payload expires epoch
    [ -f "$GLIDEIN_TOKEN" ] && [ -r "$GLIDEIN_TOKEN" ] || broken "the token file is missing or cannot be read"
    cat -- "$GLIDEIN_TOKEN" > "$work/tokens.d/token" || broken "the token file cannot be copied"
    give "$work/tokens.d/token"
    rm -f -- "$GLIDEIN_TOKEN" 2>/dev/null || say "warning: the delivered copy of the token cannot be removed"

    line=$(grep -m 1 -vE '^[[:space:]]*(#|$)' "$work/tokens.d/token") || broken "the token file is empty"
    payload=${line#*.} payload=${payload%%.*}
    payload=$(tr -- '-_' '+/' <<< "$payload")
    while ((${#payload} % 4)); do payload+='='; done
    expires=$(base64 -d <<< "$payload" 2>/dev/null | tr -d '\0' | grep -oE '"exp" *: *[0-9]{1,15}' | grep -oE '[0-9]+$')
    printf -v epoch '%(%s)T' -1
    [ -z "$expires" ] || ((expires > epoch)) || broken "the token expired $((epoch - expires)) s ago"
}

# What a process here may use: the node's memory, or less if a control group says so. Sets memory, in MB.
measure_memory() {
    local key kb controllers path limit bytes
    while read -r key kb _ && [ "$key" != MemTotal: ]; do :; done < /proc/meminfo
    memory=$((kb / 1024))
    while IFS=: read -r _ controllers path; do
        case $controllers in
            '') path=/sys/fs/cgroup$path limit=memory.max ;;
            memory) path=/sys/fs/cgroup/memory$path limit=memory.limit_in_bytes ;;
            *) continue ;;
        esac
        for (( ; ${#path} > 14; )); do
            path=${path%/}
            if read -r bytes < "$path/$limit" && [[ $bytes =~ ^[0-9]{1,18}$ ]] && ((bytes / 1048576 < memory)); then
                memory=$((bytes / 1048576))
            fi 2>/dev/null
            path=${path%/*}
        done
    done < /proc/self/cgroup
}

check_node() {
    local system=Linux cores memory free
    # shellcheck disable=SC1091
    [ ! -r /etc/os-release ] || system=$(. /etc/os-release && echo "${PRETTY_NAME-Linux}")
    cores=$(nproc)
    measure_memory
    free=$(df -Pk "$work" | awk 'END { print int($4 / 1024) }')
    say "node: $(uname -n), $system, $cores cores, $memory MB memory, $free MB disk free in ${work%/*}"

    ((free > 0 && free >= GLIDEIN_DISK_MB)) || broken "$free MB of disk are free, $GLIDEIN_DISK_MB were bought"
    if ((GLIDEIN_OVERCOMMIT == 0)); then
        ((cores >= GLIDEIN_CORES)) || broken "$cores cores are usable, $GLIDEIN_CORES were bought"
        ((memory * 10 >= GLIDEIN_MEMORY_MB * 9)) || broken "$memory MB of memory are usable, $GLIDEIN_MEMORY_MB were bought"
    fi
    # Not stated: our share of the node.
    ((GLIDEIN_MEMORY_MB)) || GLIDEIN_MEMORY_MB=$((memory * (GLIDEIN_CORES < cores ? GLIDEIN_CORES : cores) / cores))
    ((GLIDEIN_DISK_MB)) || GLIDEIN_DISK_MB=$free
}

check_collector() {
    local place host port reached=''
    for place in ${GLIDEIN_COLLECTOR//,/ }; do
        host=${place%%\?*} port=9618
        [[ $host =~ ^(.*[^:]):([0-9]+)$ ]] && host=${BASH_REMATCH[1]} port=${BASH_REMATCH[2]}
        host=${host#[} host=${host%]}
        # shellcheck disable=SC2016
        if patiently timeout 10 bash -c 'exec 3<> "/dev/tcp/$0/$1"' "$host" "$port" 2>/dev/null; then
            reached=1
        else
            say "the collector at $host, port $port, cannot be reached"
        fi
    done
    [ -n "$reached" ] || broken "no collector can be reached"
}

check_gpus() {
    local found
    ((GLIDEIN_GPUS)) || return 0
    found=$("${as_user[@]}" "$libexec/condor_gpu_discovery" 2>/dev/null \
        | sed -n 's/^DetectedGPUs *= *"\(.*\)"$/\1/p' | tr ',' '\n' | grep -c '[^ ]')
    ((found >= GLIDEIN_GPUS)) || broken "$found GPUs are usable, $GLIDEIN_GPUS were bought"
}

check_as_the_operator_says() {
    [ -n "$GLIDEIN_CHECKS" ] || return 0
    patiently "${as_user[@]}" env "TMPDIR=$work/tmp" timeout 600 "$GLIDEIN_CHECKS" > "$work/checks" 2>&1 < /dev/null \
        || broken "the operator's check failed: $(tail -n 1 "$work/checks")"
    say "the operator's check passed"
}

# ------------------------------------------------------------------------------------------- configuration

configure() {
    local ends=undefined name=${GLIDEIN_ID//[^A-Za-z0-9._-]/_} first=${GLIDEIN_COLLECTOR%%[,?]*} published
    published="ApfElasticId ApfElasticFactory ApfElasticQueue ApfElasticBackend ApfElasticOffering ApfElasticEnds"
    if ((GLIDEIN_WALLTIME_S)); then
        printf -v ends '%(%s)T' -1
        ends=$((ends + began + GLIDEIN_WALLTIME_S - NOW))
    fi
    cat > "$work/condor_config" << END
RELEASE_DIR = $release
BIN = \$(RELEASE_DIR)/bin
SBIN = \$(RELEASE_DIR)/sbin
LIBEXEC = $libexec
LIB = $library
LOCAL_DIR = $work
LOG = $work/log
EXECUTE = $work/execute
SPOOL = $work/spool
LOCK = $work/lock
RUN = $work/run
TMP_DIR = $work/tmp
CRED_STORE_DIR = $work/cred
LOCAL_CONFIG_FILE =
LOCAL_CONFIG_DIR =

DAEMON_LIST = MASTER STARTD
STARTD_ARGS = -pidfile $work/run/startd.pid
MASTER_NAME = $name
STARTD_NAME = $name
FILESYSTEM_DOMAIN = $name

# Everything goes out through the collector's connection broker: no port need be open here.
CONDOR_HOST = ${first%:*}
COLLECTOR_HOST = $GLIDEIN_COLLECTOR
CCB_ADDRESS = \$(COLLECTOR_HOST)
CCB_HEARTBEAT_INTERVAL = 120
USE_SHARED_PORT = False
UPDATE_COLLECTOR_WITH_TCP = True
UPDATE_INTERVAL = $GLIDEIN_UPDATE_S
MASTER_UPDATE_INTERVAL = $GLIDEIN_UPDATE_S
QUERY_TIMEOUT = 15

# Tokens only, and no key to check any: nobody can log in to these daemons. What reaches them uses a session that the
# collector hands to administrators of the pool, or that came with a match.
SEC_DEFAULT_AUTHENTICATION = REQUIRED
SEC_DEFAULT_AUTHENTICATION_METHODS = IDTOKENS
SEC_DEFAULT_INTEGRITY = REQUIRED
SEC_DEFAULT_ENCRYPTION = REQUIRED
SEC_CLIENT_AUTHENTICATION = REQUIRED
SEC_CLIENT_AUTHENTICATION_METHODS = IDTOKENS
SEC_ENABLE_REMOTE_ADMINISTRATION = True
SEC_ENABLE_MATCH_PASSWORD_AUTHENTICATION = True
# Else a collector at the same address as the glidein refuses its session.
SEC_USE_FAMILY_SESSION = False
SEC_TOKEN_DIRECTORY = $work/tokens.d
SEC_TOKEN_SYSTEM_DIRECTORY = $work/tokens.d
SEC_PASSWORD_DIRECTORY = $work/passwords.d
SEC_TOKEN_POOL_SIGNING_KEY_FILE = $work/passwords.d/POOL
ALLOW_READ =
ALLOW_WRITE =
ALLOW_DAEMON =
ALLOW_NEGOTIATOR =
ALLOW_ADMINISTRATOR =

# One slot of the size that was bought.
NUM_CPUS = $GLIDEIN_CORES
MEMORY = $GLIDEIN_MEMORY_MB
DISK = $((GLIDEIN_DISK_MB * 1024))
RESERVED_DISK = 0
NUM_SLOTS = 1
NUM_SLOTS_TYPE_1 = 1
SLOT_TYPE_1 = 100%
SLOT_TYPE_1_PARTITIONABLE = True

START = ($GLIDEIN_START)
PREEMPT = False
SUSPEND = False
KILL = False
STARTD_NOCLAIM_SHUTDOWN = $GLIDEIN_IDLE_S
MAXJOBRETIREMENTTIME = $job_limit
SHUTDOWN_GRACEFUL_TIMEOUT = $((job_limit + 300))
MachineMaxVacateTime = 60

RUNBENCHMARKS = False
STARTD_CRON_JOBLIST =
STARTD_HISTORY = $work/log/startd_history
MASTER_NEW_BINARY_RESTART = NEVER
ENABLE_KERNEL_TUNING = False
CONDOR_ADMIN =
PREEN =

ApfElasticId = "$GLIDEIN_ID"
ApfElasticFactory = "$GLIDEIN_FACTORY"
ApfElasticQueue = "$GLIDEIN_QUEUE"
ApfElasticBackend = "$GLIDEIN_BACKEND"
ApfElasticOffering = "$GLIDEIN_OFFERING"
ApfElasticEnds = $ends
STARTD_ATTRS = \$(STARTD_ATTRS) $published
MASTER_ATTRS = \$(MASTER_ATTRS) $published
END
    {
        [ -z "$GLIDEIN_DOMAIN" ] || printf '%s = %s\n' UID_DOMAIN "$GLIDEIN_DOMAIN" DEFAULT_DOMAIN_NAME "$GLIDEIN_DOMAIN"
        [ -z "$GLIDEIN_NETWORK" ] || echo "NETWORK_INTERFACE = $GLIDEIN_NETWORK"
        # A pool of one machine needs no name service, and often has none.
        [[ $GLIDEIN_NETWORK != 127.* ]] || printf '%s\n' 'NO_DNS = True' 'ENABLE_IPV6 = False' \
            "DEFAULT_DOMAIN_NAME = ${GLIDEIN_DOMAIN:-localdomain}"
        if ((GLIDEIN_GPUS)); then
            printf '%s\n' 'use feature : GPUs' 'GPU_DISCOVERY_EXTRA = -extra' "SLOT_TYPE_1 = 100%, GPUs=$GLIDEIN_GPUS"
        else
            echo 'STARTD_DETECT_GPUS = False'
        fi
        [ -z "$GLIDEIN_CONFIG" ] || cat -- "$GLIDEIN_CONFIG"
    } >> "$work/condor_config" || broken "the configuration cannot be written"
}

# ---------------------------------------------------------------------------------------------------- life

# condor_master is the child of a subshell that says on a pipe when it ends: reading from that, with a time limit, is a
# sleep that costs no process and ends at once. (wait -n would be the obvious way; in bash 5.2 it now and then hangs.)
start_condor() {
    as_condor=("${as_user[@]}" env "CONDOR_CONFIG=$work/condor_config" "HOME=$work/tmp" "TMPDIR=$work/tmp")
    chmod 644 "$work/condor_config"
    mkfifo "$work/news"
    exec {news}<> "$work/news"
    keep_condor &
    read -r -t 60 -u "$news" master || leave "$CONDOR_FAILED" "condor_master could not be started"
    echo "$master" >&"$life"
}

keep_condor() {
    exec {life}>&-
    trap - EXIT
    trap : TERM INT QUIT HUP USR1 USR2 XCPU # they are for start.sh
    # In the foreground: bash lets background commands ignore SIGINT and SIGQUIT, and jobs would inherit that.
    (
        cd "$work/tmp" || exit
        echo "$BASHPID" >&"$news"
        exec {news}>&-
        exec setsid "${as_condor[@]}" "$release/sbin/condor_master" -f > "$work/log/master.out" 2>&1 < /dev/null
    )
    echo $? >&"$news"
}

# Asks the collector; sets answer. Through a file: a command substitution would hold back the traps.
ask() {
    local status
    patiently timeout -k 5 "$ASK_TIMEOUT_S" "${as_condor[@]}" "$release/bin/condor_status" "$@" \
        < /dev/null > "$work/answer" 2> "$work/complaint"
    status=$?
    answer=$(< "$work/answer")
    look_at_clock
    return "$status"
}

retire() {
    [ -z "$retiring" ] || return 0
    retiring=1 code=$DONE why=$1
    say "retiring: $1; no new job, running ones may finish"
    kill -TERM "$master"
}

# condor_master as the last word: it ends jobs, startd and itself.
stop_now() {
    [ "$kill_at" = 0 ] || return 0
    retiring=1 code=$1 why=$2 kill_at=$((NOW + KILL_AFTER_S))
    say "stopping at once: $2"
    kill -QUIT "$master"
}

# On a signal. Before HTCondor runs there is nothing to finish.
# shellcheck disable=SC2329  # a trap
asked() {
    look_at_clock
    if [ -n "$holding" ]; then
        exit "$code"
    elif [ -z "$master" ]; then
        leave "$STOPPED" "$1 received before joining the pool"
    elif [ "$1" = INT ] || [ "$1" = QUIT ] || [ -n "$retiring" ]; then
        stop_now "$STOPPED" "$1 received"
    else
        retire "$1 received"
    fi
}

look_for_slot() {
    [ -z "$joined" ] && [ -z "$retiring" ] && ((NOW >= look_at)) || return 0
    if ask -constraint "ApfElasticId == \"$GLIDEIN_ID\"" -limit 1 -af Name && [ -n "$answer" ]; then
        joined=1 look_at=0
        say "joined the pool as $answer, $((NOW - began)) s after the start"
    elif compgen -G "$work/log/StarterLog.slot*" > /dev/null; then
        joined=1 look_at=0
        say "joined the pool: a job came, though the collector does not show our slot"
    elif ((NOW >= condor_began + GLIDEIN_JOIN_S)); then
        stop_now "$NOT_JOINED" "could not join the pool within $GLIDEIN_JOIN_S s"
    else
        look_at=$((NOW + (NOW - condor_began < 30 ? 2 : 15)))
    fi
}

# The factory's lease is a number that grows in the collector. What counts is when we last saw it grow, on our clock.
look_at_lease() {
    local serial state=absent
    ((GLIDEIN_LEASE_S)) && [ -z "$retiring" ] && ((NOW >= lease_at)) || return 0
    lease_at=$((NOW + GLIDEIN_LEASE_CHECK_S))
    if ask -generic -constraint "ApfElasticLease == \"$GLIDEIN_FACTORY\"" -af ApfElasticLeaseSerial; then
        for serial in $answer; do
            [[ $serial =~ ^[0-9]{1,18}$ ]] || continue
            state=there
            # The first number seen may be an old one: only growth is a sign of life.
            if ((serial > lease_serial)); then
                ((lease_serial < 0)) || lease_renewed=$NOW
                lease_serial=$serial
            fi
        done
    else
        state=unreadable
    fi
    if [ "$state" != "$lease_state" ]; then
        case $state in
            there) say "lease: the factory's can be read" ;;
            absent) say "lease: the collector has none of factory $GLIDEIN_FACTORY" ;;
            unreadable) say "lease: the collector does not answer" ;;
        esac
        lease_state=$state
    fi
    ((NOW - lease_renewed <= GLIDEIN_LEASE_S)) \
        || retire "the factory has not renewed its lease for $((NOW - lease_renewed)) s"
}

look_at_time() {
    if ((end_at && NOW >= end_at)); then
        stop_now "$DONE" "the bought time is over"
    elif ((retire_at && NOW >= retire_at)); then
        retire "the bought time ends in $((end_at - NOW)) s"
    fi
    if ((kill_at && NOW >= kill_at)); then
        kill -KILL "$master" 2>/dev/null
    fi
}

# HTCondor would leave its master behind when the startd drains out, and start a crashed one again and again.
look_at_startd() {
    ((kill_at == 0)) || return 0
    if [ -n "$startd" ]; then
        [ ! -d "/proc/$startd" ] || return 0
    elif read -r startd < "$work/run/startd.pid" || ! grep -q 'EXITING WITH STATUS' "$work/log/StartLog"; then
        return 0
    fi 2>/dev/null
    retiring=1 kill_at=$((NOW + KILL_AFTER_S))
    kill -QUIT "$master" 2>/dev/null
}

# Counts the jobs that ended, from the startd's own history, as it grows. A node on which one job after the other fails
# at once is a black hole, whatever its checks said.
look_at_jobs() {
    local line
    [ -z "$history" ] || [ "$work/log/startd_history" -ef "/proc/$$/fd/$history" ] || { exec {history}<&-; history=''; }
    if [ -z "$history" ]; then
        [ -r "$work/log/startd_history" ] || return 0
        exec {history}< "$work/log/startd_history"
    fi
    while IFS= read -r line <&"$history" || { unfinished+=$line; false; }; do
        line=$unfinished$line unfinished=''
        case $line in
            'ExitCode = 0') job_end='done' ;;
            'ToE = '*OF_ITS_OWN_ACCORD*) ;;
            'ToE = '*) job_end=removed ;;
            'JobDuration = '*) job_took=${line#*= } job_took=${job_took%%.*} ;;
            '*** '*) count_job; job_end=failed job_took=0 ;;
        esac
    done
    if ((quick_failures >= GLIDEIN_MAX_QUICK_FAILURES && GLIDEIN_MAX_QUICK_FAILURES)) && [ -z "$retiring" ]; then
        retire "black hole: $quick_failures jobs in a row failed within $GLIDEIN_QUICK_S s"
        code=$BROKEN_NODE
    fi
}

# A job that was removed says nothing about the node; one that could not even be started has no duration.
count_job() {
    jobs=$((jobs + 1))
    case $job_end in
        done) quick_failures=0 ;;
        failed)
            failed_jobs=$((failed_jobs + 1))
            if ((job_took <= GLIDEIN_QUICK_S)); then quick_failures=$((quick_failures + 1)); else quick_failures=0; fi
            ;;
    esac
}

# Sleeps until something is due or condor_master has ended; signals are handled meanwhile.
nap() {
    local until=$((NOW + TICK_S)) at
    for at in "$look_at" "$lease_at" "$retire_at" "$end_at" "$kill_at"; do
        ((at > NOW && at < until)) && until=$at
    done
    read -r -t $((until - NOW)) -u "$news" ended || [ -d "/proc/$master" ] || read -r -t 5 -u "$news" ended || ended=unknown
}

# ---------------------------------------------------------------------------------------------------- main

# Fixes when the glidein takes its last job and when it ends: before the batch system does that, and not all glideins of
# a batch at once.
plan_life() {
    local margin spread
    job_limit=$GLIDEIN_JOB_LIMIT_S retire_at=0 end_at=0
    if ((GLIDEIN_WALLTIME_S)); then
        end_at=$((began + GLIDEIN_WALLTIME_S - (GLIDEIN_WALLTIME_S < 1200 ? GLIDEIN_WALLTIME_S / 20 : 60)))
        margin=$((GLIDEIN_WALLTIME_S / 10))
        ((job_limit == 0)) || margin=$((job_limit < GLIDEIN_WALLTIME_S / 2 ? job_limit : GLIDEIN_WALLTIME_S / 2))
        spread=$(((end_at - margin - began) * RANDOM / 32768 / 10))
        retire_at=$((end_at - margin - spread))
        say "life: takes jobs for $((retire_at - NOW)) s, ends in $((end_at - NOW)) s"
    fi
    ((job_limit)) || job_limit=$((GLIDEIN_WALLTIME_S ? GLIDEIN_WALLTIME_S : 604800))
}

supervise() {
    while [ -z "$ended" ]; do
        look_at_clock
        look_for_slot
        look_at_lease
        look_at_time
        look_at_jobs
        look_at_startd
        nap
    done
    look_at_jobs
}

# Why HTCondor ended, when it was not we who ended it.
explain() {
    [ -z "$why" ] || return 0
    code=$DONE
    if grep -qs 'No resources have been claimed for' "$work/log/StartLog"; then
        why="no job for $GLIDEIN_IDLE_S s"
        [ -n "$joined" ] || code=$NOT_JOINED why="could not join the pool"
    elif grep -qs 'exiting after completion of draining' "$work/log/StartLog"; then
        why="drained by an administrator of the pool"
    elif [[ $ended =~ ^(0|99)$ ]] && grep -qs 'STATUS \(0\|99\)$' "$work/log/StartLog"; then
        why="sent away by an administrator of the pool"
    else
        code=$CONDOR_FAILED why="HTCondor failed, condor_master with status $ended"
    fi
}

# The directory goes with its logs: what the operator needs of them is shown.
show_logs() {
    local log line
    local telling='error|fail|denied|reject|invalid|expire|assert|abort|signal|status'
    local noise='is logging:|getpwnam|[Hh]ibernation'
    for log in master.out MasterLog StartLog; do
        while read -r line; do
            say "| $log: ${line:0:300}"
        done < <(grep -iE "$telling" "$work/log/$log" 2>/dev/null | grep -vE "$noise" | tail -n 6)
    done
}

main() {
    work='' master='' life='' undertaker='' napping='' holding='' code=$STOPPED why=''
    joined='' retiring='' startd='' ended='' look_at=0 lease_at=0 kill_at=0 lease_serial=-1 lease_state=''
    history='' unfinished='' jobs=0 failed_jobs=0 quick_failures=0 job_end=failed job_took=0
    look_at_clock
    began=$NOW
    trap finish EXIT
    trap : PIPE
    local signal
    for signal in TERM INT QUIT HUP USR1 USR2 XCPU; do
        # shellcheck disable=SC2064
        trap "asked $signal" "$signal"
    done

    ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || bad BASH "$BASH_VERSION is too old, 4.4 is needed"
    clean_environment
    read_settings
    say "glidein $GLIDEIN_ID of factory $GLIDEIN_FACTORY, queue $GLIDEIN_QUEUE, $GLIDEIN_OFFERING on $GLIDEIN_BACKEND," \
        "for the pool at $GLIDEIN_COLLECTOR"
    make_work
    take_token
    find_condor
    check_node
    check_gpus
    check_collector
    check_as_the_operator_says
    plan_life
    configure
    start_condor
    condor_began=$NOW lease_renewed=$NOW look_at=$((NOW + 1))
    supervise
    explain
    ((code != NOT_JOINED && code != CONDOR_FAILED)) || show_logs
    ((code != BROKEN_NODE)) || broken "$why"
    exit "$code"
}

main "$@"
