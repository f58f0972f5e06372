"""What a hostile program in the daemon's place tries, under the daemon's own unit. Each attempt in a process of its own."""
import json, os, random, socket, struct, subprocess, sys, uuid

STATE = "/var/lib/linux_patch_api/"
EXECUTOR = "/var/lib/linux_patch_executor/"
ATTEMPTS = {}


def attempt(name, work):
    ATTEMPTS[name] = work


def write(path):
    attempt("write " + path, lambda: open(path, "ab").close())


def read(path):
    attempt("read " + path, lambda: os.listdir(path) if os.path.isdir(path) else open(path, "rb").read(1))


def run(*argv):
    def work():
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=60)
        if done.returncode:
            raise OSError(done.returncode, done.stderr.decode(errors="replace")[-200:])
    attempt("run " + " ".join(argv), work)


for path in ["/usr/bin/lp-hostile", "/usr/lib/lp-hostile", "/usr/bin/linux-patch-api", "/etc/lp-hostile",
             "/etc/cron.d/lp-hostile", "/etc/apt/sources.list", "/etc/systemd/system/lp-hostile.service",
             "/etc/linux_patch_api/config.yaml", "/etc/linux_patch_api/whitelist.yaml",
             "/etc/linux_patch_api/ceiling.yaml", "/etc/linux_patch_api/certs/ca.pem",
             "/etc/linux_patch_api/certs/crl.pem", "/var/lib/dpkg/status", "/var/lib/apt/lists/lp-hostile",
             "/var/cache/apt/archives/lp-hostile.deb", "/boot/lp-hostile", "/root/lp-hostile", "/srv/lp-hostile",
             "/run/systemd/system/lp-hostile.service", "/proc/sys/kernel/hostname", "/var/spool/lp-hostile",
             EXECUTOR + "lp-hostile", EXECUTOR + "events/lp-hostile", EXECUTOR + "journal/lp-hostile",
             EXECUTOR + "archives/lp-hostile", EXECUTOR + "taken_back.json"]:
    write(path)
for path in [EXECUTOR + "journal", EXECUTOR + "archives", EXECUTOR + "taken_back.json", "/etc/shadow", "/root",
             "/etc/linux_patch_api/certs/server.key.pem", "/proc/1/environ"]:
    read(path)
run("dpkg", "--configure", "-a")
run("dpkg", "--purge", "lp-plain")
run("apt-get", "-y", "remove", "lp-plain")
run("apt-mark", "hold", "lp-plain")
run("systemctl", "daemon-reload")
run("systemctl", "stop", "linux-patch-executor.socket")
run("systemctl", "start", "linux-patch-executor@0-0-0.service")
run("mount", "-t", "tmpfs", "none", "/mnt")
run("unshare", "--user", "--map-root-user", "true")
run("nsenter", "--target", "1", "--mount", "true")
attempt("setuid 0", lambda: os.setuid(0))
attempt("kill 1", lambda: os.kill(1, 9))
attempt("raw socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
attempt("packet socket", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
attempt("device", lambda: os.mknod(STATE + "device", 0o600 | 0o020000, os.makedev(1, 3)))


def setuid_file():
    open(STATE + "setuid", "w").close()
    os.chmod(STATE + "setuid", 0o4755)


attempt("setuid file", setuid_file)


def ask(data):
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(30)
        s.connect("/run/linux-patch-executor.sock")
        answer = b""
        try:
            s.sendall(data)
            s.shutdown(socket.SHUT_WR)
            while chunk := s.recv(65536):
                answer += chunk
        except OSError:
            pass
        return json.loads(answer[4:]) if len(answer) > 4 else {"reply": "nothing"}


def frames(seed, count):
    """Frames that are broken, forged or about others' jobs; none of them a change that is allowed."""
    chance = random.Random(seed)
    told = {}
    for _ in range(count):
        job = chance.choice([str(uuid.UUID(int=chance.getrandbits(128))), "../../../../etc/passwd", "", 7, None])
        body = chance.choice([{"request": "settle", "job": job}, {"request": "confirm", "job": job},
                              {"request": "cancel", "job": job}, {"request": "clear", "versions": "all"},
                              {"request": "plan", "operation": {"kind": "rollback", "job": job, "force": True}},
                              {"request": "shell", "command": "id"}, {"request": "change", "operation": {}}])
        request = {"protocol": chance.choice([1, 1, 1, 0, 99]), "id": str(uuid.UUID(int=chance.getrandbits(128))), "body": body}
        data = bytearray(json.dumps(request).encode())
        for _ in range(chance.choice([0, 0, 1, 3])):
            data[chance.randrange(len(data))] = chance.randrange(256)
        length = chance.choice([len(data)] * 6 + [0, len(data) - 1, (1 << 20) + 1, (1 << 32) - 1])
        reply = ask(struct.pack(">I", length) + data)["reply"]
        told[reply] = told.get(reply, 0) + 1
    return told


report = {}
for name, work in ATTEMPTS.items():
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work()
            said = "reached"
        except BaseException as error:
            said = "refused: " + repr(error)[:200]
        os.write(theirs, said.encode())
        os._exit(0)
    os.close(theirs)
    said = os.read(ours, 4096).decode()
    os.close(ours)
    os.waitpid(child, 0)
    report[name] = said or "refused: killed"
with open(STATE + "report.json", "w") as file:
    json.dump({"attempts": report, "frames": frames(int(sys.argv[1]), 150), "uid": os.getuid()}, file)
