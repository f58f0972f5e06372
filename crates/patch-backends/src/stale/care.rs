//! What brings new code into memory, and what is not restarted just so.

use patch_types::stale::{Advice, Care, Owner};

/// Services by the beginning of their names, up to a `.`, `@` or `-` of the unit's name or its end.
const SERVICES: [(Care, &str); 8] = [
    (
        Care::Database,
        "postgresql postgres pgbouncer patroni mysql mysqld mariadb mongod mongodb redis valkey \
         keydb memcached cassandra scylla couchdb influxdb influxd clickhouse elasticsearch \
         opensearch neo4j slapd dirsrv etcd oracle mssql cockroach cockroachdb vault firebird \
         firebird3.0 solr couchbase couchbase-server rethinkdb arangodb arangodb3 consul",
    ),
    (Care::MessageBroker, "rabbitmq kafka activemq artemis mosquitto nats zookeeper pulsar ejabberd"),
    (
        Care::Virtualization,
        "libvirtd libvirt virtqemud virtlxcd virtxend virtnetworkd virtstoraged virtlogd \
         virtlockd qemu docker containerd crio cri podman kubelet k3s rke2 lxc lxd incus xen \
         xenstored xenconsoled pve pvedaemon systemd-nspawn vboxdrv",
    ),
    (
        Care::Storage,
        "nfs nfsd rpc glusterd glusterfsd ceph iscsid open-iscsi multipathd lvm2 zfs drbd \
         mdmonitor mdadm smb smbd nmb nmbd samba tgt targetcli minio",
    ),
    (Care::DisplayManager, "gdm gdm3 lightdm sddm kdm nodm xdm wdm lxdm slim greetd ly display-manager xrdp"),
    (Care::Sessions, "systemd-logind elogind getty serial-getty console-getty user"),
    (
        Care::Network,
        "NetworkManager network-manager networking network systemd-networkd wpa_supplicant ifup \
         openvpn wg-quick strongswan ipsec keepalived corosync pacemaker openvswitch ovs \
         ovs-vswitchd ovsdb-server frr bird firewalld connman iwd dhcpcd",
    ),
    (Care::SystemBus, "dbus dbus-broker"),
];

/// Why something must not be restarted just so; none if nothing is known against it.
#[must_use]
pub fn care(owner: &Owner) -> Option<Care> {
    match owner {
        Owner::Unit { name } => SERVICES
            .iter()
            .find(|(_, names)| names.split_whitespace().any(|known| is_called(name, known)))
            .map(|(care, _)| *care),
        Owner::Session { .. } | Owner::UserManager { .. } => Some(Care::Sessions),
        Owner::Container { .. } => Some(Care::Virtualization),
        Owner::Init | Owner::Process { .. } => None,
    }
}

/// Whether a unit is this system's own root side: a process for each operation, which ends with it. Restarting one would
/// end an operation in the middle.
pub(super) fn ends_by_itself(owner: &Owner) -> bool {
    matches!(owner, Owner::Unit { name } if is_called(name, "linux-patch-executor"))
}

/// Whether a unit is the service of a name, or one of its kin: `redis-server.service`, `postgresql@15-main.service`.
fn is_called(unit: &str, service: &str) -> bool {
    unit.strip_prefix(service).is_some_and(|rest| rest.starts_with(['.', '@', '-']))
}

/// What brings the new code into the memory of an owner.
pub(super) fn advice(owner: &Owner, care: Option<Care>) -> Advice {
    match owner {
        Owner::Init => Advice::Reexec,
        Owner::Unit { .. } if care == Some(Care::SystemBus) => Advice::Reboot,
        Owner::Unit { name } if name.ends_with(".service") => Advice::Restart,
        Owner::Session { .. } | Owner::UserManager { .. } => Advice::LogOut,
        Owner::Container { runtime, .. } if matches!(&**runtime, "docker" | "podman" | "kubernetes") => {
            Advice::Recreate
        }
        Owner::Unit { .. } | Owner::Container { .. } | Owner::Process { .. } => Advice::StartAnew,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_keeps_data_or_people_is_not_restarted_just_so() {
        let of = |name: &str| care(&Owner::Unit { name: name.to_owned() });
        for (name, expected) in [
            ("postgresql@15-main.service", Some(Care::Database)),
            ("postgresql.service", Some(Care::Database)),
            ("mariadb.service", Some(Care::Database)),
            ("redis-server.service", Some(Care::Database)),
            ("rabbitmq-server.service", Some(Care::MessageBroker)),
            ("libvirtd.service", Some(Care::Virtualization)),
            ("docker.service", Some(Care::Virtualization)),
            ("couchbase-server.service", Some(Care::Database)),
            ("rethinkdb@main.service", Some(Care::Database)),
            ("arangodb3.service", Some(Care::Database)),
            ("consul.service", Some(Care::Database)),
            ("nfs-server.service", Some(Care::Storage)),
            ("smb.service", Some(Care::Storage)),
            ("smbd.service", Some(Care::Storage)),
            ("nmb.service", Some(Care::Storage)),
            ("nmbd.service", Some(Care::Storage)),
            ("gdm3.service", Some(Care::DisplayManager)),
            ("getty@tty1.service", Some(Care::Sessions)),
            ("user@1000.service", Some(Care::Sessions)),
            ("NetworkManager.service", Some(Care::Network)),
            ("dbus.service", Some(Care::SystemBus)),
            ("ssh.service", None),
            ("cron.service", None),
            ("nginx.service", None),
            ("nginx-redis.service", None),
            ("lynis.service", None),
            ("useradd.service", None),
        ] {
            assert_eq!(of(name), expected, "{name}");
        }
        assert_eq!(care(&Owner::Session { uid: 0, session: "1".into() }), Some(Care::Sessions));
        assert_eq!(care(&Owner::Process { uid: 0 }), None);
    }

    #[test]
    fn what_carries_out_a_change_is_never_restarted() {
        for (name, expected) in [
            ("linux-patch-executor@4-812-0.service", true),
            ("linux-patch-executor-recover.service", true),
            ("linux-patch-executors.service", false),
            ("linux-patch-api.service", false),
        ] {
            assert_eq!(ends_by_itself(&Owner::Unit { name: name.to_owned() }), expected, "{name}");
        }
        let others = Owner::UserManager { uid: 7, unit: Some("linux-patch-executor@1.service".to_owned()) };
        assert!(!ends_by_itself(&others));
    }

    #[test]
    fn advice_is_what_can_be_done() {
        let of = |owner: Owner| advice(&owner, care(&owner));
        let unit = |name: &str| Owner::Unit { name: name.to_owned() };
        let container =
            |runtime: &str| Owner::Container { runtime: runtime.to_owned(), id: String::new(), uid: None };
        for (owner, expected) in [
            (Owner::Init, Advice::Reexec),
            (unit("cron.service"), Advice::Restart),
            (unit("mariadb.service"), Advice::Restart),
            (unit("dbus.service"), Advice::Reboot),
            (unit("run-r1.scope"), Advice::StartAnew),
            (container("docker"), Advice::Recreate),
            (container("lxc"), Advice::StartAnew),
            (Owner::UserManager { uid: 1, unit: None }, Advice::LogOut),
            (Owner::Process { uid: 1 }, Advice::StartAnew),
        ] {
            assert_eq!(of(owner.clone()), expected, "{owner}");
        }
    }
}
