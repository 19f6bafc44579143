//! `ringtree sim`: predicts how long each algorithm takes on a machine that is described.

mod flows;
mod topology;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use ringtree::selection::choose;
use ringtree::{Algorithm, Collective, Costs, LinkCosts, NetworkFigures, Shape};
use ringtree_plan::{Local, Machine, Representatives, Sent, Work};
use serde::Serialize;

use crate::bench::{bus_factor, sizes};
use crate::chart::{Chart, Curve, Over, Point, with_unit};
use crate::collective::{CollectiveName, algorithm, all_algorithm_names, serving};
use crate::topo::TopoError;
use crate::words::{counted, say};
use ringtree_launcher::report;

/// Predicts how long each algorithm takes.
///
/// The plans of all ranks are run on virtual time: a host passes one message after the other, each way,
/// at its bandwidth; a message is there a latency after it has left. Where ranks share hosts, they share
/// what the hosts pass, and reach each other through memory. A message's time beside its bytes, shared
/// memory and sums have the figures that the library's choice has. Among more than 1,024 ranks, each on
/// its host, an exact formula is taken where there is one. * is the algorithm that the library would
/// choose there.
///
/// With --topology there is a rank at each GPU of the machines that files describe (at each NUMA node of one
/// without GPUs), and a time is latency + bytes / bandwidth, without any cost of software. A ring goes over
/// all channels that the search finds, at their bandwidth together, and its latency is that of all hops one
/// after the other. A tree is the best one inside each host, and two binary trees between hosts. Direct is
/// each block by the best way to whom it is for; the link that is busy longest counts. Ports reach each
/// other at their speed: nothing is known of the network between.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  ringtree sim all-reduce --ranks 64 --bytes 16M --latency-us 10 --bandwidth 12.5G\n  \
                        ringtree sim all-gather --ranks 64 --hosts 8 --bytes 1M --latency-us 20 --bandwidth 1.25G\n  \
                        ringtree sim all-reduce --ranks 2,16,128,1024 --bytes 1M --latency-us 10 --bandwidth 12.5G --plot scaling.svg\n  \
                        ringtree sim all-reduce --topology topology.xml --bytes 1G\n  \
                        ringtree sim all-reduce --topology topology.xml --hosts 4 --bytes 1G"
)]
pub struct SimArguments {
    /// What all ranks do together
    #[arg(value_name = "COLLECTIVE")]
    collective: CollectiveName,
    /// How many ranks take part; several numbers, such as 2,16,128, are predicted one after the other
    #[arg(long, value_name = "N", required_unless_present = "topology", value_delimiter = ',',
          value_parser = clap::value_parser!(u32).range(1..=MAX_RANKS))]
    ranks: Vec<u32>,
    /// Size of the buffer, such as 64K or 1M; where it is cut into a block for each rank, of all blocks
    #[arg(long, value_name = "SIZE", value_parser = sizes::parse)]
    bytes: u64,
    /// Microseconds from the first byte's leaving a host to its arrival
    #[arg(long, value_name = "US", allow_negative_numbers = true)]
    #[arg(required_unless_present = "topology")]
    latency_us: Option<f64>,
    /// Bytes that a host sends and receives in a second, such as 12.5G; units are those of sizes
    #[arg(long, value_name = "RATE", value_parser = sizes::parse_rate)]
    #[arg(required_unless_present = "topology")]
    bandwidth: Option<f64>,
    /// Machines that the ranks are on, a file for each, as ringtree topo --xml reads them
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    #[arg(conflicts_with_all = ["ranks", "latency_us", "bandwidth", "algorithm", "plot"])]
    topology: Vec<PathBuf>,
    /// Hosts that the ranks are spread over evenly, neighbours together [default: one for each rank]; with
    /// one file of --topology, hosts of that kind [default: 1]
    #[arg(long, value_name = "H", value_parser = clap::value_parser!(u32).range(1..))]
    hosts: Option<u32>,
    #[arg(long, value_name = "NAME", help = format!("Only this algorithm: {}", all_algorithm_names()))]
    algorithm: Option<String>,
    /// Print one JSON document instead of the table
    #[arg(long)]
    json: bool,
    /// Also draw time and bus bandwidth over ranks into this file, as SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

/// More are not predicted in a few seconds.
const MAX_RANKS: i64 = 16_384;

/// From more ranks on, formulas are taken instead of plans where they are exact.
const MOST_PLANNED_RANKS: u32 = 1024;

