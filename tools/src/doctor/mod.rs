//! `ringtree doctor`: looks for what slows ranks down here, or keeps them from reaching each other.
//!
//! Each rank looks at its host (`host`, which asks one file a topic) and at the ways to the other
//! ranks (`ranks`); rank 0 judges what all have told (`job`) and prints it (`report`).

mod attach;
mod clock;
mod descriptors;
mod finding;
mod gpu;
mod host;
mod job;
mod memory;
mod network;
mod probe;
mod processors;
mod ranks;
mod rdma;
mod report;
mod system;
mod tcp;
mod timing;

use std::env;
use std::fmt::Display;
use std::process::ExitCode;
use std::time::Duration;

use ringtree::{Meeting, Settings};
use ringtree_transport::endpoint::{EndpointError, Transports};
use ringtree_transport::rendezvous::Place;

use crate::words::{json, say};
use finding::{Check, Finding, Level};
use host::{Host, OfRank};
use job::{Hosts, Pair, Said};
use report::Report;
use ringtree_launcher::{Binding, LaunchOptions, Layout, launch};
use system::System;

const SETTINGS: Check =
    Check { name: "settings", why: "a rank must know who it is and where the others are" };

const RENDEZVOUS: Check =
    Check { name: "rendezvous", why: "ranks meet there before they can reach each other" };

const START: Check =
    Check { name: "start", why: "without other ranks, nothing between ranks could be tried" };

/// How long the other ranks may run on after one has failed.
const GRACE: Duration = Duration::from_secs(5);

/// Looks for what slows ranks down here, or keeps them from reaching each other
///
/// Started by itself it starts ranks on this host; under a launcher (`ringtree run`, torchrun) each of
/// its ranks looks at its own host. They look at limits, memory, RDMA, GPUs, processors, interfaces, TCP
/// and clocks, try the link between each pair as a job would, and time it. Each finding is ok, a note,
/// a warning (slower than it could be) or a failure, and says why it matters and what to type.
///
/// With a topic only what belongs to it is said, and whatever does not work.
///
/// The exit status is 0 without a failure, 1 with one, and 2 if the command line is wrong.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  ringtree doctor\n  \
                  ringtree run --ranks 4 --bind core -- ringtree doctor\n  \
                  ringtree run --hosts a,b -- ringtree doctor rdma\n  \
                  ringtree doctor gpu\n  \
                  ringtree run --ranks 4 -- ringtree doctor --probe")]
pub struct DoctorArguments {
    /// What to look at, instead of everything
    #[arg(value_name = "TOPIC")]
    topic: Option<Topic>,
    /// Ranks to start, as many as a job will have on this host; a launcher's are as many as it
    /// starts
    #[arg(long, value_name = "N", default_value_t = 2,
          value_parser = clap::value_parser!(u32).range(1..=4096))]
    ranks: u32,
    /// Print one line of JSON instead: the worst level, each finding (check, level, seen, why,
    /// remedy, ranks), each pair of ranks (transport, time, clocks, error)
    #[arg(long)]
    json: bool,
    /// Write patterns to every rank over every path (shared memory, each interface for TCP, each port for RDMA)
    /// and compare what arrives: finds what loses or changes bytes before a job does
    #[arg(long)]
    probe: bool,
    /// Try what GPUs can do, for the doctor that has started this process
    #[arg(long, hide = true)]
    gpu_probe: bool,
    /// Try to read memory of a GPU of the process that tries what GPUs can do
    #[arg(long, hide = true)]
    gpu_reads: Option<String>,
}

/// What the doctor can be asked about alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Topic {
    /// Devices, ports and memory for RDMA; a host without any is a failure, and links are tried over
    /// it between ranks of one host, too
    Rdma,
    /// The CUDA driver, GPUs and what they can reach; a host without any is a failure
    Gpu,
}

impl Topic {
    /// Lets links be tried by what the topic is about.
    fn adapt(self, settings: &mut Settings) {
        if self == Topic::Rdma && settings.transports == Transports::Auto {
            settings.transports = Transports::RdmaOrTcp;
        }
    }

    /// Whether a finding belongs to it. Why nothing can be said of it always does.
    fn includes(self, finding: &Finding) -> bool {
        let (start, others): (_, &[&str]) = match self {
            Topic::Rdma => ("rdma", &["memlock", "reachability"]),
            Topic::Gpu => ("gpu", &["memlock"]),
        };
        finding.level == Level::Failure
            || finding.check.starts_with(start)
            || others.contains(&finding.check.as_ref())
    }
}

/// Does what was asked for; a failure makes the status 1.
pub fn run(arguments: &DoctorArguments) -> ExitCode {
    if arguments.gpu_probe {
        return gpu::probe(arguments.topic);
    }
    if let Some(told) = &arguments.gpu_reads {
        return gpu::read(told);
    }
    if Settings::in_env() { take_part(arguments) } else { start_ranks(arguments) }
}

