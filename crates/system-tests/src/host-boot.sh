# Run in the namespaces of a host: boots it once. $1 the control groups' cgroup.procs files, $2 the host's directory, then
# systemd-nspawn's words
for group in $1; do echo 0 >"$group"; done
if [ -e "$2/device" ]; then
  umount "$2/root"
  mount -o subvol=@,noatime "$(cat "$2/device")" "$2/root"
fi
shift 2
# A time namespace, so that each boot begins with an uptime of 0.
uptime=$(cut -d. -f1 /proc/uptime)
export SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 SYSTEMD_NSPAWN_API_VFS_WRITABLE=network
exec unshare --time --boottime "-$uptime" --monotonic "-$uptime" --fork --kill-child -- "$@"
