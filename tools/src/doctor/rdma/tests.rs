//! Hosts whose RDMA is not as it should be, and ranks whose ports do not fit together.

use std::collections::HashMap;

use super::super::system::made_up::Machine;
use super::*;

fn settings(pairs: &[(&str, &str)]) -> Settings {
    let rank = [
        ("RINGTREE_RANK", "0"),
        ("RINGTREE_RANKS", "3"),
        ("RINGTREE_RENDEZVOUS", "10.0.0.1:1"),
        ("RINGTREE_INSECURE", "1"),
    ];
    let all = rank.iter().chain(pairs);
    let all: HashMap<String, String> =
        all.map(|(name, value)| (name.to_string(), value.to_string())).collect();
    Settings::from_variables(&all).unwrap()
}

/// What a rank wants that has not been told anything about RDMA.
fn by_default() -> Wish {
    Wish::of(None, None)
}

/// What the doctor wants that is asked about RDMA.
fn asked() -> Wish {
    Wish::of(None, Some(Topic::Rdma))
}

fn named(devices: &str) -> Wish {
    Wish::of(Some(&settings(&[("RINGTREE_RDMA_DEVICES", devices)])), None)
}

/// A host with those devices in its kernel.
fn host(devices: &[&str], files: &[(&str, &str)]) -> Machine {
    let folders = ["/sys/class/infiniband", "/sys/class/infiniband_verbs"];
    let path = |(folder, device)| format!("{folder}/{device}/node_type");
    let all = folders.into_iter().flat_map(|folder| devices.iter().map(move |one| (folder, one)));
    let paths: Vec<String> = all.map(path).collect();
    let kernel = paths.iter().map(|path| (path.as_str(), "1: CA"));
    Machine::new(&kernel.chain(files.iter().copied()).collect::<Vec<_>>())
}

fn ethernet(device: &str) -> PortFinding {
    PortFinding {
        device: device.into(),
        port: 1,
        state: "active",
        remedy: None,
        is_ethernet: true,
        mtu_bytes: (4096, 4096),
        rate_gbit_per_s: 100.0,
        gids: vec![
            (0, "fe80::1".into(), true, "eth7".into()),
            (3, "10.2.0.1".into(), true, "eth7".into()),
        ],
        gid: Some(3),
        lid: 0,
    }
}

fn infiniband(device: &str) -> PortFinding {
    let gids = vec![(0, "fe80::2".into(), false, String::new())];
    PortFinding { is_ethernet: false, gids, gid: Some(0), lid: 7, ..ethernet(device) }
}

/// What there is to say of a host with those ports, of which those that are named are used.
fn judge(
    machine: &Machine,
    wish: Wish,
    seen: Vec<Seen>,
    used: Result<&[&str], RdmaError>,
) -> Vec<Finding> {
    rdma(machine, wish, seen, used).check(&machine.system)
}

fn rdma(machine: &Machine, wish: Wish, seen: Vec<Seen>, used: Result<&[&str], RdmaError>) -> Rdma {
    let used = used.map(|names| names.iter().map(|name| (name.to_string(), 1)).collect());
    Rdma { wish, in_kernel: machine.system.names(SYSFS), seen, used }
}

fn no_library() -> RdmaError {
    RdmaError::NoLibrary { reason: "libibverbs.so.1: not found".into() }
}

/// The only finding of a check that is no `ok`.
fn fault<'a>(findings: &'a [Finding], check: &str) -> &'a Finding {
    let mut faults = findings.iter().filter(|one| one.level > Level::Ok);
    let first = faults.next().unwrap_or_else(|| panic!("no fault in {findings:#?}"));
    assert_eq!((&*first.check, faults.next()), (check, None), "{findings:#?}");
    first
}

fn remedy(finding: &Finding) -> &str {
    finding.remedy.as_deref().unwrap_or_default()
}

