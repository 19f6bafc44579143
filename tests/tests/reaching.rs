//! How ranks reach each other: through a file, over IPv6, within a range of ports, and behind a
//! router that translates addresses.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use ringtree_tests::namespaces::{Host, ROUTER, Translated, TwoHosts};
use ringtree_tests::program::{Ended, Program};

/// Elements of each all-reduce.
const COUNT: &str = "100000";

/// Starts one rank, with its settings.
fn start(host: &Host, rank: usize, ranks: usize, settings: &[(&str, &str)]) -> Program {
    let mut command = host.command(env!("CARGO_BIN_EXE_ringtree-netns-rank"));
    command
        .args([COUNT, "3"])
        .env("RINGTREE_RANK", rank.to_string())
        .env("RINGTREE_RANKS", ranks.to_string())
        .env("RINGTREE_SECRET", "between hosts")
        .envs(settings.iter().copied());
    Program::start(command)
}

fn assert_verified(rank: &Ended) {
    rank.line("verified");
    assert!(rank.status.success(), "{rank:#?}");
}

/// The message of a rank that failed.
fn error_of(rank: &Ended) -> &str {
    assert_eq!(rank.status.code(), Some(1), "{rank:#?}");
    rank.line("error").split_once(' ').expect("time and message").1
}

/// A folder that all hosts share, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("ringtree-{name}-{}", std::process::id()));
        fs::create_dir(&path).expect("a folder");
        Folder(path)
    }

    fn file(&self) -> PathBuf {
        self.0.join("meet")
    }

    /// The setting that has ranks meet through the file.
    fn rendezvous(&self) -> String {
        format!("file:{}", self.file().display())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn ranks_of_two_hosts_meet_through_a_file() {
    let Some(bed) = TwoHosts::new(1) else { return };
    let folder = Folder::new("file");
    let rendezvous = folder.rendezvous();
    let settings = [("RINGTREE_RENDEZVOUS", rendezvous.as_str())];
    // The ranks of the other host come first.
    let ranks = [3, 2, 1, 0].map(|rank| start(&bed.hosts[rank / 2], rank, 4, &settings));
    ranks.map(Program::await_end).iter().for_each(assert_verified);
    assert!(!folder.file().exists(), "the file is removed in the end");
    for host in &bed.hosts {
        assert!(host.received_bytes(0) > 400_000, "they are two hosts: {host:?}");
    }
}

#[test]
fn a_file_that_a_killed_run_left_behind_does_not_stop_the_next() {
    let Some(bed) = TwoHosts::new(1) else { return };
    let folder = Folder::new("killed");
    let rendezvous = folder.rendezvous();
    let settings = [("RINGTREE_RENDEZVOUS", rendezvous.as_str())];
    let run = |repeats: usize| {
        let again = |rank: usize| start(&bed.hosts[rank], rank, 2, &settings);
        (0..repeats).for_each(|_| {
            let ranks = [1, 0].map(again);
            ranks.map(Program::await_end).iter().for_each(assert_verified);
        });
    };
    let mut lonely = bed.hosts[0].command(env!("CARGO_BIN_EXE_ringtree-netns-rank"));
    lonely.args([COUNT, "1"]).env("RINGTREE_RANK", "0").env("RINGTREE_RANKS", "2");
    lonely.env("RINGTREE_SECRET", "between hosts").envs(settings);
    let lonely = Program::start(lonely);
    while !folder.file().exists() {
        std::thread::yield_now();
    }
    let mode = fs::metadata(folder.file()).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // Dropping kills it.
    drop(lonely);
    assert!(folder.file().exists(), "nobody was left to remove it");
    run(2);
    assert!(!folder.file().exists());
}

#[test]
fn a_file_of_another_job_is_not_followed() {
    let Some(bed) = TwoHosts::new(1) else { return };
    let folder = Folder::new("other");
    let rendezvous = folder.rendezvous();
    let common = [("RINGTREE_RENDEZVOUS", rendezvous.as_str()), ("RINGTREE_TIMEOUT", "1")];
    let job = |name| [&common[..], &[("RINGTREE_JOB", name)]].concat();
    let waiting = start(&bed.hosts[0], 0, 2, &job("one"));
    let stranger = start(&bed.hosts[1], 1, 2, &job("other"));
    let (stranger, waiting) = (stranger.await_end(), waiting.await_end());
    let message = error_of(&stranger);
    // It may have come before the file, or after it was gone.
    let whys = ["it is of another job, or of another secret", "it is not there"];
    assert!(whys.iter().any(|why| message.contains(why)), "{message}");
    assert!(message.contains("RINGTREE_JOB"), "{message}");
    assert!(error_of(&waiting).contains("rank 1 of 2 did not come"), "{waiting:#?}");
}

#[test]
fn hosts_with_ipv6_alone_are_as_others() {
    let Some(bed) = TwoHosts::with_ipv6_only(2) else { return };
    let folder = Folder::new("ipv6");
    let at = |wire| SocketAddr::new(bed.hosts[0].address(wire), 29400).to_string();
    let file = folder.rendezvous();
    let subnet = ("RINGTREE_INTERFACE", "fd77:0:0:1::/64");
    let name = ("RINGTREE_INTERFACE", "wire1");
    // Where they meet, further settings, and the wire that the data takes.
    type Variables<'a> = &'a [(&'a str, &'a str)];
    let meetings: [(&str, Variables, u8); 6] = [
        (&at(0), &[], 0),
        (&at(1), &[], 1),
        (&at(0), &[subnet], 1),
        (&at(0), &[name], 1),
        (&file, &[], 0),
        (&file, &[name, ("RINGTREE_PORTS", "40000-40009")], 1),
    ];
    for (rendezvous, settings, wire) in meetings {
        let settings = [&[("RINGTREE_RENDEZVOUS", rendezvous)], settings].concat();
        let received = |wire| [0, 1].map(|host: usize| bed.hosts[host].received_bytes(wire));
        let before = received(wire);
        let ranks = [0, 1, 2, 3].map(|rank| start(&bed.hosts[rank / 2], rank, 4, &settings));
        let ranks = ranks.map(Program::await_end);
        ranks.iter().for_each(assert_verified);
        assert_eq!([ranks[0].line("link 1"), ranks[0].line("link 2")], ["shm", "tcp"]);
        let after = received(wire);
        for host in [0, 1] {
            let bytes = after[host] - before[host];
            assert!(bytes > 400_000, "{settings:?}: {bytes} bytes over wire {wire} to {host}");
        }
    }
}

#[test]
fn ranks_of_one_host_meet_on_its_ipv6_loopback() {
    let Some(bed) = TwoHosts::with_ipv6_only(1) else { return };
    for transport in ["auto", "tcp"] {
        let settings = [("RINGTREE_RENDEZVOUS", "[::1]:29400"), ("RINGTREE_TRANSPORT", transport)];
        let ranks = [0, 1].map(|rank| start(&bed.hosts[0], rank, 2, &settings));
        ranks.map(Program::await_end).iter().for_each(assert_verified);
    }
}

#[test]
fn link_local_addresses_are_refused_before_anything_is_sent() {
    let Some(bed) = TwoHosts::with_ipv6_only(1) else { return };
    for (name, value) in
        [("RINGTREE_RENDEZVOUS", "[fe80::1]:29400"), ("RINGTREE_INTERFACE", "fe80::/10")]
    {
        let settings = [("RINGTREE_RENDEZVOUS", "[::1]:29400"), (name, value)];
        let ended = start(&bed.hosts[0], 0, 1, &settings).await_end();
        assert!(error_of(&ended).contains("link-local"), "{name}={value}: {ended:#?}");
    }
}

/// Two ranks a host, which share its ports.
#[test]
fn every_listener_is_in_the_range_and_a_range_too_small_is_named() {
    let Some(bed) = TwoHosts::new(1) else { return };
    let folder = Folder::new("ports");
    let rendezvous = folder.rendezvous();
    // The first host needs three: two ranks and the rendezvous.
    for (ports, fits) in [("40000-40002", true), ("40000-40001", false)] {
        let settings = [
            ("RINGTREE_RENDEZVOUS", rendezvous.as_str()),
            ("RINGTREE_PORTS", ports),
            ("RINGTREE_TIMEOUT", "2"),
        ];
        let ranks = [0, 1, 2, 3].map(|rank| start(&bed.hosts[rank / 2], rank, 4, &settings));
        let ranks = ranks.map(Program::await_end);
        if fits {
            ranks.iter().for_each(assert_verified);
            continue;
        }
        let told =
            ranks.iter().filter(|rank| error_of(rank).contains("RINGTREE_PORTS=40000-40001"));
        assert_eq!(told.count(), 1, "one rank found no port: {ranks:#?}");
    }
}

/// What the router lets through to the inside: some ports as they are, and two to others.
const RULES: [&str; 3] = [
    "tcp dport 40000-40009 dnat to 10.78.0.2",
    "tcp dport 50000 dnat to 10.78.0.2:41000",
    "tcp dport 29400 dnat to 10.78.0.2",
];

#[test]
fn a_rank_behind_a_router_is_reached_where_it_says() {
    let Some(bed) = Translated::new(&RULES) else { return };
    let rendezvous = SocketAddr::new(bed.outside.address(0), 29400).to_string();
    let meet = ("RINGTREE_RENDEZVOUS", rendezvous.as_str());
    let router = ROUTER.to_string();
    let other_port = format!("{router}:50000");
    let told: [&[(&str, &str)]; 2] = [
        &[meet, ("RINGTREE_PORTS", "40000-40009"), ("RINGTREE_ADVERTISE", &router)],
        &[meet, ("RINGTREE_PORTS", "41000"), ("RINGTREE_ADVERTISE", &other_port)],
    ];
    for settings in told {
        let ranks = [start(&bed.outside, 0, 2, &[meet]), start(&bed.inside, 1, 2, settings)];
        ranks.map(Program::await_end).iter().for_each(assert_verified);
    }
    // Without that, nobody finds it.
    let ranks = [0, 1].map(|rank| start([&bed.outside, &bed.inside][rank], rank, 2, &[meet]));
    let [outside, inside] = ranks.map(Program::await_end);
    for ended in [&outside, &inside] {
        let message = error_of(ended);
        assert!(
            message.contains("10.78.0.2") && message.contains("RINGTREE_ADVERTISE"),
            "{ended:#?}"
        );
    }
}

#[test]
fn ranks_meet_at_one_that_is_behind_a_router() {
    let Some(bed) = Translated::new(&RULES) else { return };
    let folder = Folder::new("router");
    let router = ROUTER.to_string();
    let ports = [("RINGTREE_PORTS", "40000-40009"), ("RINGTREE_ADVERTISE", &router)];
    let file = folder.rendezvous();
    let there = SocketAddr::new(bed.inside.address(0), 29400).to_string();
    let from_outside = format!("{router}:29400");
    // Each is told the address by which it reaches rank 0, or the file that tells it.
    for (own, others) in [(&there, &from_outside), (&file, &file)] {
        let inside = [&ports[..], &[("RINGTREE_RENDEZVOUS", own)]].concat();
        let ranks = [
            start(&bed.inside, 0, 2, &inside),
            start(&bed.outside, 1, 2, &[("RINGTREE_RENDEZVOUS", others)]),
        ];
        ranks.map(Program::await_end).iter().for_each(assert_verified);
    }
}
