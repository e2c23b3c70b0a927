"""Programs that try to get out of the sandbox, or to be paid for nothing.

An attack prints `ESCAPED` when something worked that must not; words in angle brackets are filled in by the test. A
cheat is graded, and must score 0.
"""

# ruff: noqa: E501  (programs are easier to read on one line than broken up)

from __future__ import annotations

from collections.abc import Mapping

_CALLS = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *args):
    result = libc.syscall(*args)
    print("ESCAPED by" if result >= 0 else "held", name, result, ctypes.get_errno())
"""

ATTACKS: Mapping[str, str] = {
    # The network
    "connect_to_loopback": """
import socket
s = socket.create_connection(("127.0.0.1", <port>), 2); s.sendall(b"hello"); print("ESCAPED")
""",
    "connect_to_the_internet": """
import socket
s = socket.create_connection(("1.1.1.1", 53), 2); print("ESCAPED")
""",
    "send_a_datagram": """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b"x", ("127.0.0.1", <port>)); print("ESCAPED")
""",
    "raw_packets": """
import socket
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); print("ESCAPED")
""",
    "netlink": """
import socket
s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0); print("ESCAPED")
""",
    "virtual_machine_socket": """
import socket
s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM); s.settimeout(2); s.connect((2, 1)); print("ESCAPED")
""",
    "abstract_socket_of_the_host": r"""
import socket
s = socket.socket(socket.AF_UNIX); s.connect("\0<abstract>"); print("ESCAPED")
""",
    "ask_for_a_name": """
import socket
print("ESCAPED", socket.gethostbyname("example.com"))
""",
    # Files
    "read_the_secret": """
print("ESCAPED", open("<secret>").read())
""",
    "list_the_secrets_folder": """
import os
print("ESCAPED", os.listdir(os.path.dirname("<secret>")))
""",
    "read_the_tests": """
print("ESCAPED", open("<tests>").read()[:99])
""",
    "read_passwords": """
print("ESCAPED", open("/etc/shadow").read())
""",
    "read_homes": """
import os
seen = [name for name in os.listdir("/home") + os.listdir("/root") if name != ".pyenv"]
print("ESCAPED" if seen else "held", seen)
""",
    "write_to_the_system": """
open("/usr/bin/r1async-hostile", "w").write("x"); print("ESCAPED")
""",
    "write_to_the_root_folder": """
open("/r1async-hostile", "w").write("x"); print("ESCAPED")
""",
    "write_to_the_interpreter": """
import json
open(json.__file__, "a").write("x"); print("ESCAPED")
""",
    "write_where_the_secret_is": """
import os
os.makedirs(os.path.dirname("<secret>"), exist_ok=True)
open("<secret>", "w").write("overwritten")
""",
    "symlink_to_the_secret": """
import os
os.symlink("<secret>", "link"); print("ESCAPED", open("link").read())
""",
    "symlinks_in_a_row": """
import os
os.symlink("/proc/self/root/../../../../..<secret>", "a"); os.symlink("a", "b"); print("ESCAPED", open("b").read())
""",
    "hardlink_out_of_the_box": """
import os
os.link("/usr/bin/env", "env"); print("ESCAPED")
""",
    "root_of_process_one": """
print("ESCAPED", open("/proc/1/root<secret>").read())
""",
    "working_folder_of_process_one": """
import os
print("ESCAPED", os.listdir("/proc/1/cwd/"))
""",
    "handle_of_a_file": _CALLS
    + """
buffer = ctypes.create_string_buffer(128)
call("open_by_handle_at", 304, -100, buffer, 0)
""",
    "block_device": """
import os
for name in os.listdir("/dev"):
    if name.startswith(("vd", "sd", "nvme", "mem", "kmsg", "fuse", "kvm", "tty", "pts")): print("ESCAPED", name)
""",
    "make_a_device": """
import os, stat
os.mknod("disk", 0o600 | stat.S_IFBLK, os.makedev(254, 0)); print("ESCAPED")
""",
    "type_into_a_terminal": """
import fcntl
for byte in b"id": fcntl.ioctl(0, 0x5412, bytes([byte])); print("ESCAPED")
""",
    "kernel_settings": """