/// Starts this program again, once for each rank.
fn start_ranks(arguments: &DoctorArguments) -> ExitCode {
    let started = env::current_exe().map_err(|error| error.to_string()).and_then(|program| {
        let launched = launch(&LaunchOptions {
            ranks: arguments.ranks,
            layout: Layout::Nodes { nodes: 1, node_rank: 0 },
            rendezvous: None,
            job: None,
            binding: Binding::None,
            program: program.into(),
            arguments: env::args_os().skip(1).collect(),
            raw_output_of_rank_0: true,
            grace: GRACE,
            restarts: 0,
            min_ranks: None,
        });
        launched.map_err(|error| error.to_string())
    });
    let reason = match started {
        // Rank 0 has printed all there is to say.
        Ok(code @ 0..=1) => return ExitCode::from(code),
        Ok(code) => format!("the ranks have ended with status {code}"),
        Err(error) => error,
    };
    let failure = START
        .failure(format!("no ranks could be started: {reason}"))
        .remedy("ringtree run --ranks 2 -- true");
    let host = Host::examine(&System::real(), arguments.topic, None);
    print_alone(arguments, host, failure, [0, arguments.ranks])
}

/// Looks as one of the ranks.
fn take_part(arguments: &DoctorArguments) -> ExitCode {
    let (system, topic) = (System::real(), arguments.topic);
    let settings = match Settings::from_env() {
        Ok(mut settings) => {
            topic.inspect(|topic| topic.adapt(&mut settings));
            settings
        }
        Err(error) => {
            let failure = SETTINGS.failure(error.to_string()).remedy("ringtree config");
            return print_alone(arguments, Host::examine(&system, topic, None), failure, [0, 1]);
        }
    };
    let alone = |rendezvous, error: &dyn Display| {
        let of_rank = OfRank { settings: &settings, rendezvous, refused: None };
        let host = Host::examine(&system, topic, Some(of_rank));
        let failure = not_met(&settings.rendezvous, error);
        print_alone(arguments, host, failure, [settings.rank, settings.ranks])
    };
    let meeting = match Meeting::with(&settings) {
        Ok(meeting) => meeting,
        Err(error) => {
            let place = match Place::of(&settings.rendezvous) {
                Place::Address(address) => Some(address),
                Place::File(_) => None,
            };
            return alone(place, &error);
        }
    };
    let address = meeting.address().to_owned();
    let endpoint = ranks::bind(&settings, &address);
    let refused = match &endpoint {
        Err(error @ EndpointError::Listen { .. }) => Some(error.to_string()),
        _ => None,
    };
    let of_rank = OfRank { settings: &settings, rendezvous: Some(&address), refused };
    let host = Host::examine(&system, topic, Some(of_rank));
    match ranks::examine(&system, &settings, meeting, endpoint, &host, arguments.probe) {
        // Rank 0 prints what this one has found, and its status is the job's.
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(gathered)) => {
            let (hosts, findings, pairs) = job::judge(&settings, topic, gathered);
            print(arguments, settings.ranks, hosts, findings, pairs)
        }
        Err(error) => alone(Some(&address), &error),
    }
}

/// Why the ranks have not met, and how to see whether they could.
fn not_met(place: &str, error: &dyn Display) -> Finding {
    let remedy = match Place::of(place) {
        Place::Address(address) => {
            let (host, port) = address.rsplit_once(':').unwrap_or((address, "29400"));
            let host = host.trim_matches(['[', ']']);
            format!("timeout 3 bash -c '</dev/tcp/{host}/{port}' && echo open")
        }
        Place::File(path) => format!("ls -l {}  # on each host", path.display()),
    };
    RENDEZVOUS.failure(error.to_string()).remedy(remedy)
}

/// Prints what one rank alone has found, and why it is alone.
fn print_alone(
    arguments: &DoctorArguments,
    host: Host,
    failure: Finding,
    [rank, ranks]: [u32; 2],
) -> ExitCode {
    let name = host.introduction(None).host;
    let findings = host.findings.into_iter().chain([failure]);
    let said = findings.map(|finding| Said { finding, ranks: vec![rank] }).collect();
    print(arguments, ranks, vec![(name, vec![rank])], said, Vec::new())
}

/// Prints what was found, as far as it was asked for.
fn print(
    arguments: &DoctorArguments,
    ranks: u32,
    hosts: Hosts,
    mut findings: Vec<Said>,
    pairs: Vec<Pair>,
) -> ExitCode {
    findings.retain(|said| arguments.topic.is_none_or(|topic| topic.includes(&said.finding)));
    let report = Report::new(ranks, hosts, findings, pairs);
    let text = if arguments.json { json(&report) } else { report.text() };
    say(&text, u8::from(report.has_failure()))
}
