# Says of the host, as one JSON object of texts, what a change may change: asked of dpkg and of the disk.
import glob, hashlib, json, os, stat, subprocess

facts = {}


def ask(*argv):
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=dict(os.environ, LC_ALL="C.UTF-8"))
    return done.stdout.decode("utf-8", "replace")


def text(raw):
    return raw.decode("utf-8", "backslashreplace")


def md5(path):
    try:
        with open(path, "rb") as file:
            return hashlib.md5(file.read()).hexdigest()
    except OSError as error:
        return "unreadable: %s" % error.strerror


def file(path):
    try:
        at = os.lstat(path)
    except OSError:
        return "missing"
    words = ["%o" % stat.S_IMODE(at.st_mode), "%d:%d" % (at.st_uid, at.st_gid)]
    if stat.S_ISLNK(at.st_mode):
        words.append("-> " + text(os.readlink(path)))
    elif stat.S_ISDIR(at.st_mode):
        return "directory " + " ".join(words)
    else:
        words.append(md5(path))
        if at.st_nlink > 1:
            words.append("%d names" % at.st_nlink)
    try:
        for name in sorted(os.listxattr(path, follow_symlinks=False)):
            if not text(os.fsencode(name)).startswith("trusted."):
                words.append(name + "=" + os.getxattr(path, name, follow_symlinks=False).hex())
    except OSError:
        pass
    return " ".join(words)


auto = set()
name = None
try:
    with open("/var/lib/apt/extended_states", encoding="utf-8") as states:
        for line in states:
            field, _, value = line.partition(":")
            if field == "Package":
                name = value.strip()
            elif field == "Auto-Installed" and value.strip() == "1":
                auto.add(name)
except OSError:
    pass

FORMAT = "${Package}\t${Architecture}\t${Version}\t${db:Status-Want}\t${db:Status-Eflag}\t${db:Status-Status}\n"
ours = []
for line in ask("dpkg-query", "-W", "-f", FORMAT).splitlines():
    package, architecture, version, want, flag, status = line.split("\t")
    words = [version, want, flag, status]
    if status not in ("config-files", "not-installed"):
        words.append("auto" if package in auto else "manual")
    facts["package %s:%s" % (package, architecture)] = " ".join(words)
    if package.startswith("lp-"):
        ours.append(package)

for line in ask("dpkg", "--audit").splitlines():
    if line.strip():
        facts["audit " + line.strip()] = ""
if ours:
    for line in ask("dpkg", "--verify", *ours).splitlines():
        if " c /" not in line:
            facts["verify " + line] = ""

for line in ask("dpkg-query", "-W", "-f", "${Conffiles}\n").splitlines():
    words = line.split()
    if words:
        facts["conffile " + words[0]] = file(os.fsencode(words[0])) + " recorded " + " ".join(words[1:])

beside = set([b"/etc", b"/usr/bin", b"/usr/sbin"])
for path in sorted(glob.glob("/var/lib/dpkg/info/lp-*")):
    facts["info " + os.path.basename(path)] = md5(path)
    if path.endswith(".list"):
        with open(path, "rb") as listed:
            for line in listed.read().splitlines():
                if line in (b"", b"/."):
                    continue
                # A conffile of a removed package, or a directory of the base, is no business of the list.
                facts["file " + text(line)] = file(line)
                beside.add(os.path.dirname(line) or b"/")

LEFT = (b".dpkg-new", b".dpkg-tmp", b".linux-patch-ballast", b".linux-patch-new")
# These a change may leave for the administrator; going back has to take them away.
SHOWN = (b".dpkg-dist", b".dpkg-old")
for directory in beside | set([b"/", b"/var", b"/var/lib", b"/boot", b"/usr", b"/var/lib/linux_patch_executor"]):
    try:
        names = os.listdir(directory)
    except OSError:
        continue
    for name in names:
        if name.endswith(LEFT):
            facts["litter " + text(os.path.join(directory, name))] = ""
        elif name.endswith(SHOWN):
            facts["beside " + text(os.path.join(directory, name))] = file(os.path.join(directory, name))
for pattern in ("/var/cache/apt/archives/linux-patch-*", "/var/lib/dpkg/updates/*", "/var/lib/dpkg/info/*.dpkg-*",
                "/var/lib/dpkg/tmp.ci/*", "/var/lib/dpkg/reassemble.deb", "/var/lib/dpkg/*-new",
                "/var/lib/linux_patch_executor/journal/.new-*", "/var/lib/linux_patch_executor/journal/*/*.new"):
    for path in glob.glob(pattern):
        facts["litter " + path] = ""
try:
    if os.path.getsize("/var/lib/dpkg/triggers/Unincorp"):
        facts["litter /var/lib/dpkg/triggers/Unincorp"] = md5("/var/lib/dpkg/triggers/Unincorp")
except OSError:
    pass
for name in ("diversions", "statoverride"):
    facts["administration " + name] = md5("/var/lib/dpkg/" + name)
print(json.dumps(facts))