open("/proc/sys/kernel/core_pattern", "w").write("|/box/work/program.py"); print("ESCAPED")
""",
    "control_groups": """
import os
print("ESCAPED", os.listdir("/sys/fs/cgroup"))
""",
    # Other processes
    "environment_of_the_launcher": """
import os
print("ESCAPED" if "<secret_word>" in str(os.environ) else "held")
print("ESCAPED" if b"<secret_word>" in open("/proc/1/environ", "rb").read() else "held")
""",
    "memory_of_process_one": """
with open("/proc/1/maps") as maps: print("ESCAPED", maps.readline())
""",
    "memory_of_everybody": """
import os
for pid in os.listdir("/proc"):
    if pid.isdigit() and int(pid) != os.getpid():
        try: open(f"/proc/{pid}/mem", "rb"); print("ESCAPED", pid)
        except OSError as error: print("held", error)
""",
    "processes_of_the_host": """
import os
others = [pid for pid in os.listdir("/proc") if pid.isdigit() and int(pid) > 9]
print("ESCAPED" if others else "held", others)
""",
    "descriptors_of_process_one": """
import os
print("ESCAPED", os.listdir("/proc/1/fd"))
""",
    "kill_a_bystander": """
import os
os.kill(<victim>, 9); print("ESCAPED")
""",
    "kill_everybody": """
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN); os.kill(-1, signal.SIGTERM)
""",
    "kill_the_parent": """
import os, signal, time
for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP): os.kill(os.getppid(), number)
time.sleep(0.2); print("still here")
""",
    "kill_the_parents_group": """
import os
os.killpg(os.getpgid(os.getppid()) or 1, 9)
""",
    "trace_process_one": _CALLS
    + """
call("ptrace attach", 101, 16, 1, 0, 0)
call("ptrace seize", 101, 0x4206, 1, 0, 0)
""",
    "read_another_process": _CALLS
    + """
buffer = ctypes.create_string_buffer(64)
call("process_vm_readv", 310, 1, buffer, 1, buffer, 1, 0)
""",
    "steal_a_descriptor": _CALLS
    + """
import os
call("pidfd_getfd", 438, os.pidfd_open(1), 0, 0)
""",
    "inherited_descriptors": """
import os
for number in range(3, 256):
    try: os.write(number, b"x"); print("ESCAPED by", number)
    except OSError: pass
""",
    "outlive_the_run": """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.closerange(0, 9)
        os.execv("/usr/bin/sleep", ["sleep", "<marker>"])
    os._exit(0)
time.sleep(0.3)
""",
    "outlive_the_run_with_its_output": """
import os
if os.fork() == 0:
    os.setsid()
    os.execv("/usr/bin/sleep", ["sleep", "<marker>"])
""",
    # Privileges
    "new_user_namespace": _CALLS
    + """
call("unshare", 272, 0x10000000)
call("clone", 56, 0x10000011, 0, 0, 0, 0)
call("clone3", 435, ctypes.create_string_buffer(88), 88)
""",
    "mount_something": _CALLS
    + """
call("mount", 165, b"x", b"/box/tmp", b"tmpfs", 0, 0)
call("fsopen", 430, b"tmpfs", 0)
call("umount", 166, b"/proc", 2)
call("pivot_root", 155, b".", b".")
call("chroot", 161, b"/box")
""",
    "join_another_namespace": _CALLS
    + """
import os
call("setns", 308, os.open("/proc/self/ns/net", os.O_RDONLY), 0)
""",
    "become_root": """
import os
for become in (os.setuid, os.setgid, os.seteuid):
    try: become(0); print("ESCAPED")
    except OSError as error: print("held", error)
""",
    "run_a_setuid_program": """
import subprocess
print(subprocess.run(["/usr/bin/su", "-c", "echo ESCAPED"], capture_output=True, text=True, input="").stdout)
""",
    "raise_the_limits": """
import resource
for which in (resource.RLIMIT_DATA, resource.RLIMIT_NPROC, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE):
    try: resource.setrlimit(which, (-1, -1)); print("ESCAPED")
    except ValueError as error: print("held", error)
