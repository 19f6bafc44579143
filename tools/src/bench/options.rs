//! What `ringtree bench` can be asked for, and what that means.

use std::path::PathBuf;

use clap::ValueEnum;
use ringtree::{Algorithm, Collective, DataType, MAX_SOCKETS, Op};
use serde::{Serialize, Serializer};

use super::call::{CallName, Called};
use super::sizes::{self, SizesError, Step};
use crate::collective::{CollectiveName, all_algorithm_names};
use ringtree_launcher::Binding;

/// The sweep that is measured unless another is asked for: 12 sizes, a few seconds.
const FIRST_BYTES: u64 = 8;
const LAST_BYTES: u64 = 32 << 20;
const FACTOR: u64 = 4;

/// Time for one row and placement, unless set.
const TIME_MS: f64 = 100.0;

/// Measures a collective between processes and checks every element of every result.
///
/// Alone it starts the ranks itself, as processes of this host. Under a launcher (ringtree run,
/// mpirun, srun, torchrun and others) it joins them. Without sizes it measures 8 bytes to 32 MiB, each size four times the
/// last, in a few seconds. The table and the options -b to -r are those of nccl-tests; a time is
/// the median over iterations of the slowest rank's time, with a barrier before each. Where buffers
/// are cut into a block for each rank, a size is that of all blocks, and the count that of one.
///
/// The exit status is 1 if an element was wrong, or a time lost more than --max-loss allows.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  ringtree bench all-reduce --ranks 4\n  \
                        ringtree bench all-reduce --ranks 2 -b 1M -e 64M -f 2 --transport tcp\n  \
                        ringtree bench broadcast --sizes 0,4,1000 -d all -r -1")]
pub struct BenchArguments {
    /// What to measure
    #[arg(value_name = "COLLECTIVE")]
    pub call: CallName,
    /// How many processes to start [default: one a processor, at least 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub ranks: Option<u32>,

