#!/bin/sh
# Runs a command in a virtual machine that is made for it: Debian's kernel, control groups v2, and the files of this
# machine, which it can read and not change: what it writes is in its memory, and gone with it.
#
#     tests/in_a_machine.sh .venv/bin/python -m pytest tests/test_cgroup.py
#
# The command is root there, and alone in a control group, as a service with `Delegate=yes` is. Needs the Debian packages
# qemu-system-x86, busybox-static, cpio and kmod. The kernel (70 MB) is fetched the first time, into the user's cache, and
# not installed. The processor is emulated: everything takes ten times as long.
set -eu
kernel=${XDG_CACHE_HOME:-$HOME/.cache}/ade-machine
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT

if [ ! -e "$kernel/boot" ]; then
    mkdir -p "$kernel"
    package=$(apt-cache depends linux-image-amd64 | sed -n 's/ *Depends: //p')
    (cd "$made" && apt-get download "$package" && dpkg-deb -x "$package"_*.deb "$kernel" && rm "$package"_*.deb)
fi
version=$(ls "$kernel/lib/modules")
PATH=$PATH:/sbin
[ -e "$kernel/lib/modules/$version/modules.dep" ] || depmod -b "$kernel" "$version"

mkdir -p "$made/bin" "$made/modules"
cp /bin/busybox "$made/bin/"
for module in virtio_pci 9pnet_virtio 9p overlay; do
    modprobe -d "$kernel" -S "$version" --show-depends "$module"
done | awk '!seen[$2]++ {print $2}' | while read -r file; do
    cp "$file" "$made/modules/"
    basename "$file" >>"$made/modules/order"
done

cat >"$made/init" <<'INIT'
#!/bin/busybox sh
export PATH=/bin
busybox mkdir /lower /memory /all
for name in $(busybox cat /modules/order); do busybox insmod "/modules/$name"; done
busybox mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=1048576,cache=loose files /lower
busybox mount -t tmpfs memory /memory
busybox mkdir /memory/upper /memory/work
busybox mount -t overlay -o lowerdir=/lower,upperdir=/memory/upper,workdir=/memory/work overlay /all
busybox mount -t proc proc /all/proc
busybox mount -t sysfs sys /all/sys
busybox mount -t devtmpfs dev /all/dev
busybox mkdir -p /all/dev/shm
busybox mount -t tmpfs shm /all/dev/shm
busybox mount -t tmpfs run /all/run
busybox mount -t cgroup2 cgroup2 /all/sys/fs/cgroup
busybox ip link set lo up
busybox cp /command /all/run/command
exec busybox switch_root /all /bin/sh /run/command
INIT
chmod +x "$made/init"

quoted=$(for word in "$@"; do printf " '%s'" "$(printf %s "$word" | sed "s/'/'\\\\''/g")"; done)
cat >"$made/command" <<COMMAND
cd '$PWD'
export PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin HOME=/tmp LANG=C.UTF-8
group=/sys/fs/cgroup/ade.service
echo +memory +pids >/sys/fs/cgroup/cgroup.subtree_control
mkdir \$group
( sh -c 'echo \$PPID' >\$group/cgroup.procs && exec $quoted ) </dev/null 2>&1
echo "ended with \$?"
echo o >/proc/sysrq-trigger
while :; do :; done
COMMAND
(cd "$made" && find bin command init modules | cpio --quiet -o -H newc) | gzip -1 >"$made/initramfs"

qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m 3072 \
    -kernel "$kernel/boot/vmlinuz-$version" -initrd "$made/initramfs" -append "console=ttyS0 quiet panic=-1" \
    -fsdev local,id=files,path=/,security_model=none,readonly=on,multidevs=remap \
    -device virtio-9p-pci,fsdev=files,mount_tag=files \
    -nic none -display none -no-reboot -serial stdio -monitor none </dev/null | tee "$made/told"
grep -aq "^ended with 0" "$made/told"