/// Why nothing is predicted.
#[derive(Debug, thiserror::Error)]
enum SimError {
    #[error("--hosts {hosts} does not divide --ranks {ranks}: every host must have as many ranks")]
    Hosts { hosts: u32, ranks: u32 },
    #[error("--latency-us must be a number of at least 0")]
    Latency,
    #[error("{algorithm} is not an algorithm for this collective: write one of {valid}")]
    Algorithm { algorithm: String, valid: String },
    #[error("--plot draws curves over ranks: give several, such as --ranks 2,4,8,16")]
    OnePoint,
    #[error("cannot write {}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("cannot print: {0}")]
    Print(serde_json::Error),
    #[error(
        "--hosts {hosts} with {files} files: give one file, which is then each host's, or no --hosts"
    )]
    Files { hosts: usize, files: usize },
    #[error("{hosts} hosts are more than the {most} whose rings are planned: give fewer")]
    TooManyHosts { hosts: usize, most: usize },
    #[error(transparent)]
    Topology(#[from] TopoError),
}

/// Predicts what was asked for.
pub fn run(arguments: &SimArguments) -> ExitCode {
    match predict(arguments) {
        Ok(text) => say(&text, 0),
        Err(error) => {
            report(&error.to_string());
            ExitCode::from(2)
        }
    }
}

fn predict(arguments: &SimArguments) -> Result<String, SimError> {
    if !arguments.topology.is_empty() {
        return topology::predict(arguments);
    }
    let collective = arguments.collective.with_root(0);
    let only = arguments.algorithm.as_deref().map(|name| {
        algorithm(name, collective)
            .map_err(|valid| SimError::Algorithm { algorithm: name.to_owned(), valid })
    });
    let only = only.transpose()?;
    if !arguments.latency_us.is_some_and(|latency| latency.is_finite() && latency >= 0.0) {
        return Err(SimError::Latency);
    }
    if arguments.plot.is_some() && arguments.ranks.len() < 2 {
        return Err(SimError::OnePoint);
    }
    let sceneries: Result<Vec<Scenery>, SimError> =
        arguments.ranks.iter().map(|&ranks| Scenery::new(arguments, ranks)).collect();
    let predictions: Vec<Prediction> =
        sceneries?.into_iter().map(|scenery| scenery.predict(only)).collect();
    if let Some(path) = &arguments.plot {
        let written = chart(&predictions).write(path);
        written.map_err(|source| SimError::File { path: path.clone(), source })?;
    }
    if arguments.json {
        let document = serde_json::to_string_pretty(&predictions).map_err(SimError::Print)?;
        return Ok(document + "\n");
    }
    let tables: Vec<String> = predictions.iter().map(Prediction::table).collect();
    Ok(tables.join("\n"))
}

/// What is predicted, and for which machine.
#[derive(Clone, Copy, Debug, Serialize)]
struct Scenery {
    #[serde(serialize_with = "name")]
    collective: Collective,
    bytes: u64,
    ranks: u32,
    hosts: u32,
    latency_us: f64,
    bandwidth_bytes_per_s: f64,
}

/// All algorithms, fastest first.
#[derive(Debug, Serialize)]
struct Prediction {
    #[serde(flatten)]
    scenery: Scenery,
    rows: Vec<Row>,
    /// Algorithms whose plans have too many messages to be run.
    not_predicted: Vec<&'static str>,
}

/// What is predicted of one algorithm.
#[derive(Debug, Serialize)]
struct Row {
    algorithm: &'static str,
    time_us: f64,
    #[serde(rename = "algbw_GBps")]
    algbw_gbps: f64,
    #[serde(rename = "busbw_GBps")]
    busbw_gbps: f64,
    /// Of the rank that sends most, where not too many are sent to be counted.
    messages: Option<u64>,
    /// Of the host that sends most, in the same way.
    bytes_off_host: Option<f64>,
    predicted_by: By,
    chosen: bool,
}

/// How a time was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum By {
    Plan,
    Formula,
}

impl Scenery {
    fn new(arguments: &SimArguments, ranks: u32) -> Result<Scenery, SimError> {
        let hosts = arguments.hosts.unwrap_or(ranks);
        if !ranks.is_multiple_of(hosts) {
            return Err(SimError::Hosts { hosts, ranks });
        }
        let collective = arguments.collective.with_root(0);
        Ok(Scenery {
            collective,
            bytes: if collective == Collective::Barrier { 0 } else { arguments.bytes },
            ranks,
            hosts,
            // The command line asks for both without --topology.
            latency_us: arguments.latency_us.unwrap_or_default(),
            bandwidth_bytes_per_s: arguments.bandwidth.unwrap_or_default(),
        })
    }

