#!/bin/sh
# Installs, upgrades and removes linux-patch-api from its tarball, for hosts where the package cannot be used.
#
#   ./install.sh               install, or upgrade what is there; again and again with the same result
#   ./install.sh --no-start    the same, without starting anything
#   ./install.sh --allow-downgrade  the same, also if what is there is newer, which is refused otherwise
#   ./install.sh --uninstall   remove the programs; configuration, state and audit trail stay
#   ./install.sh --purge       remove these too; only certificates and keys stay
#
# Files of installed Debian packages are neither replaced nor removed.
#
# Exit codes: 0 done, 1 refused or failed, 2 usage.
set -eu
# With it set, cd may go elsewhere.
unset CDPATH

umask 022
PATH=/usr/sbin:/usr/bin:/sbin:/bin
export PATH

user=linux-patch-api
units="linux-patch-executor.socket linux-patch-executor-recover.service linux-patch-api.service linux-patch-notify.timer"
units="$units linux-patch-policy.timer"
config=/etc/linux_patch_api
state=/var/lib/linux_patch_executor
turn=$state/journal/turn
local_profile=/etc/apparmor.d/local/usr.bin.linux-patch-api
home=/usr/libexec/linux-patch-api
# What was installed: "SHA256  /path" a line.
manifest=$home/installed.sha256
# The part of it that an uninstallation leaves, for the files below /etc.
left=$config/.installed.sha256
# The directories that were made for it.
made=$config/.installed.directories

say() { echo "install.sh: $*"; }
fail() {
    echo "install.sh: $*" >&2
    exit 1
}

usage() { sed -n '4,12s/^# \{0,1\}//p' "$0"; }

has_systemd() { [ -d /run/systemd/system ]; }

change_is_under_way() {
    [ -e "$turn" ] || return 1
    if command -v flock >/dev/null 2>&1; then
        held=0
        flock -n "$turn" true || held=$?
        [ "$held" -eq 1 ]
    else
        inode=$(stat -c %i "$turn" 2>/dev/null) || return 1
        grep -q "FLOCK.*WRITE.*:$inode " /proc/locks 2>/dev/null
    fi
}

# The sum that a file was installed with; nothing if it was not.
sum_installed() {
    for list in "$manifest" "$left"; do
        [ -e "$list" ] || continue
        awk -v path="$1" 'substr($0, 67) == path { print $1 }' "$list"
        return 0
    done
}

sum_of() { sha256sum <"$1" | cut -d ' ' -f 1; }

# Which of the files that are listed on standard input belong to installed packages: "PACKAGE PATH" a line. One that was
# removed and not purged has left its configuration alone, which is not replaced anyway.
owned_by_packages() {
    command -v dpkg-query >/dev/null 2>&1 || return 0
    { xargs -d '\n' dpkg-query -S 2>/dev/null || true; } |
        awk '/^diversion by / { next }
            { at = index($0, ": /"); count = split(substr($0, 1, at - 1), names, ", ")
              for (i = 1; i <= count; i++) print names[i], substr($0, at + 2) }' |
        while read -r name path; do
            case "$(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null)" in
            '' | not-installed | config-files) ;;
            *) echo "$name $path" ;;
            esac
        done
}

# The version of what lies below a directory; nothing if there is none.
version_below() {
    if [ -e "$1$home/VERSION" ]; then
        cat "$1$home/VERSION"
    else
        "$1/usr/bin/linux-patch-api" --version 2>/dev/null | cut -d ' ' -f 2
    fi
}

# What is installed is not made older by accident.
refuse_downgrade() {
    [ -e "$manifest" ] || return 0
    is=$(version_below "")
    comes=$(version_below files)
    [ -n "$is" ] && [ -n "$comes" ] || return 0
    dpkg --compare-versions "$comes" lt "$is" || return 0
    if [ "$1" = no ]; then
        say "linux-patch-api $is is installed here, and this is the older $comes: nothing was changed. What the newer one" >&2
        say "has declared or begun the older one may not know; settings that it does not know keep it from starting." >&2
        fail "If that is what you want: install.sh --allow-downgrade"
    fi
    say "linux-patch-api $is becomes the older $comes; linux-patch-api check-config says whether it takes your settings"
}

# Makes a directory, and remembers what was made.
make_directory() {
    [ ! -d "$1" ] || return 0
    make_directory "$(dirname "$1")"
    mkdir "$1"
    echo "$1" >>"$made"
}

