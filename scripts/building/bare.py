"""Run the one file in a Debian root that has Python, and nothing of ours; then without fusermount3, in a namespace.

Then install the package, which needs nothing more, mount by its helper, and remove it.
Needs root, debootstrap, /dev/fuse, and namespaces for the users of this machine.
"""

import shutil
import subprocess
from pathlib import Path

SUITES = ("bookworm", "trixie")  # their Python is 3.11, the oldest that xnatfs runs on, and 3.13
USER = "12345"
# The most that `--version` may take once the packages are unpacked, in seconds of the processor: a machine may be busy.
VERSION_SECONDS = 0.2

# The root becomes the root of a mount namespace, since no user of a chroot can have a namespace.
ENTER = """
set -eu
mount --make-rprivate /
mount --bind "$1" "$1"
cd "$1"
mkdir -p old
pivot_root . old
exec chroot . /bin/sh -c 'mount -t proc proc /proc && umount -l /old && exec /bin/sh /tmp/check.sh'
"""

CHECK = f"""
set -eu
mount -t tmpfs tmpfs /run
[ -c /dev/fuse ] || mknod /dev/fuse c 10 229
chmod 666 /dev/fuse
ln -sf /proc/self/mounts /etc/mtab
grep -q :{USER}: /etc/passwd || echo "visitor:x:{USER}:{USER}::/tmp/home:/bin/sh" >>/etc/passwd
rm -rf /tmp/home
mkdir -p /tmp/home
chown {USER} /tmp/home
export HOME=/tmp/home PATH=/usr/sbin:/usr/bin:/sbin:/bin XNATFS=/tmp/xnatfs.pyz
user() {{ setpriv --reuid {USER} --regid {USER} --clear-groups "$@"; }}
if python3 -c 'import httpx' 2>/dev/null; then echo 'the root is not bare'; exit 1; fi

user $XNATFS --version
user python3 - <<'END'
import os, subprocess
subprocess.run([os.environ["XNATFS"], "--version"], check=True, stdout=subprocess.DEVNULL)
used = os.times().children_user + os.times().children_system
print(f"--version takes {{used:.2f}} s of the processor")
assert used < {VERSION_SECONDS}
END


user mkdir /tmp/home/mnt
user $XNATFS demo /tmp/home/mnt
user sh -c 'cd /tmp/home/mnt/projects/BRAINS && find . -name "*.dcm" -exec md5sum {{}} + | sort -k 2' >/tmp/mounted
user $XNATFS umount /tmp/home/mnt
echo "$(wc -l </tmp/mounted) files are read from the demo"

mount --bind /dev/null /usr/bin/fusermount3
rm -f /tmp/url
user python3 /tmp/home/.cache/xnatfs-program/*/run_bundled.py xnatfs.demo >/tmp/url &
server=$!
while ! grep -q http /tmp/url 2>/dev/null; do sleep 0.1; done
export XNAT_USER=demo-owner XNAT_PASS=owner-of-the-demo
user $XNATFS exec "$(head -n 1 /tmp/url)" -- sh -c \\
    'cd "$XNATFS_MOUNT/projects/BRAINS" && find . -name "*.dcm" -exec md5sum {{}} + | sort -k 2' >/tmp/executed
cmp /tmp/mounted /tmp/executed
[ -s /tmp/mounted ]
echo 'without fusermount3, exec reads the same'

dpkg -i /tmp/xnatfs.deb >/tmp/installed 2>&1 || {{ cat /tmp/installed; exit 1; }}
user xnatctl --version
umount /usr/bin/fusermount3
export HOME=/root
(umask 077 && printf 'username=%s\\npassword=%s\\n' "$XNAT_USER" "$XNAT_PASS" >/tmp/credentials)
mount -t xnatfs -o credentials=/tmp/credentials "$(head -n 1 /tmp/url)" /mnt
ls /mnt/projects
umount /mnt
kill $server
dpkg -r xnatfs >/tmp/installed
[ ! -e /usr/bin/xnatfs ]
"""


def check(made: Path, package: Path, work: Path) -> None:
    """Run the file as a user of each bare root, and install the package. Raises SystemExit if something fails."""
    for suite in SUITES:
        root = work / f"bare-{suite}"
        if not (root / "made").exists():
            shutil.rmtree(root, ignore_errors=True)
            subprocess.run(["debootstrap", "--variant=minbase", "--include=python3,fuse3", suite, root], check=True)
            (root / "made").touch()
        _run(made, package, root)


def _run(made: Path, package: Path, root: Path) -> None:
    print(f"{root.name}:", flush=True)
    shutil.copy2(made, root / "tmp/xnatfs.pyz")
    shutil.copy2(package, root / "tmp/xnatfs.deb")
    (root / "tmp/check.sh").write_text(CHECK)
    done = subprocess.run(["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", ENTER, "sh", root])
    if done.returncode:
        raise SystemExit(f"scripts/build: {made.name} does not run in {root}")
