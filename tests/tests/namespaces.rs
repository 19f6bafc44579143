//! Jobs on two hosts, which are two network namespaces: who uses which transport, over which
//! interface, and what everyone is told when the wire is cut.

use std::os::unix::process::CommandExt;
use std::process::Command;

use ringtree_tests::files::TemporaryFile;
use ringtree_tests::namespaces::{Host, TwoHosts, name_of};
use ringtree_tests::program::{Ended, Program};

/// Elements of an all-reduce whose bytes tell one wire's traffic from another's: 4 MiB.
const COUNT: usize = 1 << 20;

/// Bytes of that.
const BYTES: u64 = 4 * COUNT as u64;

/// After the deadline, how long a verdict may take.
const VERDICT_MS: u64 = 3_000;

/// What a busy machine may add.
const MARGIN_MS: u64 = 5_000;

/// The privilege to make a namespace; linux/capability.h.
const CAP_SYS_ADMIN: libc::c_ulong = 21;

/// A job on two hosts.
struct Job {
    ranks_a_host: usize,
    /// The wire by whose address the ranks meet.
    meet_on: u8,
    /// Further settings of each rank.
    settings: Vec<(&'static str, String)>,
    count: usize,
    repeats: usize,
    /// Whether ranks go on with those that are left.
    shrinks: bool,
}

impl Default for Job {
    fn default() -> Job {
        Job {
            ranks_a_host: 2,
            meet_on: 0,
            settings: Vec::new(),
            count: COUNT,
            repeats: 1,
            shrinks: false,
        }
    }
}

impl Job {
    fn with(mut self, name: &'static str, value: &str) -> Job {
        self.settings.push((name, value.to_owned()));
        self
    }

    fn host_of(&self, rank: usize) -> usize {
        rank / self.ranks_a_host
    }

    fn start(&self, bed: &TwoHosts) -> Vec<Program> {
        (0..2 * self.ranks_a_host).map(|rank| self.start_rank(bed, rank, &[])).collect()
    }

    /// Starts one rank, with settings of its own.
    fn start_rank(&self, bed: &TwoHosts, rank: usize, own: &[(&str, &str)]) -> Program {
        let program = env!("CARGO_BIN_EXE_ringtree-netns-rank");
        let mut command = bed.rank_command(program, rank, self.ranks_a_host, self.meet_on);
        command
            .args([self.count.to_string(), self.repeats.to_string()])
            .args(self.shrinks.then_some("shrink"))
            .env("RUST_BACKTRACE", "1")
            .envs(self.settings.iter().map(|(name, value)| (name, value)))
            .envs(own.iter().copied());
        Program::start(command)
    }

    /// Runs the job to its end.
    fn run(&self, bed: &TwoHosts) -> Vec<Ended> {
        self.start(bed).into_iter().map(Program::await_end).collect()
    }

