#!/bin/sh
# Makes a machine of its own out of this one, and runs what a Kubernetes node runs. Called twice: outside, where it takes its place in the
# cgroups and makes the namespaces; and inside, as process 1 of the node.
#
# EZ_NODE name · EZ_DIR its folder · EZ_NETNS its network namespace · EZ_SHARED a folder to see at the same path inside
# EZ_CGROUP its group · EZ_ADDRESS its address · EZ_KUBELET, EZ_PROXY words that start the two: `kube kubelet`, `kube kube-proxy`
set -eu
if [ "${1:-}" != inside ]; then
    if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
        echo "+cpu +cpuset +memory +pids +io" >/sys/fs/cgroup/cgroup.subtree_control 2>/dev/null || true
        mkdir -p "/sys/fs/cgroup/$EZ_CGROUP"
        echo $$ >"/sys/fs/cgroup/$EZ_CGROUP/cgroup.procs"
    else
        for controller in cpu cpuacct cpuset memory devices freezer blkio pids systemd; do
            group=/sys/fs/cgroup/$controller/$EZ_CGROUP
            mkdir -p "$group"
            # What an earlier boot left costs the kubelet 3 s for each pod.
            find "$group" -mindepth 1 -depth -type d -exec rmdir {} + 2>/dev/null || true
            if [ $controller = cpuset ]; then
                cat /sys/fs/cgroup/cpuset/cpuset.cpus >"$group/cpuset.cpus"
                cat /sys/fs/cgroup/cpuset/cpuset.mems >"$group/cpuset.mems"
            fi
            echo $$ >"$group/cgroup.procs"
        done
    fi
    exec nsenter --net="/run/netns/$EZ_NETNS" unshare --mount --uts --ipc --pid --cgroup --fork --kill-child=KILL --propagation private -- /bin/sh "$0" inside
fi

hostname "$EZ_NODE"

# A writable root: what is written lands in memory, except where a disk would keep it.
root=$EZ_DIR/root
over=$EZ_DIR/over
mkdir -p "$root" "$over" "$EZ_DIR/containerd" "$EZ_DIR/kubelet"
mount -t tmpfs overlay "$over"
mkdir "$over/upper" "$over/work"
mount -t overlay root -o "lowerdir=/,upperdir=$over/upper,workdir=$over/work" "$root"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t tmpfs run "$root/run"
mount -t tmpfs tmp "$root/tmp"
chmod 1777 "$root/tmp"
mkdir -p "$root/run/lock" "$root$EZ_SHARED" "$root/.old" "$root/var/lib/containerd" "$root/var/lib/kubelet"
mount --bind "$EZ_SHARED" "$root$EZ_SHARED"
mount --bind "$EZ_DIR/containerd" "$root/var/lib/containerd"
mount --bind "$EZ_DIR/kubelet" "$root/var/lib/kubelet"
for kept in var/log var/lib/easynet; do
    mkdir -p "$EZ_DIR/kept/$kept" "$root/$kept"
    mount --bind "$EZ_DIR/kept/$kept" "$root/$kept"
done
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    mount -t cgroup2 cgroup "$root/sys/fs/cgroup"
    # A group with processes of its own can not hand controllers down.
    mkdir -p "$root/sys/fs/cgroup/init"
    echo $$ >"$root/sys/fs/cgroup/init/cgroup.procs"
    echo "+cpu +cpuset +memory +pids +io" >"$root/sys/fs/cgroup/cgroup.subtree_control"
else
    mount -t tmpfs cgroup "$root/sys/fs/cgroup"
    for controller in cpu cpuacct cpuset memory devices freezer blkio pids; do
        mkdir "$root/sys/fs/cgroup/$controller"
        mount -t cgroup -o $controller cgroup "$root/sys/fs/cgroup/$controller"
    done
    mkdir "$root/sys/fs/cgroup/systemd"
    mount -t cgroup -o none,name=systemd cgroup "$root/sys/fs/cgroup/systemd"
fi
# The kubelet insists on settings that all namespaces share: it sees files instead, and the machine's stay as they are.
for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
    file=$EZ_DIR/sysctl-$(echo "${setting%=*}" | tr / -)
    echo "${setting#*=}" >"$file"
    mount --bind "$file" "$root/proc/sys/${setting%=*}"
done
cd "$root"
pivot_root . .old
exec </dev/null
umount -l /.old
mount --make-rshared /

mkdir -p /etc/cni/net.d /etc/containerd
rm -f /etc/cni/net.d/*
cp "$EZ_DIR/etc/hosts" /etc/hosts
cp "$EZ_DIR/etc/10-pods.conflist" /etc/cni/net.d/
sysctl -qw net.ipv4.ip_forward=1

set +e
again() {
    while :; do
        "$@"
        sleep 0.3
    done
}
again containerd -c "$EZ_DIR/etc/containerd.toml" >>"$EZ_DIR/log/containerd.log" 2>&1 &
again $EZ_KUBELET --config="$EZ_DIR/etc/kubelet.json" --kubeconfig="$EZ_DIR/etc/kubelet.conf" --hostname-override="$EZ_NODE" --node-ip="$EZ_ADDRESS" \
    --root-dir=/var/lib/kubelet --cert-dir=/run/kubelet-pki --v=1 >>"$EZ_DIR/log/kubelet.log" 2>&1 &
again $EZ_PROXY --config="$EZ_DIR/etc/proxy.json" --v=1 >>"$EZ_DIR/log/proxy.log" 2>&1 &
# Process 1 buries the dead of the whole node.
while :; do
    sleep 3600 &
    wait
done