    /// Smallest size, such as 8 or 64K [default: 8]
    #[arg(short = 'b', long = "minbytes", value_name = "SIZE", value_parser = sizes::parse)]
    first_bytes: Option<u64>,
    /// Largest size [default: 32M]
    #[arg(short = 'e', long = "maxbytes", value_name = "SIZE", value_parser = sizes::parse)]
    last_bytes: Option<u64>,
    /// From one size to the next: so much more
    #[arg(short = 'i', long = "stepbytes", value_name = "SIZE", value_parser = sizes::parse)]
    step_bytes: Option<u64>,
    /// From one size to the next: so many times as much [default: 4]
    #[arg(short = 'f', long = "stepfactor", value_name = "FACTOR", conflicts_with = "step_bytes")]
    factor: Option<u64>,
    /// Exactly these sizes instead, such as 0,4,64K
    #[arg(
        long = "sizes",
        value_name = "LIST",
        value_delimiter = ',',
        value_parser = sizes::parse,
        conflicts_with_all = ["first_bytes", "last_bytes", "step_bytes", "factor"]
    )]
    list: Option<Vec<u64>>,
    /// Iterations of each loop [default: as many as --time-ms allows, at most 3000]
    #[arg(short = 'n', long = "iters", value_name = "COUNT",
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    iterations: Option<u32>,
    /// Calls before the measurement [default: 50, for large sizes fewer]
    #[arg(short = 'w', long = "warmup_iters", value_name = "COUNT")]
    warm_up: Option<u32>,
    /// How often to check the result of each row; 0 leaves it out
    #[arg(short = 'c', long = "check", value_name = "COUNT", default_value_t = 1)]
    checks: u32,
    /// Operation: sum, product, min, max, average, premulsum, and, or, xor, or all that the type has
    #[arg(short = 'o', long = "op", value_name = "OP", default_value = "sum", value_parser = ops)]
    ops: Ops,
    /// Type of the elements: float, double, half, bfloat16, f8e4m3, f8e5m2, int8, uint8, int32, uint32,
    /// int64, uint64 (or f32, f16, i8 and so on) or all
    #[arg(short = 'd', long = "datatype", value_name = "TYPE", default_value = "float",
          value_parser = data_types)]
    data_types: DataTypes,
    /// Root of a broadcast, reduce, gather or scatter; -1 means each rank in turn
    #[arg(short = 'r', long = "root", value_name = "RANK", default_value_t = 0,
          allow_negative_numbers = true, value_parser = clap::value_parser!(i64).range(-1..))]
    root: i64,

    /// Which transports may be used
    #[arg(long, value_name = "NAME", default_value = "auto")]
    pub transport: Transport,
    /// Encrypt what goes over TCP, as RINGTREE_ENCRYPT=1 does
    #[arg(long)]
    encrypt: bool,
    /// Connections between two ranks over TCP, as RINGTREE_SOCKETS; more than one helps where the
    /// network limits what a connection carries
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_SOCKETS)))]
    sockets: Option<u32>,
    /// Ordinary memory, memory that the library allocates and peers can read, or memory of a GPU
    #[arg(long, value_name = "KIND", default_value = "plain")]
    memory: Memory,
    /// GPUs of each host that ranks use, one after the other; with --memory device also how many processes to
    /// start, unless --ranks says otherwise [default: all there are]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub gpus: Option<u32>,
    /// The CUDA driver's library, as RINGTREE_CUDA_LIBRARY
    #[arg(long, value_name = "FILE")]
    pub cuda_library: Option<PathBuf>,
    /// Have each rank write its buffers before each timed call, as a trainer writes its gradients;
    /// calls in a row (the loop in the JSON output) are timed without
    #[arg(long)]
    touch: bool,
    /// Wait for each call before the next, as is done unless --async says otherwise
    #[arg(long, conflicts_with = "asynchronous")]
    blocking: bool,
    /// Post so many calls at once, each on buffers of its own, and wait for all; a time is that of one
    #[arg(long = "async", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    asynchronous: Option<u16>,
    /// What each rank is bound to; where another launcher starts the ranks, that one binds them
    #[arg(long, value_name = "TO", default_value = "none")]
    pub bind: Binding,
    /// Measure in place only
    #[arg(long)]
    in_place: bool,
    /// Measure out of place only
    #[arg(long)]
    out_of_place: bool,
    #[arg(long, value_name = "NAME", help = format!(
        "Use this algorithm: {}; or each in turn: all", all_algorithm_names()
    ))]
    algorithm: Option<String>,
    /// Milliseconds for each row and placement [default: 100]
    #[arg(long, value_name = "MS", conflicts_with = "iterations", allow_negative_numbers = true)]
    time_ms: Option<f64>,
    /// Also write the whole run into this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Also write the rows into this file, as comma-separated values under a line of names
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// Also draw time and bus bandwidth over size into this file, as SVG: a curve for each algorithm, type
    /// and so on that is measured, and the earlier run's
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
    /// Also record one more call of each row with --memory device, and write into this file when ranks' copies, kernels
    /// and messages began and ended, for https://ui.perfetto.dev to draw; the lines below the table say how near each
    /// call came to the time of what was busiest
    #[arg(long, value_name = "FILE")]
    pub timeline: Option<PathBuf>,
    /// Also say how each time has changed since an earlier run, which --json wrote into this file
    #[arg(long, value_name = "FILE")]
    pub baseline: Option<PathBuf>,
    /// Fail where a row takes more than so many percent (and 2 us) longer than in the earlier run
    #[arg(
        long = "max-loss",
        value_name = "PERCENT",
        requires = "baseline",
        allow_negative_numbers = true
    )]
    pub max_loss_percent: Option<f64>,
    /// Print one JSON object a row and placement instead of the table
    #[arg(long)]
    jsonl: bool,
    /// Also print how the times of single calls are spread
    #[arg(long)]
    percentiles: bool,
    /// Also print which ranks were last, and how often
    #[arg(long)]
    stragglers: bool,
    /// Also print which algorithms could be used, and how long each should take
    #[arg(long)]
    explain: bool,
}