    fn predict(self, only: Option<Algorithm>) -> Prediction {
        let chosen = choose(self.collective, self.bytes, &self.shape(), None).algorithm;
        // Without a host of several ranks beside others it is another algorithm under its name.
        let is_sensible = |a: &Algorithm| {
            *a != Algorithm::Hierarchical || (self.hosts > 1 && self.hosts < self.ranks)
        };
        let algorithms: Vec<Algorithm> = match only {
            Some(only) => vec![only],
            None => serving(self.collective).filter(is_sensible).collect(),
        };
        let (mut rows, mut not_predicted) = (vec![], vec![]);
        for algorithm in algorithms {
            match self.row(algorithm, algorithm == chosen) {
                Some(row) => rows.push(row),
                None => not_predicted.push(algorithm.name()),
            }
        }
        rows.sort_by(|a, b| a.time_us.total_cmp(&b.time_us));
        Prediction { scenery: self, rows, not_predicted }
    }

    fn row(&self, algorithm: Algorithm, chosen: bool) -> Option<Row> {
        let &Scenery { collective, bytes, ranks, hosts, .. } = self;
        let (machine, work) = (self.machine(), self.work(algorithm));
        let representatives = Representatives::new(algorithm, collective, ranks, machine);
        let by_formula = ranks > MOST_PLANNED_RANKS
            && machine.local.is_none()
            && algorithm.has_exact_form(collective, ranks, &work);
        let (once_s, predicted_by) = if by_formula {
            (algorithm.closed_form(collective, ranks, &machine, &work), By::Formula)
        } else {
            (representatives.as_ref()?.predict(work)?, By::Plan)
        };
        let runs = algorithm.runs_per_call(collective);
        let sent = representatives.map(|representatives| representatives.sent(work));
        let leaving = |sent: Sent| if hosts == 1 { 0.0 } else { sent.host_bytes };
        let time_us = f64::from(runs) * once_s * 1e6;
        let algbw_gbps = if bytes == 0 { 0.0 } else { bytes as f64 / time_us / 1e3 };
        Some(Row {
            algorithm: algorithm.name(),
            time_us,
            algbw_gbps,
            busbw_gbps: algbw_gbps * bus_factor(collective, ranks),
            messages: sent.map(|sent| u64::from(runs) * sent.messages),
            bytes_off_host: sent.map(|sent| f64::from(runs) * leaving(sent)),
            predicted_by,
            chosen,
        })
    }

    /// What the library would know of such a machine. Its ranks have a processor each.
    fn shape(&self) -> Shape {
        let locals = self.ranks / self.hosts;
        let costs = Costs::default();
        let tcp = LinkCosts {
            latency_s: self.latency_us / 1e6,
            bytes_per_s: self.bandwidth_bytes_per_s,
            ..costs.tcp
        };
        Shape {
            ranks: self.ranks,
            hosts: self.hosts,
            shared_memory: self.hosts == 1,
            rdma: false,
            local_ranks: locals,
            processors: locals,
            fewest_local_ranks: locals,
            reproducible: false,
            large_pages: false,
            tuned: None,
            order: None,
            costs: Costs { tcp, ..costs },
            network_figures: NetworkFigures::Settings,
        }
    }

    fn machine(&self) -> Machine {
        let Shape { ranks, hosts, costs: Costs { shm, tcp, reduced_bytes_per_s, .. }, .. } =
            self.shape();
        // On one host there is nothing but its memory.
        let way = if hosts == 1 { shm } else { tcp };
        let local = Local {
            ranks: ranks / hosts,
            latency_s: shm.latency_s,
            message_s: shm.message_s,
            bandwidth_bytes_per_s: shm.bytes_per_s,
        };
        Machine {
            latency_s: way.latency_s,
            message_s: way.message_s,
            bandwidth_bytes_per_s: way.bytes_per_s,
            reduction_bytes_per_s: reduced_bytes_per_s,
            local: (1 < hosts && hosts < ranks).then_some(local),
        }
    }

