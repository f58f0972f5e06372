"""Gives what was changed since the host has its own clock, and bears the machine's time, the host's: `settle.py SINCE OFFSET`."""
import os, sys, time

since, offset = float(sys.argv[1]), float(sys.argv[2])
now = time.time() + 1
for top in ("/etc", "/var", "/run"):
    for directory, below, files in os.walk(top):
        for name in [".", *files]:
            path = os.path.join(directory, name)
            try:
                found = os.lstat(path)
                if since <= found.st_mtime <= now:
                    moved = int(offset * 1_000_000_000)
                    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns + moved), follow_symlinks=False)
            except OSError:
                pass
