# Run in the namespaces of a new host: mounts its disk and makes it a machine of its own.
# $1 the host's directory, $2 the base root, $3 the host name, $4 the disk's size, $5 overlay or btrfs, then directories off the
# overlay
directory=$1 base=$2 name=$3 size=$4 kind=$5
shift 5
mkdir "$directory/disk" "$directory/root"
mount -t tmpfs -o "mode=755,size=$size" lp-disk "$directory/disk"
if [ "$kind" = btrfs ]; then
  # The root is in a subvolume that is mounted by its name, anew at each boot. The loop device goes with its last mount.
  truncate -s "$size" "$directory/disk/image"
  mkfs.btrfs -q "$directory/disk/image" >/dev/null
  mkdir "$directory/top"
  mount -o loop,noatime "$directory/disk/image" "$directory/top"
  btrfs -q subvolume create "$directory/top/@" >/dev/null
  cp -a "$base/." "$directory/top/@/"
  findmnt -no SOURCE "$directory/top" >"$directory/device"
  mount -o subvol=@,noatime "$(cat "$directory/device")" "$directory/root"
else
  mkdir "$directory/disk/upper" "$directory/disk/work"
  mount -t overlay -o "lowerdir=$base,upperdir=$directory/disk/upper,workdir=$directory/disk/work" overlay "$directory/root"
fi
echo "$name" >"$directory/root/etc/hostname"
printf '127.0.0.1 localhost\n127.0.1.1 %s\n' "$name" >"$directory/root/etc/hosts"
# Without an id every boot is a first boot, and apt does not phase updates.
tr -d - </proc/sys/kernel/random/uuid >"$directory/root/etc/machine-id"
for real; do mkdir -p "$directory/disk/real$real" "$directory/root$real"; done
# systemd-nspawn leaves a directory for each machine there; so they go with the host.
mkdir -p /run/systemd/nspawn
mount -t tmpfs -o mode=755 lp-nspawn /run/systemd/nspawn
