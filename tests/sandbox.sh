#!/bin/sh
# A real systemd (PID 1, logind, journald, user managers) on an overlay of / that is thrown away. usage:
#   sandbox.sh hold BASE            mount the scratch file system, say so, stay until stdin ends
#   sandbox.sh boot BASE FOLDER...  boot in the namespaces prepared for it; FOLDERs are bound read-only at their places
# tests/sandbox.py calls both, the second within the mount namespace of the first and in new namespaces of its own.
set -eu
verb=$1 base=$2
shift 2

case $verb in
hold)
    mount -t tmpfs -o mode=755 tmpfs "$base"
    mkdir "$base/upper" "$base/work" "$base/root"
    echo ready
    exec cat
    ;;
boot)
    rm -rf "$base/work"
    mkdir "$base/work"
    mount -t overlay overlay -o "lowerdir=/,upperdir=$base/upper,workdir=$base/work" "$base/root"
    cd "$base/root"
    mount -t proc proc proc
    mount -t sysfs sysfs sys
    mount -t cgroup2 cgroup2 sys/fs/cgroup
    mount -t tmpfs -o mode=755 tmpfs run
    mount -t tmpfs -o mode=1777 tmpfs tmp
    mount -t tmpfs -o mode=755 tmpfs dev
    for device in null zero full random urandom tty; do
        : >dev/$device
        mount --bind /dev/$device dev/$device
    done
    mkdir dev/pts dev/shm
    mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
    ln -s pts/ptmx dev/ptmx
    mount -t tmpfs -o mode=1777 tmpfs dev/shm
    for number in 0 1 2; do ln -s /proc/self/fd/$number dev/fd$number; done
    ln -s /proc/self/fd dev/fd
    mv dev/fd0 dev/stdin
    mv dev/fd1 dev/stdout
    mv dev/fd2 dev/stderr

    # What the tests need from the machine, wherever it lies and whoever may read it there.
    for folder; do
        mkdir -p "./$folder"
        mount --bind "$folder" "./$folder"
        mount -o remount,bind,ro "./$folder"
        while folder=${folder%/*} && [ -n "$folder" ]; do chmod a+x "./$folder"; done
    done

    rm -f etc/fstab etc/systemd/system/default.target # nothing of the machine's own boot
    cat >etc/systemd/system/sandbox.target <<'UNIT'
[Unit]
Description=throw-away test target
Requires=basic.target dbus.socket systemd-logind.service systemd-user-sessions.service systemd-journald.service
After=basic.target dbus.socket systemd-logind.service systemd-user-sessions.service
AllowIsolate=yes
UNIT
    for unit in systemd-udevd.service systemd-udev-trigger.service systemd-udevd-kernel.socket \
        systemd-udevd-control.socket systemd-networkd.service systemd-resolved.service systemd-timesyncd.service \
        timers.target systemd-modules-load.service systemd-sysctl.service systemd-binfmt.service \
        systemd-random-seed.service console-getty.service getty.target e2scrub_reap.service tmp.mount; do
        ln -sfn /dev/null "etc/systemd/system/$unit"
    done
    : >etc/machine-id
    mkdir old
    pivot_root . old
    umount -l /old
    rmdir /old
    exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=sandbox \
        /lib/systemd/systemd --unit=sandbox.target --log-target=journal-or-kmsg --show-status=false
    ;;
esac