/// Transports by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// Shared memory where ranks share a host, RDMA elsewhere where both ends have it, else TCP
    Auto,
    /// Shared memory only
    Shm,
    /// TCP only
    Tcp,
    /// RDMA only
    Rdma,
    /// RDMA where both ends have it, else TCP, on one host too
    #[value(name = "rdma,tcp")]
    #[serde(rename = "rdma,tcp")]
    RdmaOrTcp,
}

/// Where buffers come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Memory {
    /// Ordinary memory
    Plain,
    /// Memory of the library
    Registered,
    /// Memory of a GPU
    Device,
}

/// Where results go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// Into a buffer of their own.
    OutOfPlace,
    /// Over the input.
    InPlace,
}

/// Iterations of a loop.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Iterations {
    /// So many.
    Fixed(u32),
    /// As many as fit so many milliseconds, with the other loop's.
    TimeMs(f64),
}

/// By which algorithm a case is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// By the one that the library chooses.
    Choice,
    /// By this one.
    One(Algorithm),
    /// By each that there is, one after the other.
    Each,
}

impl Serialize for By {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            By::Choice => serializer.serialize_none(),
            By::One(algorithm) => serializer.serialize_str(algorithm.name()),
            By::Each => serializer.serialize_str("all"),
        }
    }
}

/// What is measured: the options with everything decided.
#[derive(Clone, Debug, Serialize)]
pub struct Measurement {
    /// The call.
    #[serde(rename = "collective")]
    pub call: CallName,
    /// Sizes, in the order in which they are measured.
    pub sizes_bytes: Vec<u64>,
    /// Types of the elements.
    #[serde(serialize_with = "type_names")]
    pub data_types: Vec<DataType>,
    /// Operations; none where nothing is reduced.
    #[serde(serialize_with = "op_names")]
    pub ops: Vec<Op>,
    /// The root; `None`: each rank in turn, or there is none.
    pub root: Option<u32>,
    /// Out of place, in place.
    pub placements: Vec<Placement>,
    /// Where the buffers come from.
    pub memory: Memory,
    /// GPUs of each host that ranks use; `None`: all.
    pub gpus: Option<u32>,
    /// Each rank writes its buffers before each timed call.
    pub touch: bool,
    /// Calls that are under way at once; `None`: each is waited for, and is a blocking one.
    #[serde(rename = "async")]
    pub asynchronous: Option<usize>,
    /// Transports that may be used.
    pub transport: Transport,
    /// Encrypt what goes over TCP, if the environment does not say so already.
    pub encrypt: bool,
    /// Connections of a TCP link, if not what the environment says.
    pub sockets: Option<u32>,
    /// By which algorithm.
    #[serde(rename = "algorithm")]
    pub by: By,
    /// Iterations of a loop.
    pub iterations: Iterations,
    /// Calls before the measurement; `None`: by size.
    pub warm_up: Option<u32>,
    /// Checks of a row.
    pub checks: u32,
    /// Record a timeline of each row.
    #[serde(skip)]
    pub timeline: bool,
    /// Print JSON instead of the table.
    #[serde(skip)]
    pub jsonl: bool,
    /// Say how times are spread.
    #[serde(skip)]
    pub percentiles: bool,
    /// Say who was last.
    #[serde(skip)]
    pub stragglers: bool,
    /// Explain the choice of the algorithm.
    #[serde(skip)]
    pub explain: bool,
}

/// A size that cannot be measured as it is.
#[derive(Clone, Copy, Debug)]
pub struct CutSize {
    /// What was asked for.
    pub bytes: u64,
    /// What is measured.
    pub measured_bytes: u64,
    /// Type of the elements.
    pub data_type: DataType,
    /// Equal blocks that it is cut into.
    pub blocks: usize,
}

