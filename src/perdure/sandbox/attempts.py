"""What hostile code tries, as code to run inside. Each attempt prints a line: `refused` and why, or `GOT` and what.

Standard library only, and nothing that a kind lacks may be needed: what can not be imported counts as refused.
"""

from __future__ import annotations

TOOLS = '''
import os, sys
def attempt(name, function):
    try:
        got = function()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        print(f"{name}: refused ({type(error).__name__}: {str(error)[:80]})")
    else:
        refused = isinstance(got, str) and got.startswith("-")
        print(f"{name}: refused ({got})" if refused else f"{name}: GOT {got!r}"[:200])
def call(name, *arguments):
    """Make a system call by number; -errno as text where the kernel refuses."""
    import ctypes, platform
    libc = ctypes.CDLL(None, use_errno=True)
    number = NUMBERS[name][0 if platform.machine() == "x86_64" else 1]
    ctypes.set_errno(0)
    value = libc.syscall(number, *arguments)
    return f"-{os.strerror(ctypes.get_errno())}" if value == -1 else value
NUMBERS = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "mount": (165, 40), "umount2": (166, 39),
    "unshare": (272, 97), "setns": (308, 268), "chroot": (161, 51), "pivot_root": (155, 41), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425), "keyctl": (250, 219),
    "memfd_create": (319, 279), "shmget": (29, 194), "fsopen": (430, 430), "open_tree": (428, 428),
    "clone": (56, 220), "clone3": (435, 435), "personality": (135, 92), "init_module": (175, 105),
    "reboot": (169, 142), "syslog": (103, 116), "prlimit64": (302, 261), "setpriority": (141, 140),
    "name_to_handle_at": (303, 264), "process_madvise": (440, 440), "pidfd_getfd": (438, 438),
}
'''

NETWORK = """
import socket
def reach(family, kind, address):
    with socket.socket(family, kind) as one:
        one.settimeout(2)
        one.connect(address)
        one.send(b"x")
        return address
attempt("the server's own port", lambda: reach(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", {port})))
attempt("the same over IPv6", lambda: reach(socket.AF_INET6, socket.SOCK_STREAM, ("::1", {port})))
attempt("UDP to this machine", lambda: reach(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", {port})))
attempt("UDP to elsewhere", lambda: reach(socket.AF_INET, socket.SOCK_DGRAM, ("192.0.2.1", 53)))
attempt("an abstract Unix socket", lambda: reach(socket.AF_UNIX, socket.SOCK_STREAM, "\\0{abstract}"))
attempt("a Unix socket by path", lambda: reach(socket.AF_UNIX, socket.SOCK_STREAM, {path!r}))
attempt("vsock", lambda: reach(40, socket.SOCK_STREAM, (2, 1)))
attempt("netlink", lambda: socket.socket(16, socket.SOCK_RAW))
attempt("packets", lambda: socket.socket(17, socket.SOCK_RAW))
attempt("a name", lambda: socket.getaddrinfo("example.org", 80))
"""

FILES = """
def read(path):
    with open(path, "rb") as file:
        return file.read(40)
def write(path):
    with open(path, "wb") as file:
        file.write(b"broken")
    return path
attempt("a file of the server's", lambda: read({secret!r}))
attempt("its folder", lambda: os.listdir({folder!r}))
attempt("through /proc/1/root", lambda: read("/proc/1/root" + {secret!r}))
attempt("through the working folder", lambda: read("../.." + {secret!r}))
attempt("passwords", lambda: read("/etc/shadow"))
attempt("root's home", lambda: [name for name in os.listdir("/root") if name.startswith(".") and name != ".pyenv"][0])
attempt("to write over it", lambda: write({secret!r}))
attempt("to cut it short", lambda: os.truncate({secret!r}, 0))
attempt("to change its mode", lambda: os.chmod({secret!r}, 0o777) or os.stat({secret!r}).st_mode)
attempt("to change its times", lambda: os.utime({secret!r}, (1, 1)) or os.stat({secret!r}).st_mtime)
attempt("to remove it", lambda: os.remove({secret!r}))
attempt("to write beside it", lambda: write({folder!r} + "/new"))
attempt("to write to /usr", lambda: write("/usr/broken"))
attempt("to write to /etc", lambda: write("/etc/broken"))
attempt("to write to /", lambda: write("/broken"))
attempt("to write to /dev", lambda: write("/dev/broken"))
attempt("to link it here", lambda: os.link({secret!r}, "linked"))
attempt("to write a setting of the kernel", lambda: write("/proc/sys/kernel/core_pattern"))
"""

