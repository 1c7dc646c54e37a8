#!/bin/sh
# Where an image is built without an engine: for each stage an overlay of / that is thrown away. usage:
#   imagebed.sh BASE STAGE...     mount BASE/STAGE/root, say so, stay until stdin ends
# tests/imagebed.py calls it in a mount namespace of its own.
set -eu
base=$1
shift

mount -t tmpfs -o mode=755 tmpfs "$base"
for stage; do
    mkdir "$base/$stage" "$base/$stage/upper" "$base/$stage/work" "$base/$stage/root"
    root=$base/$stage/root
    mount -t overlay overlay -o "lowerdir=/,upperdir=$base/$stage/upper,workdir=$base/$stage/work" "$root"
    mount -t proc proc "$root/proc"
    mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
    mount -t tmpfs -o mode=755 tmpfs "$root/dev"
    for device in null zero full random urandom tty; do
        : >"$root/dev/$device"
        mount --bind "/dev/$device" "$root/dev/$device"
    done
    mkdir "$root/dev/shm"
    mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
    ln -s /proc/self/fd "$root/dev/fd"
done
echo ready
exec cat