/// Why a measurement makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum OptionError {
    /// No sizes.
    #[error(transparent)]
    Sizes(#[from] SizesError),
    /// The algorithm is for something else.
    #[error("{algorithm} is not an algorithm for this collective: write one of {valid}")]
    Algorithm {
        /// What was asked for.
        algorithm: String,
        /// What would do.
        valid: String,
    },
    /// Less than one element.
    #[error("a size of {bytes} is less than one {name}: the smallest is {element_bytes}, or 0")]
    NoElement {
        /// What was asked for.
        bytes: u64,
        /// Type of the elements.
        name: &'static str,
        /// Size of one.
        element_bytes: usize,
    },
    /// Nothing to measure.
    #[error("{name} has no such operation: it has {has}")]
    NoOperation {
        /// Type of the elements.
        name: &'static str,
        /// The operations that it has.
        has: String,
    },
    /// No such rank.
    #[error("-r {root} is not below --ranks {ranks}: ranks count from 0")]
    Root {
        /// What was asked for.
        root: i64,
        /// How many ranks there are.
        ranks: u32,
    },
    /// Not this way.
    #[error("{name} is not offered in place: leave --in-place out")]
    InPlace {
        /// The collective.
        name: &'static str,
    },
    /// Not this way.
    #[error("{name} is not offered asynchronously by the tool: leave --async out")]
    Asynchronous {
        /// The call.
        name: &'static str,
    },
    /// Not on a GPU.
    #[error("{what} is not offered on memory of a GPU: leave --memory device out")]
    Device {
        /// What was asked for.
        what: &'static str,
    },
    /// Only on a GPU.
    #[error("{option} is for --memory device")]
    NoDevice {
        /// What was given.
        option: &'static str,
    },
    /// Nothing that curves could go over.
    #[error("--plot draws curves over sizes above 0, and there are none: leave it out")]
    NoCurve,
    /// No time to measure in.
    #[error("--time-ms must be above 0")]
    Time,
    /// No loss that a time can have.
    #[error("--max-loss must be a percentage of at least 0, such as 10")]
    MaxLoss,
    /// A launcher has decided how many ranks there are.
    #[error("the launcher has started {launched} ranks: leave --ranks {asked} out")]
    Ranks {
        /// What was asked for.
        asked: u32,
        /// What there is.
        launched: u32,
    },
}

impl BenchArguments {
    /// Decides everything that `ranks` ranks are to measure.
    pub fn decide(&self, ranks: u32) -> Result<Measurement, OptionError> {
        if let Some(asked) = self.ranks.filter(|&asked| asked != ranks) {
            return Err(OptionError::Ranks { asked, launched: ranks });
        }
        let time_ms = self.time_ms.unwrap_or(TIME_MS);
        if time_ms.is_nan() || time_ms <= 0.0 {
            return Err(OptionError::Time);
        }
        if self.max_loss_percent.is_some_and(|percent| percent.is_nan() || percent < 0.0) {
            return Err(OptionError::MaxLoss);
        }
        let called = self.call.with_root(0);
        if self.root >= i64::from(ranks) {
            return Err(OptionError::Root { root: self.root, ranks });
        }
        if self.asynchronous.is_some() && matches!(called, Called::Varied(_)) {
            return Err(OptionError::Asynchronous { name: called.name() });
        }
        if self.memory == Memory::Device {
            if matches!(called, Called::Even(Collective::Barrier)) {
                return Err(OptionError::Device { what: called.name() });
            }
            if self.asynchronous.is_some() {
                return Err(OptionError::Device { what: "--async" });
            }
        } else if let Some(option) = self.option_for_devices() {
            return Err(OptionError::NoDevice { option });
        }
        let sizes_bytes = self.sizes()?;
        if self.plot.is_some() && sizes_bytes.iter().all(|&bytes| bytes == 0) {
            return Err(OptionError::NoCurve);
        }
        if let Some(smallest) = self.data_types.0.iter().min_by_key(|t| t.size_bytes()) {
            let (name, element_bytes) = (smallest.name(), smallest.size_bytes());
            let too_small = |bytes: &&u64| (1..element_bytes as u64).contains(*bytes);
            if let Some(&bytes) = sizes_bytes.iter().find(too_small) {
                return Err(OptionError::NoElement { bytes, name, element_bytes });
            }
        }
        // Of all types, those that have the operation are measured.
        let reduces = called.is_reduction();
        let has_any = |t: &DataType| !reduces || self.ops.0.iter().any(|op| t.has(*op));
        if let (Some(data_type), false) =
            (self.data_types.0.first(), self.data_types.0.iter().any(has_any))
        {
            let has: Vec<&str> = data_type.ops().map(Op::name).collect();
            return Err(OptionError::NoOperation { name: data_type.name(), has: has.join(", ") });
        }
        Ok(Measurement {
            call: self.call,
            sizes_bytes,
            data_types: self.data_types.0.clone(),
            ops: if reduces { self.ops.0.clone() } else { Vec::new() },
            root: u32::try_from(self.root).ok().filter(|_| called.root().is_some()),
            placements: self.placements(called)?,
            memory: self.memory,
            gpus: self.gpus,
            touch: self.touch,
            asynchronous: self.asynchronous.map(usize::from),
            transport: self.transport,
            encrypt: self.encrypt,
            sockets: self.sockets,
            by: self.by()?,
            iterations: match self.iterations {
                Some(count) => Iterations::Fixed(count),
                None => Iterations::TimeMs(time_ms),
            },
            warm_up: self.warm_up,
            checks: self.checks,
            timeline: self.timeline.is_some(),
            jsonl: self.jsonl,
            percentiles: self.percentiles,
            stragglers: self.stragglers,
            explain: self.explain,
        })
    }