ENVIRONMENT = """
import glob
print("environment:", sorted(os.environ.items()))
for path in glob.glob("/proc/[0-9]*/environ"):
    try:
        with open(path, "rb") as file:
            print(path, file.read())
    except OSError:
        pass
"""

RIGHTS = """
wanted = {"Uid", "CapPrm", "CapEff", "CapAmb", "NoNewPrivs", "Seccomp"}
def rights():
    try:
        lines = open("/proc/self/status").read().splitlines()
        return "; ".join(line.replace("\\t", " ") for line in lines if line.split(":")[0] in wanted)
    except OSError:
        import ctypes
        libc = ctypes.CDLL(None)
        return f"Uid: {os.getuid()}; NoNewPrivs: {libc.prctl(39, 0, 0, 0, 0)}; Seccomp: {libc.prctl(21, 0, 0, 0, 0)}"
try:
    print(rights())
except ImportError:
    print("no processes here")
attempt("to become root", lambda: os.setuid(0))
def by_program():
    said = os.popen("mount -t tmpfs none /tmp 2>&1 && echo mounted").read()
    return said if "mounted" in said else "-" + said[:60]
attempt("a set-uid program", by_program)
"""

OTHERS = """
import signal
for pid in {pids}:
    attempt(f"to signal process {{pid}}", lambda: os.kill(pid, 0))
    attempt(f"to change its limits", lambda: call("prlimit64", pid, 7, 0, 0))
    attempt(f"to read its memory", lambda: open(f"/proc/{{pid}}/mem", "rb").read(1))
    attempt(f"to read its descriptors", lambda: os.listdir(f"/proc/{{pid}}/fd"))
attempt("ptrace", lambda: call("ptrace", 16, os.getppid(), 0, 0))
attempt("ptrace of oneself", lambda: call("ptrace", 0, 0, 0, 0))
attempt("another's memory", lambda: call("process_vm_readv", os.getppid(), 0, 0, 0, 0, 0))
attempt("the warden's memory", lambda: open(f"/proc/{{os.getppid()}}/mem", "rb").read(1))
attempt("to slow down the user's other processes", lambda: call("setpriority", 2, 0, 19))
"""

KERNEL = """
for name in ("mount", "umount2", "unshare", "setns", "chroot", "pivot_root", "fsopen", "open_tree", "bpf",
             "perf_event_open", "userfaultfd", "io_uring_setup", "keyctl", "memfd_create", "shmget", "clone3",
             "personality", "init_module", "reboot", "syslog", "name_to_handle_at", "process_madvise", "pidfd_getfd"):
    attempt(name, lambda: call(name, 0, 0, 0, 0, 0, 0))
for name, flags in (("user", 0x10000000), ("mount", 0x20000), ("network", 0x40000000)):
    attempt(f"a new {name} namespace", lambda: call("unshare", flags))
    attempt(f"a process in a new {name} namespace", lambda: call("clone", flags | 17, 0, 0, 0, 0))
def call_x32():
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    value = libc.syscall(0x40000000 + 39)
    return f"-{os.strerror(ctypes.get_errno())}" if value == -1 else value
attempt("calls of the x32 ABI", call_x32)
"""

DEVICES = """
import stat
attempt("to make a device", lambda: os.mknod("device", stat.S_IFBLK | 0o600, os.makedev(254, 0)))
for name in ("mem", "kmem", "port", "kmsg", "vda", "sda", "nvme0n1", "dm-0", "fuse", "kvm", "net/tun", "vsock", "tty1"):
    attempt(f"/dev/{name}", lambda: os.open(f"/dev/{name}", os.O_RDWR))
attempt("a terminal to type into", lambda: __import__("fcntl").ioctl(0, 0x5412, b"x"))
attempt("/sys", lambda: open("/sys/power/state").read())
attempt("the kernel's memory", lambda: open("/proc/kcore", "rb").read(1))
attempt("the kernel's messages", lambda: open("/proc/kmsg", "rb").read(1))
attempt("the sysrq key", lambda: open("/proc/sysrq-trigger", "w").write("h"))
"""