#[test]
fn a_host_without_devices_is_as_it_should_be_unless_rdma_is_wanted() {
    let bare = host(&[], &[]);
    let no_device = || Err(RdmaError::NoDevice { hint: "" });
    for (seen, error) in [
        (vec![], RdmaError::NoDevice { hint: "" }),
        (vec![Seen::Unusable(no_library())], no_library()),
    ] {
        let findings = judge(&bare, by_default(), seen, Err(error));
        let [only] = &findings[..] else { panic!("{findings:#?}") };
        assert_eq!((only.level, only.seen.as_str()), (Level::Ok, "none on this host"));
    }
    for (wish, level) in [
        (asked(), Level::Failure),
        (Wish::of(Some(&settings(&[("RINGTREE_TRANSPORT", "rdma")])), None), Level::Failure),
        (Wish::of(Some(&settings(&[("RINGTREE_TRANSPORT", "rdma,tcp")])), None), Level::Warning),
        (named("mlx5_0"), Level::Warning),
    ] {
        let findings = judge(&bare, wish, vec![], no_device());
        let fault = fault(&findings, "rdma-devices");
        assert_eq!((fault.level, fault.seen.as_str()), (level, "there is none on this host"));
        assert!(remedy(fault).contains("rdma link add rxe0"), "{fault:?}");
    }
}

#[test]
fn a_library_that_is_missing_counts_where_there_are_devices() {
    let machine = host(&["mlx5_0"], &[]);
    for (wish, level) in [(by_default(), Level::Warning), (asked(), Level::Failure)] {
        let seen = vec![Seen::Unusable(no_library())];
        let findings = judge(&machine, wish, seen, Err(no_library()));
        let fault = fault(&findings, "rdma-library");
        assert_eq!(fault.level, level);
        assert!(fault.seen.contains("libibverbs.so.1: not found"), "{fault:?}");
        assert!(remedy(fault).starts_with("sudo apt-get install libibverbs1"), "{fault:?}");
    }
}

#[test]
fn devices_that_only_the_kernel_has_need_a_driver_of_the_library() {
    let machine = host(&["mlx5_0", "mlx5_1"], &[]);
    let no_device = RdmaError::NoDevice { hint: "" };
    let findings = judge(&machine, by_default(), vec![], Err(no_device));
    let none = fault(&findings, "rdma-devices");
    assert_eq!(none.seen, "the kernel has mlx5_0, mlx5_1, libibverbs finds none");
    assert!(remedy(none).contains("ibverbs-providers"), "{none:?}");
    let one = vec![Seen::Port(ethernet("mlx5_0"))];
    let findings = judge(&machine, asked(), one, Ok(&["mlx5_0"]));
    assert_eq!(fault(&findings, "rdma-devices").level, Level::Warning);
    let bare = Machine::new(&[("/sys/class/infiniband/mlx5_0/node_type", "1: CA")]);
    let findings = judge(&bare, asked(), vec![], Err(RdmaError::NoDevice { hint: "" }));
    assert_eq!(remedy(fault(&findings, "rdma-devices")), "sudo modprobe ib_uverbs");
}

#[test]
fn a_device_that_cannot_be_opened_is_told_from_one_that_is_not_handed_in() {
    let refused = || RdmaError::Open { device: "mlx5_0".into(), reason: "denied".into(), hint: "" };
    let judge = |files| {
        let seen = vec![Seen::Unusable(refused())];
        judge(&host(&["mlx5_0"], files), by_default(), seen, Err(refused()))
    };
    let findings = judge(&[("/dev/infiniband/uverbs0", "")]);
    assert!(remedy(fault(&findings, "rdma-devices")).starts_with("sudo chmod a+rw "));
    let findings = judge(&[]);
    let fault = fault(&findings, "rdma-devices");
    assert_eq!(
        (fault.level, fault.seen.as_str()),
        (Level::Warning, "mlx5_0 cannot be opened: denied")
    );
    assert!(remedy(fault).contains("docker run --device=/dev/infiniband"), "{fault:?}");
}

#[test]
fn ports_that_are_used_are_described() {
    let machine = host(&["mlx5_0", "mlx5_1", "mlx5_2"], &[]);
    let slow = PortFinding { rate_gbit_per_s: 25.0, ..ethernet("mlx5_2") };
    let seen = [infiniband("mlx5_0"), ethernet("mlx5_1"), slow].map(Seen::Port).into();
    let findings = judge(&machine, by_default(), seen, Ok(&["mlx5_0", "mlx5_1"]));
    assert!(findings.iter().all(|finding| finding.level == Level::Ok), "{findings:#?}");
    let all: Vec<&str> = findings.iter().map(|finding| finding.seen.as_str()).collect();
    let expected = [
        "libibverbs can be used",
        "mlx5_0, mlx5_1, mlx5_2",
        "mlx5_0:1 is active: InfiniBand, 100 Gbit/s, MTU 4096, LID 7, GID 0 fe80::2",
        "mlx5_1:1 is active: Ethernet (eth7), 100 Gbit/s, MTU 4096, GID 3 10.2.0.1",
        "mlx5_2:1 is active: Ethernet (eth7), 25 Gbit/s, MTU 4096, GID 3 10.2.0.1; not used beside \
         faster ones",
        "over mlx5_0:1, mlx5_1:1",
    ];
    assert_eq!(all, expected);
}