    /// An option that is only for memory of a GPU.
    fn option_for_devices(&self) -> Option<&'static str> {
        let given = [
            ("--gpus", self.gpus.is_some()),
            ("--cuda-library", self.cuda_library.is_some()),
            ("--timeline", self.timeline.is_some()),
        ];
        given.into_iter().find_map(|(option, is_given)| is_given.then_some(option))
    }

    fn sizes(&self) -> Result<Vec<u64>, OptionError> {
        if self.call == CallName::Even(CollectiveName::Barrier) {
            return Ok(vec![0]);
        }
        if let Some(list) = &self.list {
            return Ok(list.clone());
        }
        let step = match self.step_bytes {
            Some(bytes) => Step::Add(bytes),
            None => Step::Multiply(self.factor.unwrap_or(FACTOR)),
        };
        // One end alone moves the other one out of its way.
        let first =
            self.first_bytes.unwrap_or(self.last_bytes.unwrap_or(FIRST_BYTES).min(FIRST_BYTES));
        let last = self.last_bytes.unwrap_or(LAST_BYTES.max(first));
        Ok(sizes::sweep(first, last, step)?)
    }

    fn placements(&self, called: Called) -> Result<Vec<Placement>, OptionError> {
        let mut placements = match (self.in_place, self.out_of_place) {
            (true, false) => vec![Placement::InPlace],
            (false, true) => vec![Placement::OutOfPlace],
            _ => vec![Placement::OutOfPlace, Placement::InPlace],
        };
        placements.retain(|placement| called.can_be(*placement));
        if placements.is_empty() {
            return Err(OptionError::InPlace { name: called.name() });
        }
        Ok(placements)
    }

    fn by(&self) -> Result<By, OptionError> {
        match self.algorithm.as_deref() {
            None => Ok(By::Choice),
            Some("all") => Ok(By::Each),
            Some(name) => {
                let called = self.call.with_root(0);
                let named = called.serving().find(|algorithm| algorithm.name() == name);
                named.map(By::One).ok_or_else(|| {
                    let names: Vec<&str> = called.serving().map(Algorithm::name).collect();
                    let valid = match names[..] {
                        [] => "none: leave --algorithm out".to_owned(),
                        _ => names.join(", "),
                    };
                    OptionError::Algorithm { algorithm: name.to_owned(), valid }
                })
            }
        }
    }
}

