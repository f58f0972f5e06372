# Run in the namespaces of a new throw-away root: mounts it and makes it usable.
# $1 the root below it, $2 the repository or nothing, $3 the lines of sources.list, $4 a directory for what is written, or
# nothing: then that is kept in memory
# $5 a device that has the root, or nothing, $6 what is mounted of it: a line each, where and how
lower=$1 repository=$2 sources=$3 disk=$4 block=$5 parts=$6 root=/mnt/root
if [ -n "$disk" ]; then mount --bind "$disk" /mnt; else mount -t tmpfs -o mode=755 lp-root /mnt; fi
mkdir /mnt/upper /mnt/work "$root"
if [ -n "$block" ]; then
  while read -r point how; do mount -o "$how" "$block" "$root/$point"; done <<E
$parts
E
else mount -t overlay -o "lowerdir=$lower,upperdir=/mnt/upper,workdir=/mnt/work" overlay "$root"; fi
mount -t proc proc "$root/proc"
# Of the machine's devices only these, each as a mount: what is removed or replaced in here is not the machine's.
mount -t tmpfs -o mode=755,nosuid tmpfs "$root/dev"
mkdir "$root/dev/pts" "$root/dev/shm"
for device in null zero full random urandom tty; do
  : >"$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
if [ -n "$block" ]; then
  : >"$root$block"
  mount --bind "$block" "$root$block"
fi
mount --rbind /dev/pts "$root/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
ln -s /proc/self/fd/0 "$root/dev/stdin"
ln -s /proc/self/fd/1 "$root/dev/stdout"
ln -s /proc/self/fd/2 "$root/dev/stderr"
mount -t sysfs -o ro sysfs "$root/sys" 2>/dev/null || mount --rbind /sys "$root/sys"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mkdir -p "$root/run/lock" "$root/usr/sbin"
if [ -s /etc/resolv.conf ]; then
  rm -f "$root/etc/resolv.conf"
  cat /etc/resolv.conf >"$root/etc/resolv.conf"
fi
if [ -n "$repository" ]; then
  mkdir -p "$root/srv/repo" "$root/etc/apt/keyrings"
  mount --bind "$repository" "$root/srv/repo"
  mount -o remount,bind,ro "$root/srv/repo"
  rm -f "$root"/etc/apt/sources.list.d/*
  install -m 644 "$repository/key.gpg" "$root/etc/apt/keyrings/lp-test.gpg"
  printf '%s' "$sources" >"$root/etc/apt/sources.list"
fi
ip link set lo up 2>/dev/null || true
# No service is started by a package here.
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"
hostname throwroot
tr -d - </proc/sys/kernel/random/uuid >"$root/etc/machine-id"