    /// The rounds and lanes that the library would take.
    fn work(&self, algorithm: Algorithm) -> Work {
        let choice = choose(self.collective, self.bytes, &self.shape(), Some(algorithm));
        let schedule = choice.schedule;
        let rounds = self.bytes.div_ceil(schedule.round_bytes as u64).max(1);
        let rounds = u32::try_from(rounds).unwrap_or(u32::MAX);
        Work { bytes: self.bytes as f64, rounds, lanes: rounds.min(schedule.lanes as u32) }
    }
}

impl Prediction {
    fn table(&self) -> String {
        let Scenery { collective, bytes, ranks, hosts, latency_us, bandwidth_bytes_per_s } =
            self.scenery;
        let Costs { shm, tcp, reduced_bytes_per_s, .. } = self.scenery.shape().costs;
        let gbps = |bytes_per_s: f64| format!("{:.2} GB/s", bytes_per_s / 1e9);
        let mut text = format!(
            "# {} of {bytes} bytes among {} on {}, predicted\n",
            collective.name(),
            counted(ranks, "rank"),
            counted(hosts, "host"),
        );
        if hosts > 1 {
            text += &format!(
                "# between hosts {latency_us} us and {} us a message, {} each way\n",
                short_us(tcp.message_s),
                gbps(bandwidth_bytes_per_s),
            );
        }
        if hosts < ranks {
            text += &format!(
                "# inside a host {} us and {} us a message, {} a rank\n",
                short_us(shm.latency_s),
                short_us(shm.message_s),
                gbps(shm.bytes_per_s),
            );
        }
        text += &format!("# sums {} a rank\n#\n", gbps(reduced_bytes_per_s));
        text += &format!(
            "# {:<16} {:>14} {:>8} {:>8} {:>10} {:>16}  {}\n",
            "algorithm", "time", "algbw", "busbw", "messages", "bytes", "predicted"
        );
        text += &format!(
            "# {:<16} {:>14} {:>8} {:>8} {:>10} {:>16}  {}\n",
            "", "(us)", "(GB/s)", "(GB/s)", "(a rank)", "(off a host)", "by"
        );
        for row in &self.rows {
            text += &format!(
                "{} {:<16} {:>14.2} {:>8.3} {:>8.3} {:>10} {:>16}  {}\n",
                if row.chosen { "*" } else { " " },
                row.algorithm,
                row.time_us,
                row.algbw_gbps,
                row.busbw_gbps,
                row.messages.map_or("-".into(), |messages| messages.to_string()),
                row.bytes_off_host.map_or("-".into(), |bytes| format!("{bytes:.0}")),
                row.predicted_by.name(),
            );
        }
        if !self.not_predicted.is_empty() {
            let names = self.not_predicted.join(", ");
            text += &format!("# too many messages to predict: {names}\n");
        }
        text
    }
}

impl By {
    fn name(self) -> &'static str {
        match self {
            By::Plan => "plan",
            By::Formula => "formula",
        }
    }
}

/// Time over ranks, a curve for each algorithm.
fn chart(predictions: &[Prediction]) -> Chart {
    let algorithms = Algorithm::ALL.into_iter().map(Algorithm::name);
    let curve = |(color, name): (usize, &'static str)| {
        let point = |prediction: &Prediction| {
            let row = prediction.rows.iter().find(|row| row.algorithm == name)?;
            Some(Point {
                x: prediction.scenery.ranks.into(),
                time_us: row.time_us,
                busbw_gbps: row.busbw_gbps,
                is_chosen: row.chosen,
            })
        };
        let points = predictions.iter().filter_map(point).collect();
        Curve { name: name.to_owned(), color, is_hollow: false, is_broken: false, points }
    };
    let has_any =
        |name: &&str| predictions.iter().any(|p| p.rows.iter().any(|row| row.algorithm == *name));
    let Scenery { collective, bytes, hosts, latency_us, bandwidth_bytes_per_s, .. } =
        predictions[0].scenery;
    let share_hosts = predictions.iter().all(|p| p.scenery.hosts == hosts);
    let on = if share_hosts { format!(" on {}", counted(hosts, "host")) } else { String::new() };
    Chart {
        title: format!(
            "{} of {} bytes{on}, {latency_us} us and {:.2} GB/s between hosts, predicted",
            collective.name(),
            with_unit(bytes),
            bandwidth_bytes_per_s / 1e9
        ),
        over: Over::Ranks,
        curves: algorithms.filter(has_any).enumerate().map(curve).collect(),
    }
}

fn short_us(seconds: f64) -> f64 {
    (seconds * 1e9).round() / 1e3
}

fn name<S: serde::Serializer>(collective: &Collective, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(collective.name())
}
