#!/bin/bash
# Boot a systemd of its own, with a system bus and no unit of this machine, in namespaces; it is PID 1 there.
# Usage: unshare --pid --fork --mount --mount-proc --uts --ipc --cgroup systemd.sh DIRECTORY CGROUP-MOUNT
set -e
directory=$1
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system /run/dbus "$directory/units"
umount -R /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
: >"$directory/console"
mount --bind "$directory/console" /dev/console
cat >"$directory/units/test.target" <<END
[Unit]
DefaultDependencies=no
Wants=dbus.socket
END
for name in sysinit.target basic.target shutdown.target system.slice; do
    printf '[Unit]\nDefaultDependencies=no\n' >"$directory/units/$name"
done
cat >"$directory/units/dbus.socket" <<END
[Unit]
DefaultDependencies=no
[Socket]
ListenStream=/run/dbus/system_bus_socket
END
cat >"$directory/units/dbus.service" <<END
[Unit]
DefaultDependencies=no
Requires=dbus.socket
[Service]
Type=notify
ExecStart=/usr/bin/dbus-daemon --system --address=systemd: --nofork --nopidfile --systemd-activation
END
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=other SYSTEMD_UNIT_PATH="$directory/units" \
    /lib/systemd/systemd --unit=test.target --log-target=console --show-status=0
