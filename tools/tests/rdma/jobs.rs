//! Jobs of real processes: the program `ringtree`, once for each rank, each with variables of its own.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// How long anything may take here before a test fails.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs the program by itself.
pub fn ringtree(line: &str, variables: &[(&str, &str)]) -> Output {
    command(line, variables).output().expect("the program")
}

/// The program with its arguments and none of the test's own settings.
pub fn command(line: &str, variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringtree"));
    command.args(line.split_whitespace()).env("RINGTREE_TUNING", "off");
    command.envs(variables.iter().copied());
    command
}

/// What a program has printed on both ways.
pub fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes)).concat()
}

/// The ranks of a job.
pub struct Job {
    ranks: Vec<Rank>,
}

struct Rank {
    child: Child,
    lines: Receiver<String>,
    heard: Vec<String>,
}

impl Job {
    /// Starts a rank for each set of variables.
    pub fn start(line: &str, variables: &[&[(&str, &str)]]) -> Job {
        let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
        let count = variables.len().to_string();
        let ranks = variables.iter().enumerate().map(|(rank, own)| {
            let mut command = command(line, own);
            command
                .env("RINGTREE_RANK", rank.to_string())
                .env("RINGTREE_RANKS", &count)
                .env("RINGTREE_RENDEZVOUS", port.to_string())
                .env("RINGTREE_SECRET", "of the tests")
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            let mut child = command.spawn().expect("the program");
            let (say, lines) = channel();
            let pipes: [Box<dyn Read + Send>; 2] = [
                Box::new(child.stdout.take().expect("a pipe")),
                Box::new(child.stderr.take().expect("a pipe")),
            ];
            for pipe in pipes {
                let say = say.clone();
                std::thread::spawn(move || {
                    let lines = BufReader::new(pipe).lines().map_while(Result::ok);
                    lines.for_each(|line| drop(say.send(line)));
                });
            }
            Rank { child, lines, heard: Vec::new() }
        });
        Job { ranks: ranks.collect() }
    }

    /// Waits until a rank says a line with these words in it.
    pub fn hear(&mut self, rank: usize, words: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let rank = &mut self.ranks[rank];
        while let Ok(line) = rank.lines.recv_timeout(deadline - Instant::now()) {
            rank.heard.push(line.clone());
            if line.contains(words) {
                return line;
            }
        }
        panic!("no \"{words}\" in\n{}", rank.heard.join("\n"));
    }

    /// Ends a rank's process without a word.
    pub fn kill(&mut self, rank: usize) {
        self.ranks[rank].child.kill().expect("it runs");
    }

    /// Waits for a rank's end: its status, and all that it has said.
    pub fn end(&mut self, rank: usize) -> (Option<i32>, String) {
        let rank = &mut self.ranks[rank];
        let deadline = Instant::now() + PATIENCE;
        while let Ok(line) = rank.lines.recv_timeout(deadline - Instant::now()) {
            rank.heard.push(line);
        }
        let status = rank.child.wait().expect("a child");
        (status.code(), rank.heard.join("\n"))
    }

    /// Waits for the end of all ranks, which must be good; what rank 0 has said.
    pub fn succeeds(&mut self) -> String {
        let ends: Vec<(Option<i32>, String)> =
            (0..self.ranks.len()).map(|rank| self.end(rank)).collect();
        for (rank, (status, said)) in ends.iter().enumerate() {
            assert_eq!(*status, Some(0), "rank {rank}: {said}");
        }
        ends.into_iter().next().expect("a rank").1
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        for rank in &mut self.ranks {
            let _ = rank.child.kill();
            let _ = rank.child.wait();
        }
    }
}

const COLLECTIVES: [&str; 15] = [
    "all-reduce",
    "broadcast",
    "barrier",
    "all-gather",
    "reduce-scatter",
    "reduce",
    "gather",
    "scatter",
    "all-to-all",
    "all-gather-v",
    "reduce-scatter-v",
    "gather-v",
    "scatter-v",
    "all-to-all-v",
    "send-receive",
];

#[test]
fn every_collective_is_right_between_processes() {
    for collective in COLLECTIVES {
        for (ranks, memory) in [(2, "registered"), (3, "plain"), (4, "registered")] {
            let line = format!(
                "bench {collective} --ranks {ranks} --transport rdma --sizes 24,3072,786432 -n 2 -w 1 \
                 --memory {memory} --op sum"
            );
            // A barrier has neither sizes nor an operation.
            let line = match collective {
                "barrier" => format!("bench barrier --ranks {ranks} --transport rdma -n 5 -w 1"),
                "all-reduce" | "reduce" | "reduce-scatter" | "reduce-scatter-v" => line,
                _ => line.replace(" --op sum", ""),
            };
            let output = ringtree(&line, &[]);
            let said = said(&output);
            assert_eq!(output.status.code(), Some(0), "{line}\n{said}");
            assert!(said.contains("# Out of bounds values : 0 OK"), "{line}\n{said}");
            assert!(said.contains("transport rdma over rxe1:1 (GID 1 10.2.0.1"), "{line}\n{said}");
        }
    }
}