#[test]
fn a_port_that_is_down_is_switched_on_by_the_remedy() {
    const HINT: &str = "bring its network interface up (`ip link set INTERFACE up`)";
    let machine = host(&["mlx5_0", "mlx5_1"], &[]);
    let down = || PortFinding { state: "down", remedy: Some(HINT.into()), ..ethernet("mlx5_1") };
    let seen = || vec![Seen::Port(ethernet("mlx5_0")), Seen::Port(down())];
    let findings = judge(&machine, by_default(), seen(), Ok(&["mlx5_0"]));
    let port = fault(&findings, "rdma-port");
    assert_eq!(
        (port.level, port.seen.as_str()),
        (Level::Warning, "mlx5_1:1 is down: Ethernet (eth7)")
    );
    assert_eq!(remedy(port), "bring its network interface up (`ip link set eth7 up`)");
    // Who names others does not want it, and who is asked about RDMA and has no other has none.
    let findings = judge(&machine, named("mlx5_0:1"), seen(), Ok(&["mlx5_0"]));
    assert!(findings.iter().all(|finding| finding.level == Level::Ok), "{findings:#?}");
    let error = RdmaError::NoneUsable { reasons: vec![] };
    let findings = judge(&host(&["mlx5_1"], &[]), asked(), vec![Seen::Port(down())], Err(error));
    assert_eq!(fault(&findings, "rdma-port").level, Level::Failure);
}

#[test]
fn a_port_without_an_address_that_routes_gets_one_by_the_remedy() {
    let machine = host(&["rxe0"], &[("/sys/class/infiniband/rxe0/parent", "eth1")]);
    let error = || RdmaError::NoGid { device: "rxe0".into(), port: 1 };
    let judge = |gids, settings: &[(&str, &str)], used| {
        let port = PortFinding { gid: None, gids, ..ethernet("rxe0") };
        let wish = Wish::of(Some(&self::settings(settings)), None);
        judge(&machine, wish, vec![Seen::Port(port)], used)
    };
    let link_local = || vec![(0, "fe80::1".into(), true, "eth7".into())];
    let findings = judge(link_local(), &[], Err(error()));
    let fault = fault(&findings, "rdma-gid");
    assert_eq!((fault.level, remedy(fault)), (Level::Warning, "sudo ip addr add ADDRESS dev eth7"));
    let findings = judge(vec![], &[], Err(error()));
    assert_eq!(remedy(self::fault(&findings, "rdma-gid")), "sudo ip addr add ADDRESS dev eth1");
    let chosen = [("RINGTREE_RDMA_GID_INDEX", "0")];
    let findings = judge(link_local(), &chosen, Ok(&["rxe0"]));
    assert!(findings.iter().all(|finding| finding.level == Level::Ok), "{findings:#?}");
}

#[test]
fn a_small_interface_makes_small_packets() {
    let frames = |mtu| host(&["mlx5_0"], &[("/sys/class/net/eth7/mtu", mtu)]);
    let judge = |machine: &Machine, mtu_bytes| {
        let port = PortFinding { mtu_bytes, ..ethernet("mlx5_0") };
        judge(machine, by_default(), vec![Seen::Port(port)], Ok(&["mlx5_0"]))
    };
    let findings = judge(&frames("1500"), (1024, 4096));
    let fault = fault(&findings, "rdma-mtu");
    assert_eq!(fault.level, Level::Note);
    let seen = "mlx5_0:1 takes packets of 1024 bytes instead of 4096, since eth7 has MTU 1500";
    assert_eq!(fault.seen, seen);
    assert!(remedy(fault).starts_with("sudo ip link set eth7 mtu 9000 "), "{fault:?}");
    for (mtu, mtu_bytes) in [("4200", (1024, 4096)), ("1500", (1024, 1024))] {
        let findings = judge(&frames(mtu), mtu_bytes);
        assert!(findings.iter().all(|finding| finding.level == Level::Ok), "{findings:#?}");
    }
}