# Beside its place, then renamed: a program that runs is not disturbed, and one that is half written is never run.
put() {
    make_directory "$(dirname "$2")"
    mode=0644
    if [ -x "$1" ]; then mode=0755; fi
    # Not a pattern: a file with the same ending is replaced.
    install -m "$mode" "$1" "$2.linux-patch-new"
    mv -f "$2.linux-patch-new" "$2"
}

# A file below /etc is the administrator's once it is there.
put_config() {
    if [ ! -e "$2" ]; then
        # One that was removed on purpose stays away.
        if [ -z "$(sum_installed "$2")" ]; then put "$1" "$2"; fi
    elif [ "$(sum_of "$2")" = "$(sum_of "$1")" ]; then
        :
    elif [ "$(sum_of "$2")" = "$(sum_installed "$2")" ]; then
        put "$1" "$2"
    elif [ "$(sum_of "$1")" != "$(sum_installed "$2")" ]; then
        put "$1" "$2.new"
        say "kept your $2; the new one is $2.new"
    fi
}

verify() {
    [ -e SHA256SUMS ] || fail "SHA256SUMS is missing; unpack the whole tarball and call its install.sh"
    sha256sum --check --quiet --strict SHA256SUMS || fail "the tarball is damaged; nothing was installed"
    listed=$(cut -c 67- SHA256SUMS | sort)
    there=$(find . -type f ! -name SHA256SUMS | sed 's|^\./||' | sort)
    [ "$listed" = "$there" ] || fail "the tarball has files that SHA256SUMS does not name; nothing was installed"
    files/usr/bin/linux-patch-api --version >/dev/null ||
        fail "the programs do not run here: wrong architecture, or a C library that is too old; nothing was installed"
}

add_user() {
    if getent passwd "$user" >/dev/null; then return 0; fi
    if command -v systemd-sysusers >/dev/null 2>&1; then
        systemd-sysusers linux-patch-api.conf
    else
        useradd --system --user-group --home-dir /var/lib/linux_patch_api --no-create-home \
            --shell /usr/sbin/nologin --comment "Linux Patch API" "$user"
    fi
}

start() {
    if ! has_systemd; then
        say "there is no systemd here: nothing was started"
        return 0
    fi
    systemctl daemon-reload
    # Enabled once: what the administrator has disabled since stays disabled.
    # shellcheck disable=SC2086 # a list of words
    if [ "$1" = first ]; then
        systemctl --quiet enable $units
        # The reboot window's timer is on where a window is declared already; whoever declares one later enables it.
        if linux-patch-host --json reboot-window status 2>/dev/null | grep -q '"has_window":true'; then
            if systemctl --quiet is-enabled kei-reboot-window.timer 2>/dev/null; then
                say "linux-patch-reboot-window.timer stays off: kei-reboot-window.timer is enabled, and both would reboot this"
                say "host. To change over: systemctl disable --now kei-reboot-window.timer"
                say "and: systemctl enable --now linux-patch-reboot-window.timer"
            else
                systemctl --quiet enable linux-patch-reboot-window.timer
            fi
        fi
    fi
    # The version before may not have had it.
    case "$1" in
    new-timers) systemctl --quiet enable linux-patch-notify.timer linux-patch-policy.timer ;;
    new-timer) systemctl --quiet enable linux-patch-policy.timer ;;
    esac
    if [ "$2" = no ]; then return 0; fi
    if systemctl --quiet is-enabled linux-patch-reboot-window.timer 2>/dev/null; then
        systemctl start linux-patch-reboot-window.timer
    fi
    # A running executor or recovery is never touched: it may be in the middle of a change.
    systemctl start linux-patch-executor.socket
    if systemctl --quiet is-enabled linux-patch-notify.timer; then systemctl start linux-patch-notify.timer; fi
    if systemctl --quiet is-enabled linux-patch-policy.timer; then systemctl start linux-patch-policy.timer; fi
    rm -f /run/linux-patch-executor-recover.restarted
    systemctl reset-failed linux-patch-api.service 2>/dev/null || true
    if systemctl --quiet is-enabled linux-patch-api.service; then
        systemctl restart linux-patch-api.service ||
            fail "installed, but the daemon does not start; see: journalctl -u linux-patch-api"
    fi
}