#[test]
fn every_algorithm_of_all_reduce_is_right() {
    for ranks in [3, 4] {
        let line = format!(
            "bench all-reduce --algorithm all --ranks {ranks} --transport rdma --sizes 40,400000 -n 2 -w 1"
        );
        let said = said(&ringtree(&line, &[]));
        assert!(said.contains("# Out of bounds values : 0 OK"), "{said}");
    }
}

const LARGE: &str = "bench all-reduce --transport rdma --sizes 8388608 --time-ms 4000 -c 2";

#[test]
fn a_job_goes_on_over_the_other_rail_and_says_so() {
    let rails: [&[(&str, &str)]; 2] = [
        &[("RINGTREE_RDMA_DEVICES", "rxe0,rxe1"), ("RINGTREE_LOG", "info")],
        &[("RINGTREE_RDMA_DEVICES", "rxe0,rxe2"), ("RINGTREE_LOG", "info")],
    ];
    let line = "bench all-reduce --transport rdma --sizes 1048576,4194304 -n 3 -w 1";
    let mut job = Job::start(line, &rails);
    job.hear(0, "RDMA to rank 1 over rxe0:1");
    job.hear(0, "   1048576");
    let _down = crate::network::Down::take("v1");
    let said = job.succeeds();
    assert!(said.contains("# Out of bounds values : 0 OK"), "{said}");
    assert!(said.contains("carry the rest"), "{said}");
}

#[test]
fn a_killed_rank_is_named_at_once() {
    let log: &[(&str, &str)] = &[("RINGTREE_LOG", "info")];
    let mut job = Job::start(LARGE, &[log; 3]);
    job.hear(0, "RDMA to rank 2 over");
    job.hear(0, "#        (B)");
    let killed = Instant::now();
    job.kill(2);
    for rank in [0, 1] {
        let (status, said) = job.end(rank);
        println!("rank {rank} has ended {:?} after rank 2 was killed", killed.elapsed());
        assert_eq!(status, Some(1), "{said}");
        let line = said.lines().find(|line| line.contains("rank 2")).unwrap_or_default();
        assert!(!line.is_empty(), "rank {rank}: {said}");
    }
}

/// The ranks sleep, and nothing comes any more that could wake them.
#[test]
fn a_job_whose_only_port_goes_down_ends_soon_and_says_why() {
    let rails: [&[(&str, &str)]; 2] = [
        &[("RINGTREE_RDMA_DEVICES", "rxe1"), ("RINGTREE_LOG", "info")],
        &[("RINGTREE_RDMA_DEVICES", "rxe2"), ("RINGTREE_LOG", "info")],
    ];
    let mut job = Job::start(LARGE, &rails);
    job.hear(0, "RDMA to rank 1 over rxe1:1");
    job.hear(0, "#        (B)");
    let began = Instant::now();
    let _down = crate::network::Down::take("v2");
    for rank in [0, 1] {
        let (status, said) = job.end(rank);
        let took = began.elapsed();
        println!("rank {rank} has ended {took:?} after the port went down");
        assert_eq!(status, Some(1), "{said}");
        assert!(said.contains("the port is down") || said.contains("retries exceeded"), "{said}");
        assert!(took < Duration::from_secs(30), "not only at the timeout of 60 s: {took:?}");
    }
}

#[test]
fn a_rank_without_rdma_is_reached_over_tcp_and_that_is_said() {
    let with: &[(&str, &str)] = &[("RINGTREE_LOG", "info")];
    let without: &[(&str, &str)] = &[("RINGTREE_LOG", "info"), ("RINGTREE_RDMA_DEVICES", "none")];
    let line = "bench all-reduce --transport rdma,tcp --sizes 8,300000 -n 3 -w 1";
    let mut job = Job::start(line, &[with, with, without]);
    let said = job.succeeds();
    assert!(said.contains("transport mixed") && said.contains("0 OK"), "{said}");
    assert!(said.contains("RDMA to rank 1 over"), "{said}");
    let told = said.lines().find(|line| line.contains("rank 2") && line.contains("tcp"));
    assert!(told.is_some_and(|line| line.contains("has no RDMA, hence tcp")), "{said}");
}