    /// Runs the job, which must end well, and returns what each host received over a wire: at
    /// least once the buffer, if that wire was used, since the others' sum must get here.
    fn bytes_over(&self, bed: &TwoHosts, wire: u8) -> [u64; 2] {
        let received = || [0, 1].map(|host: usize| bed.hosts[host].received_bytes(wire));
        let before = received();
        self.run(bed).iter().for_each(assert_verified);
        let after = received();
        [after[0] - before[0], after[1] - before[1]]
    }
}

fn assert_verified(rank: &Ended) {
    rank.line("verified");
    assert!(rank.status.success(), "{rank:#?}");
}

/// The message of a rank that failed, and how long its last call took.
fn error_of(rank: &Ended) -> (u64, &str) {
    assert_eq!(rank.status.code(), Some(1), "{rank:#?}");
    let (after_ms, message) = rank.line("error").split_once(' ').expect("time and message");
    (after_ms.parse().expect("milliseconds"), message)
}

#[test]
fn ranks_of_two_hosts_use_tcp_and_those_of_one_host_shared_memory() {
    let Some(bed) = TwoHosts::new(1) else { return };
    let job = Job::default();
    let ranks = job.run(&bed);
    for (rank, ended) in ranks.iter().enumerate() {
        assert_verified(ended);
        for peer in (0..ranks.len()).filter(|peer| *peer != rank) {
            let same_host = job.host_of(rank) == job.host_of(peer);
            let expected = if same_host { "shm" } else { "tcp" };
            assert_eq!(ended.line(&format!("link {peer}")), expected, "of rank {rank}");
        }
    }
    for host in &bed.hosts {
        let received_bytes = host.received_bytes(0);
        assert!(received_bytes >= BYTES, "{received_bytes} bytes arrived at {host:?}");
    }
}

/// The ranks of one host have a slower port than those of the other, as files say: both reckon with that one.
#[test]
fn all_reckon_with_the_speed_of_the_slowest_port() {
    let Some(bed) = TwoHosts::new(1) else { return };
    let with_port = |mbit_per_s: u64| {
        let text = format!(
            r#"<system version="1"><cpu numaid="0" affinity="1" arch="x86_64">
            <nic><net name="wire0" dev="0" speed="{mbit_per_s}" port="0" guid="0x1"/></nic></cpu></system>"#
        );
        TemporaryFile::new(&format!("{mbit_per_s}.xml"), &text)
    };
    let (fast, slow) = (with_port(10_000), with_port(1_000));
    let job = Job::default();
    let start = |rank: usize| {
        let file = if job.host_of(rank) == 0 { &fast } else { &slow };
        let path = file.path().to_str().expect("a path");
        job.start_rank(&bed, rank, &[("RINGTREE_TOPOLOGY", path)])
    };
    let ranks: Vec<Program> = (0..4).map(start).collect();
    for ended in ranks.into_iter().map(Program::await_end) {
        assert_verified(&ended);
        let expected = r#"125000000 Ports { rank: 2, names: "wire0" }"#;
        assert_eq!(ended.line("network"), expected);
    }
    // Nothing is known of the ends of a pair.
    for ended in job.run(&bed) {
        assert!(ended.line("network").ends_with(" Default"), "{ended:?}");
    }
}

#[test]
fn the_bytes_take_the_interface_that_is_set() {
    let Some(bed) = TwoHosts::new(2) else { return };
    for (setting, wire) in [(name_of(1), 1), ("10.77.1.0/24".into(), 1), ("10.77.0.0/24".into(), 0)]
    {
        // They meet on the wire that the data shall not take.
        let meet_on = 1 - wire;
        let job = Job { meet_on, ..Job::default() }.with("RINGTREE_INTERFACE", &setting);
        assert_takes(&bed, &job, wire, &setting);
    }
}

#[test]
fn without_a_setting_the_bytes_take_the_way_to_the_rendezvous() {
    let Some(bed) = TwoHosts::new(2) else { return };
    for wire in [0, 1] {
        assert_takes(&bed, &Job { meet_on: wire, ..Job::default() }, wire, "no setting");
    }
}

fn assert_takes(bed: &TwoHosts, job: &Job, wire: u8, setting: &str) {
    let other_before = [0, 1].map(|host: usize| bed.hosts[host].received_bytes(1 - wire));
    let received_bytes = job.bytes_over(bed, wire);
    for host in [0, 1] {
        let other_bytes = bed.hosts[host].received_bytes(1 - wire) - other_before[host];
        let bytes = received_bytes[host];
        assert!(bytes >= BYTES, "{setting}: {bytes} bytes over wire {wire} to host {host}");
        // Rendezvous and control.
        assert!(other_bytes < BYTES / 10, "{setting}: {other_bytes} bytes took the other wire");
    }
}

/// What crosses two wires of unequal speed is divided so that both end together.
#[test]
fn two_interfaces_share_the_bytes_by_their_speed() {
    let Some(bed) = TwoHosts::new(2) else { return };
    if !bed.limit_rate(0, 400) || !bed.limit_rate(1, 200) {
        return;
    }
    for encrypt in ["0", "1"] {
        let job = Job { ranks_a_host: 1, repeats: 16, ..Job::default() }
            .with("RINGTREE_INTERFACE", "wire0, wire1")
            .with("RINGTREE_ENCRYPT", encrypt);
        let before = bed.hosts.each_ref().map(|host| host.received_bytes(1));
        let fast = job.bytes_over(&bed, 0);
        for host in [0, 1] {
            let slow = bed.hosts[host].received_bytes(1) - before[host];
            let share = fast[host] as f64 / (fast[host] + slow) as f64;
            assert!((0.55..0.8).contains(&share), "host {host}: {share} over the faster wire");
        }
    }
}

#[test]
fn one_of_two_wires_that_is_cut_is_an_error_on_both_hosts() {
    let Some(bed) = TwoHosts::new(2) else { return };
    let job = endless().with("RINGTREE_TIMEOUT", "2").with("RINGTREE_INTERFACE", "wire0,wire1");
    let job = Job { ranks_a_host: 1, count: COUNT, ..job };
    let mut ranks = job.start(&bed);
    ranks.iter_mut().for_each(|rank| drop(rank.await_line("running")));
    bed.hosts[1].cut(1);
    for (rank, ended) in ranks.into_iter().map(Program::await_end).enumerate() {
        let (after_ms, message) = error_of(&ended);
        assert!(after_ms < 2_000 + VERDICT_MS + MARGIN_MS, "rank {rank}: {after_ms} ms: {message}");
        // Who is named first depends on who waits for whom.
        let both = ["ranks 0 and 1", "ranks 1 and 0"];
        let told = both.map(|both| format!("{both} live, but the link between them failed"));
        assert!(told.iter().any(|told| message.contains(told)), "{message}");
    }
}

/// Of two hosts each must send half of the buffer as it is to the other and get half of the result:
/// the buffer's size in all, whatever the number of its ranks.
#[test]
fn each_byte_crosses_between_hosts_as_often_as_it_must() {
    let Some(bed) = TwoHosts::new(1) else { return };
    for ranks_a_host in [1, 2, 3] {
        let job = Job { ranks_a_host, repeats: 8, ..Job::default() };
        let least_bytes = job.repeats as u64 * BYTES;
        for bytes in job.bytes_over(&bed, 0) {
            let share = bytes as f64 / least_bytes as f64;
            // Headers are 5 %; the rest is the beginning, control, and what was sent twice.
            assert!((1.0..1.1).contains(&share), "{ranks_a_host} ranks a host: {share} times");
        }
    }
}

#[test]
fn an_interface_that_is_not_there_is_an_error_that_lists_those_that_are() {
    let Some(bed) = TwoHosts::new(2) else { return };
    let job = Job { ranks_a_host: 1, ..Job::default() }.with("RINGTREE_INTERFACE", "eth7");
    for (rank, ended) in job.run(&bed).iter().enumerate() {
        let (_, message) = error_of(ended);
        assert!(message.contains("no interface of this host is \"eth7\""), "{message}");
        for wire in [0, 1] {
            let there = format!("{} ({}", name_of(wire), bed.hosts[rank].address(wire));
            assert!(message.contains(&there), "rank {rank} does not list {there}: {message}");
        }
    }
}

#[test]
fn a_rank_that_fails_to_begin_is_named_to_the_other_host() {
    let Some(bed) = TwoHosts::new(1) else { return };
    let job = Job { ranks_a_host: 1, ..Job::default() }.with("RINGTREE_TIMEOUT", "2");
    let wrong = [("RINGTREE_INTERFACE", "eth7")];
    let [good, bad] = [job.start_rank(&bed, 0, &[]), job.start_rank(&bed, 1, &wrong)];
    let (bad, good) = (bad.await_end(), good.await_end());
    assert!(error_of(&bad).1.contains("eth7"), "{bad:#?}");
    assert!(error_of(&good).1.contains("rank 1"), "{good:#?}");
}

#[test]
fn shared_memory_between_hosts_is_refused_on_both() {
    let Some(bed) = TwoHosts::new(1) else { return };
    let job = Job { ranks_a_host: 1, ..Job::default() }.with("RINGTREE_TRANSPORT", "shm");
    for (rank, ended) in job.run(&bed).iter().enumerate() {
        let (_, message) = error_of(ended);
        // The arbiter may have told one of them what the other one found.
        let named = [0, 1].iter().any(|peer| message.contains(&format!("rank {peer} on host")));
        assert!(named && message.contains("is not on this host"), "rank {rank}: {message}");
        assert!(
            message.ends_with("use auto or tcp (RINGTREE_TRANSPORT, --transport)"),
            "{message}"
        );
    }
}

#[test]
fn different_settings_are_told_on_both_hosts() {
    let Some(bed) = TwoHosts::new(1) else { return };
    let job = Job { ranks_a_host: 1, ..Job::default() };
    let tcp = [("RINGTREE_TRANSPORT", "tcp")];
    let ranks = [job.start_rank(&bed, 0, &tcp), job.start_rank(&bed, 1, &[])];
    for ended in ranks.map(Program::await_end) {
        let (_, message) = error_of(&ended);
        assert!(message.contains("all must have the same settings"), "{message}");
    }
}

#[test]
fn a_cut_wire_is_an_error_on_both_hosts() {
    let Some(bed) = TwoHosts::new(1) else { return };
    cut_while_running(&bed, &bed.hosts[1]);
}

#[test]
fn a_wire_cut_at_the_host_of_the_rendezvous_is_an_error_on_both_hosts() {
    let Some(bed) = TwoHosts::new(1) else { return };
    cut_while_running(&bed, &bed.hosts[0]);
}

fn cut_while_running(bed: &TwoHosts, at: &Host) {
    let job = endless().with("RINGTREE_TIMEOUT", "2");
    let mut ranks = job.start(bed);
    ranks.iter_mut().for_each(|rank| drop(rank.await_line("running")));
    at.cut(0);
    for (rank, ended) in ranks.into_iter().map(Program::await_end).enumerate() {
        let (after_ms, message) = error_of(&ended);
        assert!(after_ms < 2_000 + VERDICT_MS + MARGIN_MS, "rank {rank}: {after_ms} ms: {message}");
        match job.host_of(rank) {
            // The control service is here, and names who does not answer.
            0 => assert!(
                ["rank 2 ", "rank 3 "].iter().any(|named| message.starts_with(named))
                    && message.contains("no longer answers")
                    && message.contains("the network to it"),
                "rank {rank}: {message}"
            ),
            // It is on the other side.
            _ => assert!(
                message.starts_with("rank 0 ")
                    && message.contains("does not answer, which hosts the control service")
                    && message.contains("the network to it"),
                "rank {rank}: {message}"
            ),
        }
    }
}

#[test]
fn of_two_halves_the_one_with_the_lowest_rank_goes_on() {
    let Some(bed) = TwoHosts::new(1) else { return };
    let job = Job { shrinks: true, ..endless().with("RINGTREE_TIMEOUT", "6") };
    let mut ranks = job.start(&bed);
    ranks.iter_mut().for_each(|rank| drop(rank.await_line("running")));
    bed.hosts[1].cut(0);
    for (rank, program) in ranks.iter_mut().enumerate() {
        match job.host_of(rank) {
            0 => assert_eq!(program.await_line("regrouped "), format!("{rank} of 2")),
            _ => {
                let reason = program.await_line("alone the job cannot go on here: ");
                let known = "of 4 members only those of rank 2, 3 came, and of the others those of rank 0, 1 are not";
                assert!(reason.starts_with(known), "{reason}");
            }
        }
    }
}

#[test]
fn a_wire_that_is_cut_for_a_moment_harms_nobody() {
    let Some(bed) = TwoHosts::new(1) else { return };
    let mut ranks = endless().start(&bed);
    ranks.iter_mut().for_each(|rank| drop(rank.await_line("running")));
    for host in &bed.hosts {
        host.cut(0);
        host.mend(0);
        ranks.iter_mut().for_each(Program::skip_lines);
        for rank in &mut ranks {
            // The first one may have been on its way.
            rank.await_line("running");
            rank.await_line("running");
        }
    }
}

/// Calls that go on until something stops them.
fn endless() -> Job {
    Job { repeats: usize::MAX, count: 1 << 14, ..Job::default() }
}

#[test]
fn a_slow_wire_is_no_failure_as_long_as_something_moves() {
    let Some(bed) = TwoHosts::new(1) else { return };
    if !bed.limit_rate(0, 100) {
        return;
    }
    let timeout_ms = 2_000;
    // At 100 Mbit/s the 32 MiB that must reach each host take 2.7 s.
    let job = Job { count: 8 << 20, ..Job::default() }.with("RINGTREE_TIMEOUT", "2");
    for ended in job.run(&bed) {
        assert_verified(&ended);
        let took_ms: u64 = ended.line("verified").parse().expect("milliseconds");
        assert!(took_ms > timeout_ms, "{took_ms} ms: the wire was not slow");
    }
}

#[test]
fn where_hosts_cannot_be_made_a_test_is_skipped_aloud_and_fails_in_ci() {
    let test = "ranks_of_two_hosts_use_tcp_and_those_of_one_host_shared_memory";
    for in_ci in [false, true] {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args([test, "--exact"]).env("CI", in_ci.to_string());
        // SAFETY: between fork and exec, one system call with two integers.
        unsafe {
            command.pre_exec(|| {
                // Whoever has no such privilege may not give it up, and need not.
                libc::prctl(libc::PR_CAPBSET_DROP, CAP_SYS_ADMIN, 0, 0, 0);
                Ok(())
            })
        };
        let ended = Program::start(command).await_end();
        assert_eq!(ended.status.success(), !in_ci, "{ended:#?}");
        let said = if in_ci { "need root, iproute2" } else { "SKIPPED" };
        assert!(ended.lines.iter().any(|line| line.contains(said)), "{ended:#?}");
    }
}