""",
    "rare_calls": _CALLS
    + """
space = ctypes.create_string_buffer(256)
call("io_uring_setup", 425, 8, space)
call("bpf", 321, 0, space, 128)
call("perf_event_open", 298, space, 0, -1, -1, 0)
call("userfaultfd", 323, 0)
call("keyctl", 250, 0, -3, 1)
call("add_key", 248, b"user", b"x", b"y", 1, -3)
call("init_module", 175, space, 1, b"")
call("kexec_load", 246, 0, 0, space, 0)
call("reboot", 169, 0xFEE1DEAD, 672274793, 0x89ABCDEF, 0)
""",
    "other_architecture": """
import mmap, ctypes, os
code = bytes.fromhex("b814000000cd80c3")  # mov eax, 20; int 0x80; ret: getpid by the 32-bit table
pid = os.fork()
if pid == 0:
    page = mmap.mmap(-1, 4096, prot=7); page.write(code)
    ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
    print("ESCAPED", flush=True); os._exit(0)
print("held", os.waitpid(pid, 0))
""",
    "more_rare_calls": _CALLS
    + """
space = ctypes.create_string_buffer(4096)
call("syslog, read all", 103, 3, space, 4096)
call("acct", 163, b"program.py")
call("swapon", 167, b"program.py", 0)
call("quotactl", 179, 0, 0, 0, space)
call("fanotify_init", 300, 0, 0)
call("kcmp", 312, 1, 1, 0, 0, 0)
call("process_madvise", 440, 1, space, 1, 4, 0)
call("name_to_handle_at", 303, -100, b"/", space, space, 0)
call("settimeofday", 164, space, 0)
call("sethostname", 170, b"x", 1)
call("iopl", 172, 3)
call("vhangup", 153)
""",
    "files_of_the_kernel": """
for name in ("kmsg", "kcore", "keys", "sysrq-trigger", "kallsyms", "iomem", "timer_list", "self/pagemap"):
    try:
        with open("/proc/" + name, "rb") as file:
            data = file.read(4096)
            # Addresses that are not shown are all 0.
            if data.strip(b"0 \\n\\t") and name not in ("kallsyms", "iomem", "self/pagemap", "keys"): print("ESCAPED by", name)
    except OSError as error: print("held", name, error)
for name in ("sysrq-trigger", "sys/vm/drop_caches", "sys/kernel/hostname", "1/oom_score_adj", "irq/default_smp_affinity"):
    try:
        with open("/proc/" + name, "w") as file: file.write("0")
        print("ESCAPED by", name)
    except OSError as error: print("held", name, error)
try:
    with open("/proc/self/oom_score_adj", "w") as file: file.write("-1000")
    print("ESCAPED by a lower score")
except OSError as error: print("held", error)
""",
    "signal_by_descriptor": _CALLS
    + """
import os
call("pidfd_send_signal to a bystander", 424, libc.syscall(434, <victim>, 0), 9, 0, 0)
""",
    "the_limits_of_others": _CALLS
    + """
space = ctypes.create_string_buffer(16)
call("prlimit of a bystander", 302, <victim>, 7, space, 0)
""",
    "many_timers_and_descriptors_of_events": """
import ctypes, os, select
held = []
try:
    for _ in range(100_000): held.append(select.epoll())
    print("ESCAPED")
except OSError as error: print("held", len(held), error)
""",
    "set_the_clock": """
import time
time.clock_settime(time.CLOCK_REALTIME, 0); print("ESCAPED")
""",
    "real_time_priority": """
import os
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50)); print("ESCAPED")
""",
    "higher_priority": """
import os
os.nice(-10); print("ESCAPED")
""",
    "rename_the_host": """
import socket
socket.sethostname("hostile"); print("ESCAPED")
""",
    "dump_core": """
import ctypes, os, resource
try: resource.setrlimit(resource.RLIMIT_CORE, (2**30, 2**30)); print("ESCAPED")
except ValueError: pass
os.abort()
""",
    "preload_a_library": """