LINKS = """
for name, target in (("link.txt", {secret!r}), ("passwd", "/etc/passwd"), ("folder", "/"), ("loop", "loop")):
    try:
        os.symlink(target, name)
    except OSError as error:
        print("no link", name, error)
try:
    os.mkfifo("pipe")
except (OSError, AttributeError) as error:
    print(error)
here = os.getcwd()
try:
    os.rename(here, here + "-moved")
    os.symlink({folder!r}, here)
    print("the folder itself is a link now")
except OSError as error:
    print("no link in the folder's place", error)
for name in ("a\\nb", "c\\rd", "e\\x1b[2Jf", "back\\\\slash"):
    try:
        open(name, "w").write("strange")
    except OSError as error:
        print(repr(name), error)
os.makedirs("deep/er", exist_ok=True)
open("deep/er/fine.txt", "w").write("fine")
"""

OF_THE_FIRST = """
import os, tempfile
secret = "of the first"
for folder in (".", tempfile.gettempdir()):
    with open(os.path.join(folder, "mine.txt"), "w") as file:
        file.write("mine")
print(os.getcwd(), os.getpid())
"""

OF_THE_SECOND = """
def ask(pid):
    if not pid:
        raise ProcessLookupError("its number means another process here, or none")
    os.kill(pid, 0)
attempt("the other's files", lambda: open("{folder}/mine.txt").read())
attempt("its files by their name", lambda: open("mine.txt").read())
attempt("its scratch folder", lambda: open(os.path.join(os.environ["TMPDIR"], "mine.txt")).read())
attempt("its names", lambda: secret)
attempt("its process", lambda: ask({pid}))
"""

FORKS = """
import time
def bomb():
    while True:
        os.fork()
count = 0
try:
    while True:
        if os.fork() == 0:
            time.sleep(1000)
            os._exit(0)
        count += 1
except OSError as error:
    print("stopped at", count, error)
bomb()
"""

MEMORY = """
try:
    b = bytearray(10 * 1024**3)
except OverflowError:  # a machine of 32 bits
    b = [bytearray(1024**3) for _ in range(10)]
"""
MEMORY_TOGETHER = """
import os, time
for _ in range(6):
    if os.fork() == 0:
        b = bytearray(os.urandom(1024)) * (120 * 1024)
        time.sleep(1000)
        os._exit(0)
time.sleep(1000)
"""
MEMORY_SHARED = """
import mmap, time
held = []
while True:
    held.append(mmap.mmap(-1, 32 * 1024**2))
    for at in range(0, 32 * 1024**2, 4096):
        held[-1][at] = 1
"""
DISK = """
written = 0
try:
    for number in range(100):
        with open(f"fill{number}", "wb") as file:
            for _ in range(8):
                written += file.write(b"x" * 1024**2)
finally:
    print("written", written)
"""
DISK_FILES = """
import os
os.makedirs("many", exist_ok=True)
for number in range(2_000_000):
    open(f"many/{number}", "w").close()
"""
LONG_FILE = """
with open("long", "wb") as file:
    while True:
        file.write(b"x" * 1024**2)
"""
LOOP = "kept = 41\nwhile True: pass"
DEAF_LOOP = """
import signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
while True:
    try:
        while True: pass
    except BaseException:
        pass
"""
OUTPUT = "while True: print('x' * 1000)"
KILLS = """
import os, signal
for pid in (1, os.getppid() if hasattr(os, "getppid") else 2):
    for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGINT):
        try:
            os.kill(pid, number)
        except (OSError, AttributeError) as error:
            print(pid, error)
print("alive")
"""
CRASH = """
import ctypes
ctypes.string_at(0)
"""
FORGED = """
import os
for number in range(3, 64):
    try:
        os.write(number, b"\\xff" * 64)
    except OSError:
        pass
print("written")
"""
