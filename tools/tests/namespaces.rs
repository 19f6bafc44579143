//! `ringtree run` on two hosts, which are two network namespaces.

use std::net::SocketAddr;
use std::path::Path;

use ringtree_tests::namespaces::TwoHosts;
use ringtree_tests::program::Program;

/// Largest size that is measured.
const BYTES: u64 = 1 << 20;

/// No folder.
const NOWHERE: &str = "/nowhere";

/// Starts a job of four ranks that run `ringtree` with these arguments on two hosts: on the second one,
/// what the first one's launcher printed for it. What was measured before is in `caches`.
fn start(bed: &TwoHosts, rendezvous: &str, arguments: &str, caches: &Path) -> [Program; 2] {
    let program = env!("CARGO_BIN_EXE_ringtree");
    let folder = Path::new(program).parent().expect("a program lies in a folder").display();
    let shell = |host: usize, script: &str| {
        let mut command = bed.hosts[host].command("/bin/sh");
        command.args(["-c", script]);
        command.env("PATH", format!("{folder}:/usr/bin:/bin")).env("RINGTREE_TIMEOUT", "2");
        command.env("XDG_CACHE_HOME", caches);
        Program::start(command)
    };
    let options = format!("--ranks 4 --nodes 2 --rendezvous '{rendezvous}'");
    let mut first = shell(0, &format!("exec ringtree run {options} -- ringtree {arguments}"));
    let printed = first.await_line("ringtree:   ");
    let second = shell(1, &printed);
    [first, second]
}

/// An address of the first host.
fn address(bed: &TwoHosts) -> String {
    SocketAddr::new(bed.hosts[0].address(0), 29400).to_string()
}

#[test]
fn the_printed_command_makes_one_job_of_two_hosts() {
    let Some(bed) = TwoHosts::new(1) else { return };
    makes_one_job(&bed, &address(&bed));
}

#[test]
fn it_does_so_over_ipv6_and_by_a_file_that_tells_the_address() {
    let Some(bed) = TwoHosts::with_ipv6_only(1) else { return };
    makes_one_job(&bed, &address(&bed));
    let file = std::env::temp_dir().join(format!("ringtree-meet-{}", std::process::id()));
    makes_one_job(&bed, &format!("file:{}", file.display()));
    assert!(!file.exists(), "the first launcher removes the file");
}

fn makes_one_job(bed: &TwoHosts, rendezvous: &str) {
    let bench = format!("bench all-reduce --sizes 4,{BYTES} --time-ms 20 --jsonl");
    let [first, second] = start(bed, rendezvous, &bench, NOWHERE.as_ref()).map(Program::await_end);
    assert!(first.status.success() && second.status.success(), "{first:#?} {second:#?}");
    let rows: Vec<&String> = first.lines.iter().filter(|line| line.contains("busbw")).collect();
    assert_eq!(rows.len(), 4, "two sizes, in place and out of place: {first:#?}");
    for row in rows {
        let values = ["\"ok\":true", "\"ranks\":4"];
        assert!(values.iter().all(|value| row.contains(value)), "{row}");
    }
    for host in &bed.hosts {
        let received_bytes = host.received_bytes(0);
        assert!(received_bytes >= BYTES, "{received_bytes} bytes arrived at {host:?}");
    }
}

#[test]
fn when_the_wire_is_cut_both_launchers_end_and_every_rank_says_why() {
    let Some(bed) = TwoHosts::new(1) else { return };
    let sizes = ["64K"; 1000].join(",");
    let bench = format!("bench all-reduce --sizes {sizes} --time-ms 20 --jsonl");
    let [mut first, second] = start(&bed, &address(&bed), &bench, NOWHERE.as_ref());
    first.await_line("[0] {");
    bed.hosts[1].cut(0);
    let ended = [first, second].map(Program::await_end);
    // The control service is the first launcher's: only its ranks can be told who is gone.
    for (host, said) in [(0, "and it no longer answers"), (1, " does not answer")] {
        let ended = &ended[host];
        assert_eq!(ended.status.code(), Some(1), "host {host}: {ended:#?}");
        for rank in [2 * host, 2 * host + 1] {
            let message = ended.line(&format!("[{rank}] ringtree: "));
            assert!(message.contains(said), "rank {rank}: {ended:#?}");
        }
    }
}

#[test]
fn what_was_measured_among_two_hosts_counts_among_two_hosts() {
    let Some(bed) = TwoHosts::new(1) else { return };
    let caches = std::env::temp_dir().join(format!("ringtree-two-hosts-{}", std::process::id()));
    let run = |arguments: &str| {
        let [first, second] =
            start(&bed, &address(&bed), arguments, &caches).map(Program::await_end);
        assert!(first.status.success() && second.status.success(), "{first:#?} {second:#?}");
        first
    };
    let tuned = run("tune --seconds 0");
    tuned.line("[0] # 4 ranks on 2 hosts over shared memory and TCP, 2 ranks for ");
    let bench = run("bench all-reduce --sizes 4 -n 1");
    bench.line("[0] # transport mixed, algorithm chosen by measured times, ");
    std::fs::remove_dir_all(&caches).expect("the cache is removed");
    let bench = run("bench all-reduce --sizes 4 -n 1");
    bench.line("[0] # transport mixed, algorithm chosen by size, ");
}