import os, subprocess
environment = {**os.environ, "LD_PRELOAD": "<secret>", "LD_LIBRARY_PATH": os.path.dirname("<secret>")}
print(subprocess.run(["/bin/echo", "held"], env=environment, capture_output=True, text=True).stdout)
""",
    # Resources
    "fork_bomb": """
import os
while True:
    try: os.fork()
    except OSError: pass
""",
    "thread_bomb": """
import threading, time
while True:
    try: threading.Thread(target=time.sleep, args=(99,), daemon=True).start()
    except RuntimeError: pass
""",
    "count_processes": """
import os, time
children = 0
try:
    while children < 300:
        if os.fork() == 0: time.sleep(9); os._exit(0)
        children += 1
except OSError: pass
print("ESCAPED" if children > 64 else "held", children)
""",
    "much_memory": """
data = bytearray(3 * 2**30); print("ESCAPED")
""",
    "much_memory_in_many_processes": """
import os, time
for _ in range(12):
    if os.fork() == 0:
        data = b"x" * (150 * 2**20); time.sleep(1.5); print("ESCAPED", flush=True); os._exit(0)
for _ in range(12): os.wait()
""",
    "much_shared_memory": """
import mmap
maps = [mmap.mmap(-1, 100 * 2**20) for _ in range(20)]
for each in maps:
    for page in range(0, len(each), 4096): each[page] = 1
print("ESCAPED")
""",
    "files_in_memory": """
import os
file = os.memfd_create("x"); os.ftruncate(file, 2**20); print("ESCAPED")
""",
    "system_v_memory": _CALLS
    + """
call("shmget", 29, 0, ctypes.c_size_t(2**30), 0o1600)
call("msgget", 68, 0, 0o1600)
""",
    "locked_memory": """
import ctypes
print("ESCAPED" if ctypes.CDLL(None).mlockall(3) == 0 else "held")
""",
    "large_file": """
with open("large", "wb") as file:
    for _ in range(300): file.write(bytes(2**20))
print("ESCAPED")
""",
    "full_shared_memory": """
with open("/dev/shm/large", "wb") as one, open("/tmp/large", "wb") as other:
    for _ in range(40): one.write(bytes(2**20)); other.write(bytes(2**20)); one.flush(); other.flush()
print("ESCAPED")
""",
    "sparse_file": """
with open("sparse", "wb") as file: file.truncate(2**40); print("ESCAPED")
""",
    "many_files": """
for number in range(100_000): open(f"f{number}", "w").close()
print("ESCAPED")
""",
    "open_files": """
import os
print("ESCAPED", [os.open("/dev/null", 0) for _ in range(5000)][:0])
""",
    "flood_output": """
while True: print("x" * 10**5)
""",
    "flood_output_from_a_child": """
import subprocess
subprocess.run(["/usr/bin/yes"])
""",
    "flood_errors": """
import sys
while True: sys.stderr.write("x" * 10**5)
""",
    "sleep_for_ever": """
import time
time.sleep(10**6)
""",
    "loop_through_everything": """
import signal
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True:
    try:
        while True: pass
    except BaseException: pass
""",
    "stop_myself": """
import os, signal
os.kill(os.getpid(), signal.SIGSTOP)
""",
    "run_a_shell": """