install_all() {
    command -v apt-get >/dev/null 2>&1 || fail "there is no apt-get: this version manages Debian and Ubuntu only"
    cd "$(dirname "$0")"
    if [ -d files ]; then
        owners=$(find files -type f | sed 's|^files||' | owned_by_packages | cut -d ' ' -f 1 | sort -u | tr '\n' ' ')
        owners=${owners% }
        [ -z "$owners" ] ||
            fail "$owners is installed as a package here, and its files are dpkg's; nothing was installed. Upgrade it with the \
new .deb, or remove it first: apt-get remove $owners"
    fi
    verify
    refuse_downgrade "$2"
    which=again
    if [ ! -e "$manifest" ]; then
        which=first
    elif ! grep -q '/linux-patch-notify\.timer$' "$manifest"; then
        which=new-timers
    elif ! grep -q '/linux-patch-policy\.timer$' "$manifest"; then
        which=new-timer
    fi
    # An older version that knows nothing of policies would neither look after this nor take it away.
    if [ "$which" != first ] && [ ! -e files/usr/lib/systemd/system/linux-patch-policy.timer ]; then
        if has_systemd; then systemctl stop linux-patch-policy.timer linux-patch-policy.service 2>/dev/null || true; fi
        linux-patch-host policy release >/dev/null 2>&1 || rm -f /etc/apt/apt.conf.d/99linux-patch-agent-mode
    fi
    mkdir -p "$config"
    next=$(mktemp)
    trap 'rm -f "$next"' EXIT
    find files -type f | sort | while IFS= read -r file; do
        to=${file#files}
        case "$to" in
        /etc/*) put_config "$file" "$to" ;;
        *) put "$file" "$to" ;;
        esac
        echo "$(sum_of "$file")  $to" >>"$next"
    done
    put install.sh "$home/install.sh"
    # What the version before had and this one has not.
    if [ -e "$manifest" ]; then
        cut -c 67- "$manifest" | while IFS= read -r old; do
            case "$old" in /etc/*) continue ;; esac
            if cut -c 67- "$next" | grep -Fqx -e "$old"; then continue; fi
            case "$old" in
            */systemd/system/*@.service) ;;
            */systemd/system/*)
                if has_systemd; then systemctl --quiet disable --now "${old##*/}" 2>/dev/null || true; fi
                ;;
            esac
            rm -f -- "$old"
        done
    fi
    install -m 0644 "$next" "$manifest"
    rm -f "$left"
    add_user
    install -d -o "$user" -g "$user" -m 0750 /var/lib/linux_patch_api /var/log/linux_patch_api
    install -d -m 0755 "$config/certs"
    if [ ! -e "$local_profile" ]; then
        make_directory "$(dirname "$local_profile")"
        install -m 0644 /dev/null "$local_profile"
    fi
    if command -v aa-enabled >/dev/null 2>&1 && aa-enabled --quiet 2>/dev/null; then
        apparmor_parser -r -T -W /etc/apparmor.d/usr.bin.linux-patch-api || true
    fi
    start "$which" "$1"
    say "$(/usr/bin/linux-patch-api --version) is installed"
    if [ ! -e "$config/certs/server.pem" ]; then
        say "put ca.pem, server.pem and server.key.pem into $config/certs,"
        say "name your clients in $config/whitelist.yaml, then: systemctl start linux-patch-api"
    fi
}

