import ctypes, json, os, socket, subprocess
told = {}
def attempt(name, act):
    try:
        act()
        told[name] = "done"
    except BaseException as error:
        told[name] = type(error).__name__ + ": " + str(error)
def write(path):
    with open(path, "a") as file:
        file.write("x")
for path in ["/usr/bin/intruder", "/etc/intruder", "/etc/linux_patch_api/config.yaml", "/etc/linux_patch_api/whitelist.yaml",
             "/etc/linux_patch_api/certs/ca.pem", "/etc/linux_patch_api/certs/intruder.pem", "/boot/intruder", "/root/intruder",
             "/var/lib/dpkg/status", "/var/lib/linux_patch_executor/intruder", "/var/lib/linux_patch_executor/events/intruder",
             "/run/intruder", "/proc/sys/kernel/core_pattern", "/sys/fs/cgroup/intruder"]:
    attempt("write " + path, lambda: write(path))
for path in ["/etc/linux_patch_api/certs/server.key.pem", "/etc/shadow", "/proc/1/environ"]:
    attempt("read " + path, lambda: open(path).read())
for path in ["/var/lib/linux_patch_executor/journal", "/var/lib/linux_patch_executor/archives", "/home", "/root"]:
    attempt("list " + path, lambda: [][0] if not os.listdir(path) else None)
for program in [["/usr/bin/dpkg", "--version"], ["/bin/sh", "-c", "true"], ["/usr/bin/apt-get", "--version"],
                ["/lib64/ld-linux-x86-64.so.2", "/usr/bin/dpkg", "--version"]]:
    attempt("run " + " ".join(program[:2]), lambda: subprocess.run(program, check=True))
def own_program():
    with open("/var/lib/linux_patch_api/intruder", "w") as file:
        file.write("#!/bin/sh\n")
    os.chmod("/var/lib/linux_patch_api/intruder", 0o755)
    subprocess.run(["/var/lib/linux_patch_api/intruder"], check=True)
attempt("run its own file", own_program)
attempt("become root", lambda: os.setuid(0))
attempt("signal systemd", lambda: os.kill(1, 0))
libc = ctypes.CDLL(None, use_errno=True)
def call(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
attempt("mount", lambda: call(libc.mount(b"tmpfs", b"/tmp", b"tmpfs", 0, None)))
attempt("unshare", lambda: call(libc.unshare(0x10000000)))
attempt("ptrace", lambda: call(libc.ptrace(16, os.getppid(), 0, 0)))
attempt("packet socket", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
attempt("raw socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
attempt("state", lambda: write("/var/lib/linux_patch_api/own"))
attempt("log", lambda: write("/var/log/linux_patch_api/own"))
with open("/var/lib/linux_patch_api/told.json", "w") as file:
    json.dump(told, file)