#[test]
fn settings_that_leave_no_rdma_are_a_fault_only_where_it_is_asked_for() {
    let machine = host(&["mlx5_0"], &[]);
    for (name, value, says) in [
        ("RINGTREE_TRANSPORT", "shm", "off by RINGTREE_TRANSPORT=shm"),
        ("RINGTREE_RDMA_DEVICES", "none", "off by RINGTREE_RDMA_DEVICES=none"),
        ("RINGTREE_ENCRYPT", "1", "off by RINGTREE_ENCRYPT=1: what goes"),
    ] {
        let settings = settings(&[(name, value)]);
        for (topic, level) in [(None, Level::Ok), (Some(Topic::Rdma), Level::Failure)] {
            let findings = judge(&machine, Wish::of(Some(&settings), topic), Vec::new(), Ok(&[]));
            let [only] = &findings[..] else { panic!("{findings:#?}") };
            assert_eq!(only.level, level);
            assert!(only.seen.starts_with(says), "{only:?}");
            let has_remedy = remedy(only).starts_with(&format!("unset {name}"));
            assert_eq!(has_remedy, topic.is_some());
        }
    }
}

#[test]
fn settings_that_name_what_is_not_there_are_pointed_out() {
    let machine = host(&["mlx5_0", "mlx5_1"], &[]);
    let ports = || ["mlx5_0", "mlx5_1"].map(|device| Seen::Port(ethernet(device))).into();
    let (wanted, present) = ("mlx5_9".into(), "mlx5_0, mlx5_1".into());
    let error = RdmaError::NotPresent { wanted, present };
    let findings = judge(&machine, named("mlx5_9"), ports(), Err(error));
    let fault = fault(&findings, "rdma");
    assert_eq!(
        (fault.level, remedy(fault)),
        (Level::Warning, "export RINGTREE_RDMA_DEVICES=mlx5_0,mlx5_1")
    );
    let wish = Wish::of(Some(&settings(&[("RINGTREE_RDMA_GID_INDEX", "9")])), Some(Topic::Rdma));
    let error = RdmaError::NoSuchGid { device: "mlx5_0".into(), port: 1, index: 9 };
    let port = vec![Seen::Port(ethernet("mlx5_0"))];
    let findings = judge(&host(&["mlx5_0"], &[]), wish, port, Err(error));
    let fault = self::fault(&findings, "rdma-gid");
    let seen = "mlx5_0:1 has no GID 9 (RINGTREE_RDMA_GID_INDEX), but 0 fe80::1, 3 10.2.0.1";
    assert_eq!(fault.seen, seen);
    assert_eq!((fault.level, remedy(fault)), (Level::Failure, "unset RINGTREE_RDMA_GID_INDEX"));
}

#[test]
fn each_peer_and_each_device_takes_locked_memory() {
    let machine = host(&["mlx5_0", "mlx5_1"], &[]);
    let locking = |wish, used| rdma(&machine, wish, vec![], used).locking(3);
    let two = locking(by_default(), Ok(&["mlx5_0", "mlx5_1", "mlx5_1"])).unwrap();
    assert_eq!((two.links_bytes, two.too_little), (6 * RdmaLink::LOCKED_BYTES, Level::Warning));
    assert_eq!(locking(asked(), Ok(&["mlx5_0"])).unwrap().too_little, Level::Failure);
    assert!(locking(asked(), Ok(&[])).is_none());
    assert!(locking(asked(), Err(no_library())).is_none());
}

#[test]
fn other_ranks_are_told_of_the_ports_that_are_used() {
    let machine = host(&["mlx5_0", "mlx5_1", "mlx5_2"], &[]);
    let seen = [infiniband("mlx5_0"), ethernet("mlx5_1"), ethernet("mlx5_2")].map(Seen::Port);
    let rdma = rdma(&machine, by_default(), seen.into(), Ok(&["mlx5_0", "mlx5_2"]));
    let port = |name: &str, interface: Option<&str>| UsedPort {
        name: name.into(),
        interface: interface.map(str::to_owned),
        mtu_bytes: 4096,
    };
    let told = rdma.used_ports(&machine.system);
    assert_eq!(told, [port("mlx5_0:1", None), port("mlx5_2:1", Some("eth7"))]);
}