import subprocess
print(subprocess.run("cat <secret>; id -u; ls /root/.ssh", shell=True, capture_output=True, text=True).stdout)
""",
}
"""Python programs."""

OTHER_ATTACKS: Mapping[str, tuple[str, str]] = {
    "javascript_reads_the_secret": ("javascript", """console.log("ESCAPED", require("fs").readFileSync("<secret>"))"""),
    "javascript_connects": (
        "javascript",
        """require("net").connect(<port>, "127.0.0.1", () => console.log("ESCAPED")).on("error", e => console.log(e.code))""",
    ),
    "javascript_kills": ("javascript", """process.kill(<victim>, "SIGKILL"); console.log("ESCAPED")"""),
    "javascript_takes_memory": (
        "javascript",
        """const all = []; for (let i = 0; i < 40; i++) all.push(Buffer.alloc(1e8, 1)); console.log("ESCAPED")""",
    ),
    "javascript_outlives": (
        "javascript",
        """require("child_process").spawn("sleep", ["<marker>"], {detached: true, stdio: "ignore"}).unref()""",
    ),
    "compiler_includes_the_secret": ("cpp", '#include "<secret>"\nint main() {}'),
    "assembler_includes_the_secret": (
        "cpp",
        'asm(".global s\\ns: .incbin \\"<secret>\\"\\n"); extern char s[]; '
        '#include <cstdio>\nint main() { puts(s); puts("ESCAPED"); }',
    ),
    "javascript_runs_a_shell": (
        "javascript",
        """try { console.log("ESCAPED", require("child_process").execSync("cat <secret>").toString()) } catch (e) { console.log("held") }""",
    ),
    "javascript_kills_its_parent": (
        "javascript",
        """for (const pid of [process.ppid, 1, -1, <victim>]) try { process.kill(pid, "SIGKILL") } catch (e) { console.log(e.code) }""",
    ),
    "compiler_reads_its_standard_input": ("cpp", '#include "/dev/stdin"\n#include "/proc/self/environ"\nint main() {}'),
    "compiler_counts_for_ever": (
        "cpp",
        "constexpr long f(long n) { long s = 0; for (long i = 0; i < n; i++) for (long j = 0; j < n; j++) s += i ^ j; return s; }\n"
        "static_assert(f(1000000000) != 0); int main() {}",
    ),
    "compiler_never_ends": (
        "cpp",
        "template <int n> struct f { f<n + 1> a; f<n - 1> b; }; int main() { f<0> x; }\n#include __FILE__\n",
    ),
    "compiler_fills_the_disk": ("cpp", "char large[1ul << 38] = {1}; int main() { return large[9]; }"),
    "native_code_forks": (
        "cpp",
        "#include <unistd.h>\nint main() { while (true) fork(); }",
    ),
    "native_code_reads_the_secret": (
        "cpp",
        '#include <fstream>\n#include <iostream>\nint main() { std::ifstream f("<secret>"); std::string s; '
        'if (f >> s) std::cout << "ESCAPED " << s; }',
    ),
}
"""In other languages."""

READING_CHEATS: Mapping[str, str] = {
    "print_nothing": "pass",
    "echo_the_input": "print(input())",
    "exit_early": "import sys; sys.exit(0)",
    "exit_at_once": "import os; os._exit(0)",
    "exit_by_exec": "import os; os.execv('/bin/true', ['true'])",
    "success_at_exit": "import atexit, os; atexit.register(lambda: os._exit(0)); raise ValueError",
    "every_number": "print(*range(10000))",
    "every_number_on_a_line": "for i in range(10000): print(i)",
    "right_line_and_more": "n = int(input()); print(n * n); print(n); print('PASS')",
    "more_and_right_line": "n = int(input()); print('answer'); print(n * n); print('extra')",
    "first_line_only": "n = int(input()); print(n * n)",
    "lines_swapped": "n = int(input()); print('n =', n); print(n * n)",
    "lines_joined": "n = int(input()); print(n * n, 'n =', n)",
    "right_but_fails": "n = int(input()); print(n * n); print('n =', n); raise SystemExit(1)",
    "right_but_raises": "n = int(input()); print(n * n); print('n =', n, flush=True); 1 / 0",
    "right_but_killed": "import os\nn = int(input()); print(n * n); print('n =', n, flush=True); os.kill(os.getpid(), 9)",
    "right_but_late": "import time\nn = int(input()); print(n * n); print('n =', n, flush=True); time.sleep(99)",
    "on_standard_error": "import sys\nn = int(input()); print(n * n, file=sys.stderr); print('n =', n, file=sys.stderr)",
    "full_width_digits": "n = int(input()); print(''.join(chr(ord(c) + 65248) for c in str(n * n))); print('n =', n)",
    "underscores": "n = int(input()); print('_'.join(str(n * n))); print('n =', n)",
    "not_a_number": "print('nan'); print('n = nan')",
    "infinite": "print('inf'); print('n = inf')",
    "nearly": "n = int(input()); print(n * n + 1e-9); print('n =', n)",
    "backspaces": "n = int(input()); print('wrong\\b\\b\\b\\b\\b', n * n); print('n =', n)",
    "carriage_returns": "n = int(input()); print('0\\r' + str(n * n)); print('n =', n)",
    "null_bytes": "n = int(input()); print(str(n * n) + '\\0'); print('n =', n)",
    "zero_width": "n = int(input()); print(str(n * n) + '\\u200b'); print('n =', n)",
    "escape_codes": "n = int(input()); print('0\\x1b[2K\\r' + str(n * n)); print('n =', n)",
    "empty_lines_between": "n = int(input()); print(n * n); print(); print('n =', n)",
    "upper_case": "n = int(input()); print(n * n); print('N =', n)",
    "hooked_output": "import sys\nclass All:\n  def write(self, text): sys.__stdout__.write('PASS')\n  def flush(self): pass\n"
    "sys.stdout = All(); print(0)",
    "frames_of_the_caller": "import sys\nframe = sys._getframe()\nwhile frame:\n"
    "  print(frame.f_locals.get('expected'), frame.f_globals.get('expected')); frame = frame.f_back",
    "objects_in_memory": "import gc\nfor o in gc.get_objects():\n"
    "  if isinstance(o, dict) and 'expected' in o: print(o['expected'])",
    "files_lying_about": "import glob\nfor name in glob.glob('/box/**', recursive=True):\n"
    "  try: print(open(name).read())\n  except OSError: pass",
    "memory_of_the_harness": "import re\nfor pid in (1, 2):\n  try: print(re.findall(b'n = [0-9]+', open(f'/proc/{pid}/mem', 'rb').read()))\n"
    "  except OSError: pass",
    "state_from_earlier_tests": "import os\nopen('/tmp/seen', 'a').write(input())\nprint(open('/tmp/seen').read())",
    "warnings_as_success": 'print(\'All tests passed\'); print(\'{"status": "ok", "score": 1.0}\')',
    "frames_for_the_grader": "import os, struct, json\nt = json.dumps({'status': 'ok', 'exit_code': 0, 'lengths': []}).encode()\n"
    "for n in range(1, 9):\n  try: os.write(n, struct.pack('<I', len(t)) + t)\n  except OSError: pass",
    "exponent_that_breaks_decimals": "print('1e99999999999999999999'); print('n = 1e99999999999999999999')",
    "handler_of_the_deadline": "import signal, sys\nfor n in range(1, 65):\n  try: signal.signal(n, lambda *_: sys.exit(0))\n"
    "  except (OSError, ValueError): pass\nwhile True: pass",
    "another_program_in_its_place": "import os\nopen('/box/work/program.py', 'w').write('print(49)') if os.access('/box/work/program.py', 2) else 0\n"
    "os.execv('/usr/bin/printf', ['printf', '49\\nn = 7\\n'])",
    "syntax_error": "def f(:",
}
"""For `square`: read n, write n * n, and `n = <n>` on the next line."""

CALL_CHEATS: Mapping[str, str] = {
    "equal_to_everything": "class E:\n  def __eq__(self, o): return True\n  def __hash__(self): return 0\ndef square(n): return E()",
    "integer_equal_to_everything": "class E(int):\n  def __eq__(self, o): return True\n  __hash__ = int.__hash__\n"
    "def square(n): return E(0)",
    "list_equal_to_everything": "class E(list):\n  def __eq__(self, o): return True\ndef square(n): return E()",
    "text_equal_to_everything": "class E(str):\n  def __eq__(self, o): return True\ndef square(n): return E('0')",
    "nothing": "def square(n): return None",
    "true": "def square(n): return True",
    "nan": "def square(n): return float('nan')",
    "infinity": "def square(n): return 1e999",
    "text_of_the_number": "def square(n): return str(n * n)",
    "in_a_list": "def square(n): return [n * n]",
    "all_numbers": "def square(n): return list(range(10000))",
    "generator": "def square(n):\n  while True: yield n * n",
    "raises": "def square(n): raise SystemExit(0)",
    "exits": "import os\ndef square(n): os._exit(0)",
    "exits_when_loaded": "import os; os._exit(0)",
    "no_such_function": "def cube(n): return n ** 3",
    "patched_json": "import json\njson.dumps = lambda o: '*'\ndef square(n): return 0",
    "patched_json_claims": "import json\njson.dumps = lambda o: '{\"pass\": true}'\ndef square(n): return 0",
    "patched_open": "import builtins\nbuiltins.open = lambda *a, **k: None\ndef square(n): return n * n",
    "result_written_twice": "import json, os\ndef square(n):\n  os.write(1, b'49'); return 0",
    "two_results": "import json\njson.dumps = lambda o: '0 49'\ndef square(n): return 0",
    "result_and_comment": "import json\njson.dumps = lambda o: '49 // right'\ndef square(n): return 0",
    "result_is_a_link": "import os\nos.symlink('args.json', 'result.json'); os._exit(0)",
    "result_is_a_system_file": "import os\nos.symlink('/etc/passwd', 'result.json'); os._exit(0)",
    "result_is_a_pipe": "import os\nos.mkfifo('result.json'); os._exit(0)",
    "result_is_a_folder": "import os\nos.mkdir('result.json')\ndef square(n): return n * n",
    "result_is_huge": "import os\nopen('result.json', 'w').write('9' * 30_000_000); os._exit(0)",
    "result_is_deep": "import os\nopen('result.json', 'w').write('[' * 100_000); os._exit(0)",
    "result_has_many_digits": "import os\nopen('result.json', 'w').write('9' * 3_000_000); os._exit(0)",
    "result_is_no_text": "import os\nopen('result.json', 'wb').write(bytes(range(256))); os._exit(0)",
    "arguments_are_expected": "import json, os\ncall = json.load(open('args.json'))\n"
    "open('result.json', 'w').write(json.dumps(call.get('expected', call.get('outputs', 0)))); os._exit(0)",
    "changed_later": "import os, time\ndef square(n):\n  if os.fork() == 0:\n    time.sleep(0.05)\n"
    "    while True: open('result.json', 'w').write('49')\n  return 0",
    "frames": "import sys\ndef square(n):\n  f = sys._getframe()\n  while f.f_back: f = f.f_back\n"
    "  return f.f_globals.get('expected', f.f_locals.get('expected'))",
    "time_limit": "def square(n):\n  while True: pass",
    "recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef square(n): return square(n)",
    "memory": "def square(n): return 'x' * 10**10",
}
"""For the function `square`."""

NATIVE_CHEATS: Mapping[str, str] = {
    "larger_than_memory": "char large[1ul << 40]; int main() { return large[7]; }",
    "larger_than_memory_and_used": "char large[1ul << 30]; int main() { for (char &c : large) c = 1; }",
    "exits_before_main": "#include <unistd.h>\nstruct s { s() { _exit(0); } } x; int main() {}",
    "null_pointer": "int main() { return *(volatile int *)0; }",
    "aborts": "#include <cstdlib>\nint main() { abort(); }",
    "right_but_crashes": '#include <iostream>\nint main() { long n; std::cin >> n; std::cout << n * n << "\\nn = " << n << std::endl; abort(); }',
    "replaces_itself": '#include <unistd.h>\nint main() { execl("/bin/echo", "echo", "49", (char *)0); }',
    "no_main": "int f() { return 0; }",
    "linked_to_nothing": 'extern "C" int nowhere(); int main() { return nowhere(); }',
}
"""For `square`, in C++."""

JAVASCRIPT_CALL_CHEATS: Mapping[str, str] = {
    "to_json": "function square(n) { return { toJSON: () => ({}) } }",
    "nan": "function square(n) { return NaN }",
    "undefined": "function square(n) {}",
    "value_of": "function square(n) { return { valueOf: () => n * n } }",
    "polluted": "Object.prototype.toJSON = function () { return 'x' }; function square(n) { return 0 }",
    "patched_write": "require('fs').writeFileSync = () => {}; function square(n) { return n * n }",
    "exits": "process.exit(0)",
    "swallows_the_harness": "function square(n) { return n * n } /*",
    "ends_the_harness": "} process.exit(0); {",
}
