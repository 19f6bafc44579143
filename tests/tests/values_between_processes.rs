//! What calls compute, between ranks that are processes.

use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;

use ringtree::control::ControlService;
use ringtree::{Job, Secret};
use ringtree_tests::job::free_address;
use ringtree_tests::ranks::each;
use ringtree_transport::rendezvous::{self, Server};

const SECRET: &str = "processes of a test";
const JOB: &str = "values";

#[test]
fn two_to_eight_ranks_that_meet_at_rank_0_over_shared_memory() {
    for ranks in 2..=8 {
        check(ranks, "shm", &free_address());
    }
}

#[test]
fn two_to_eight_ranks_that_meet_at_rank_0_over_tcp() {
    for ranks in 2..=8 {
        check(ranks, "tcp", &free_address());
    }
}

#[test]
fn ranks_that_meet_at_their_launcher() {
    let service = Arc::new(ControlService::new(None).expect("a control service"));
    let serve = service.clone();
    let job = Job { name: JOB.to_string(), secret: Secret::from_text(SECRET) };
    let listener = rendezvous::listen("127.0.0.1:0").expect("a port");
    let on_control = move |stream, hello| serve.serve(stream, hello);
    let server = Server::start(listener, job, on_control).expect("a rendezvous");
    check(3, "auto", &server.address().to_string());
}

/// Starts the ranks, waits for them, and compares what they printed.
fn check(ranks: u32, transport: &str, rendezvous: &str) {
    let most = 400_000 / ranks;
    let children = (0..ranks).map(|rank| start(rank, ranks, transport, rendezvous, most));
    // Each is read by its own thread, so that none waits for its output to be taken.
    let outputs =
        each(children.collect(), |child: Child| child.wait_with_output().expect("a rank's output"));
    let printed = |output: &Output| String::from_utf8_lossy(&output.stdout).into_owned();
    let complaints: Vec<_> = outputs
        .iter()
        .enumerate()
        .filter(|(_, output)| !output.status.success())
        .map(|(rank, output)| {
            format!("rank {rank}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr))
        })
        .collect();
    assert!(complaints.is_empty(), "{ranks} ranks over {transport}:\n{}", complaints.join("\n"));
    let first = printed(&outputs[0]);
    assert!(first.lines().count() > 50, "{first}");
    for (rank, output) in outputs.iter().enumerate() {
        assert_eq!(printed(output), first, "rank {rank} of {ranks} over {transport}");
    }
}

fn start(rank: u32, ranks: u32, transport: &str, rendezvous: &str, most: u32) -> Child {
    Command::new(env!("CARGO_BIN_EXE_ringtree-values-rank"))
        .args([ranks.to_string(), most.to_string()])
        .env("RINGTREE_RANK", rank.to_string())
        .env("RINGTREE_RANKS", ranks.to_string())
        .env("RINGTREE_RENDEZVOUS", rendezvous)
        .env("RINGTREE_TRANSPORT", transport)
        .env("RINGTREE_JOB", JOB)
        .env("RINGTREE_SECRET", SECRET)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a rank's process")
}