impl Measurement {
    /// The sizes that are no whole number of a type's elements, or of equal blocks of them for
    /// `ranks`.
    pub fn cut_sizes(&self, ranks: u32) -> impl Iterator<Item = CutSize> {
        let blocks = self.blocks(ranks);
        let cut_size = move |bytes: u64, data_type: DataType| {
            let unit_bytes = (data_type.size_bytes() * blocks) as u64;
            let measured_bytes = bytes / unit_bytes * unit_bytes;
            CutSize { bytes, measured_bytes, data_type, blocks }
        };
        self.data_types.iter().flat_map(move |&data_type| {
            let sizes = self.sizes_bytes.iter().map(move |&bytes| cut_size(bytes, data_type));
            sizes.filter(|size| size.measured_bytes != size.bytes)
        })
    }

    /// Blocks of the longer buffer among `ranks`.
    pub fn blocks(&self, ranks: u32) -> usize {
        self.call.with_root(0).blocks(ranks)
    }
}

impl Placement {
    /// Name in a sentence.
    pub const fn name(self) -> &'static str {
        match self {
            Placement::OutOfPlace => "out of place",
            Placement::InPlace => "in place",
        }
    }
}

impl Memory {
    /// Name in the heading.
    pub fn name(self) -> &'static str {
        match self {
            Memory::Plain => "plain",
            Memory::Registered => "registered",
            Memory::Device => "GPU",
        }
    }
}

/// What bus bandwidth is to algorithm bandwidth among `ranks`, as nccl-tests counts it.
pub fn bus_factor(collective: Collective, ranks: u32) -> f64 {
    let others = f64::from(ranks - 1) / f64::from(ranks);
    match collective {
        Collective::AllReduce => 2.0 * others,
        Collective::Broadcast { .. } | Collective::Reduce { .. } | Collective::Barrier => 1.0,
        Collective::AllGather
        | Collective::ReduceScatter
        | Collective::Gather { .. }
        | Collective::Scatter { .. }
        | Collective::AllToAll => others,
    }
}

/// One type or all: a value of one option.
#[derive(Clone, Debug)]
struct DataTypes(Vec<DataType>);

/// One operation or all: a value of one option.
#[derive(Clone, Debug)]
struct Ops(Vec<Op>);

fn data_types(text: &str) -> Result<DataTypes, String> {
    Ok(DataTypes(vec![match text {
        "float" | "f32" | "float32" => DataType::F32,
        "double" | "f64" | "float64" => DataType::F64,
        "bfloat16" | "bf16" => DataType::Bf16,
        "half" | "f16" | "float16" => DataType::F16,
        "f8e4m3" | "fp8_e4m3" => DataType::F8E4M3,
        "f8e5m2" | "fp8_e5m2" => DataType::F8E5M2,
        "int8" | "i8" | "char" => DataType::I8,
        "uint8" | "u8" => DataType::U8,
        "int32" | "i32" | "int" => DataType::I32,
        "uint32" | "u32" => DataType::U32,
        "int64" | "i64" => DataType::I64,
        "uint64" | "u64" => DataType::U64,
        "all" => return Ok(DataTypes(DataType::ALL.to_vec())),
        _ => {
            return Err(
                "the types are float, double, half, bfloat16, f8e4m3, f8e5m2, int8, uint8, \
                        int32, uint32, int64, uint64 and all"
                    .into(),
            );
        }
    }]))
}

fn ops(text: &str) -> Result<Ops, String> {
    // As nccl-tests calls them.
    let text = match text {
        "prod" => "product",
        "avg" => "average",
        "mulsum" => "premulsum",
        _ => text,
    };
    match text {
        "all" => Ok(Ops(Op::ALL.to_vec())),
        _ => match Op::ALL.into_iter().find(|op| op.name() == text) {
            Some(op) => Ok(Ops(vec![op])),
            None => {
                let names: Vec<&str> = Op::ALL.into_iter().map(Op::name).collect();
                Err(format!("the operations are {} and all", names.join(", ")))
            }
        },
    }
}

fn type_names<S: Serializer>(types: &[DataType], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(types.iter().map(|data_type| data_type.name()))
}

fn op_names<S: Serializer>(ops: &[Op], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(ops.iter().map(|op| op.name()))
}