remove_ballast() {
    [ -f "$state/ballast.json" ] || return 0
    grep -o '"/\([^"\\]*/\)\{0,1\}\.linux-patch-ballast"' "$state/ballast.json" | while IFS= read -r quoted; do
        path=${quoted#?}
        path=${path%?}
        case "$path" in
        */../*) ;;
        *) rm -f -- "$path" || true ;;
        esac
    done
}

# The directories that were made, as far as they are empty now.
take_directories() {
    [ -e "$made" ] || return 0
    sort -r "$made" | while IFS= read -r directory; do
        rmdir -- "$directory" 2>/dev/null || true
    done
}

uninstall() {
    if [ ! -e "$manifest" ]; then
        if [ "$1" = no ]; then
            say "nothing is installed from a tarball"
            return 0
        fi
        [ ! -e /usr/bin/linux-patch-api ] ||
            fail "linux-patch-api was not installed by this script; remove it with: apt-get purge linux-patch-api"
    else
        owned=$(cut -c 67- "$manifest" | owned_by_packages)
        if echo "$owned" | grep -q '^linux-patch-api[: ]'; then
            say "the package linux-patch-api was installed over what this script had installed, and the files are dpkg's now:" >&2
            say "nothing was removed. To be rid of both: apt-get remove linux-patch-api, then this again. To keep the" >&2
            fail "package and have this script forget the host: rm $manifest $home/install.sh"
        fi
        if change_is_under_way; then
            fail "a change of packages is under way, or waits to be confirmed: 'linux-patch-host jobs' shows it; try again then"
        fi
        if grep -q '"pending":{' "$state/reboot-window.json" 2>/dev/null; then
            say "a reboot is under way: this host may be drained, or hold the fleet's lock, and only these programs take that"
            say "back: 'linux-patch-host reboot-window tick' does, or says why not; then try again. If the host is in service"
            fail "all the same, remove $state/reboot-window.json first"
        fi
        if has_systemd; then
            systemctl stop linux-patch-policy.timer linux-patch-policy.service linux-patch-notify.timer \
                linux-patch-notify.service linux-patch-api.service linux-patch-executor.socket 2>/dev/null || true
            systemctl --quiet disable --now linux-patch-reboot-window.timer 2>/dev/null || true
            # shellcheck disable=SC2086 # a list of words
            systemctl --quiet disable $units 2>/dev/null || true
        fi
        # A reboot that was asked for goes with whoever would carry it out; what watches it sees that and ends.
        rm -f "$state/reboots/"*.queued
        # Nobody is left who could lift the pins. The register stays.
        rm -f /etc/apt/preferences.d/linux-patch-taken-back
        # The agent patches this host no more, so the distribution's own updater may again.
        linux-patch-host policy release >/dev/null 2>&1 || true
        rm -f /etc/apt/apt.conf.d/99linux-patch-agent-mode
        # Files below /etc stay until they are purged; the list of them stays with them.
        cut -c 67- "$manifest" | while IFS= read -r file; do
            case "$file" in
            /etc/*) continue ;;
            esac
            owner=$(echo "$owned" | awk -v path="$file" '$2 == path { print $1; exit }')
            if [ -z "$owner" ]; then
                rm -f -- "$file"
            else
                say "left $file, which belongs to the package $owner"
            fi
        done
    fi
    if [ "$1" = yes ]; then purge; fi
    if [ -e "$manifest" ]; then
        if grep -q '  /etc/' "$manifest"; then
            mkdir -p "$config"
            grep '  /etc/' "$manifest" >"$left"
        fi
        rm -f -- "$manifest" "$home/install.sh"
    fi
    take_directories
    if [ "$1" = yes ]; then
        rm -f "$left" "$made"
        rmdir "$config/certs" "$config" 2>/dev/null || true
        if [ -d "$config" ]; then say "kept $config, which holds certificates or files of your own"; fi
    fi
    rmdir "$home" 2>/dev/null || true
    if has_systemd; then
        systemctl daemon-reload
        # shellcheck disable=SC2086 # a list of words
        systemctl reset-failed $units 2>/dev/null || true
    fi
    say "removed"
}

purge() {
    for list in "$manifest" "$left"; do
        [ -e "$list" ] || continue
        cut -c 67- "$list" | while IFS= read -r file; do
            case "$file" in /etc/*) rm -f -- "$file" "$file.new" ;; esac
        done
    done
    rm -f "$local_profile"
    rm -rf /var/lib/linux_patch_api /var/log/linux_patch_api
    if [ -e "$state/rollback_failed.json" ]; then
        say "kept $state: going back failed and was not repaired, and it holds the only copies of the old packages;"
        say "remove it when the host is in order"
    else
        remove_ballast
        rm -rf "$state"
    fi
    if getent passwd "$user" >/dev/null && command -v userdel >/dev/null 2>&1; then
        userdel "$user" >/dev/null 2>&1 || true
    fi
}

action=install
go=yes
downgrade=no
for argument in "$@"; do
    case "$argument" in
    --no-start) go=no ;;
    --allow-downgrade) downgrade=yes ;;
    --uninstall) [ "$action" = purge ] || action=uninstall ;;
    --purge) action=purge ;;
    -h | --help)
        usage
        exit 0
        ;;
    *)
        echo "install.sh: $argument is not understood" >&2
        usage >&2
        exit 2
        ;;
    esac
done
[ "$(id -u)" -eq 0 ] || fail "this needs root"
case "$action" in
install) install_all "$go" "$downgrade" ;;
uninstall) uninstall no ;;
purge) uninstall yes ;;
esac
