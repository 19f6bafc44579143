//! The same `ringtree bench` under the launchers that people have: it finds its place, verifies every
//! element, and rank 0 alone prints.
//!
//! `tests/launchers.sh` installs them. Where one is missing its tests are skipped, except in continuous
//! integration (`CI=true`).

use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use ringtree_tests::program::{Ended, Program};

/// What each rank runs.
const RINGTREE: &str = env!("CARGO_BIN_EXE_ringtree");
const BENCH: [&str; 8] = ["bench", "all-reduce", "--sizes", "4,1000004", "-n", "2", "-w", "1"];

#[test]
fn open_mpi() {
    let Some(mpirun) = Mpi::installed("openmpi", "Open MPI") else { return };
    let ended = mpirun.bench(&["--oversubscribe", "-n", "3"], &[]);
    assert_one_table(&ended, 3, "Open MPI");
}

#[test]
fn open_mpi_on_several_hosts_is_told_what_it_leaves_open() {
    let Some(mpirun) = Mpi::installed("openmpi", "Open MPI") else { return };
    // Ranks that believe to be on a host each.
    let alone = "OMPI_COMM_WORLD_LOCAL_RANK=0 OMPI_COMM_WORLD_LOCAL_SIZE=1";
    let script = format!("exec env {alone} {RINGTREE} {}", BENCH.join(" "));
    let arguments = ["--oversubscribe", "-n", "2", "sh", "-c", &script];
    let ended = Program::start(mpirun.command(&arguments, &[])).await_end();
    assert!(!ended.status.success());
    ended.line("ringtree: Open MPI does not say where rank 0 is");

    let port = free_ports(1);
    let address = format!("RINGTREE_RENDEZVOUS=127.0.0.1:{port}");
    let arguments = [&["-x", &address, "-x", "RINGTREE_SECRET=x"], &arguments[..]].concat();
    let ended = Program::start(mpirun.command(&arguments, &[])).await_end();
    assert_one_table(&ended, 2, "Open MPI");
}

#[test]
fn mpich() {
    let Some(mpirun) = Mpi::installed("mpich", "MPICH") else { return };
    let ended = mpirun.bench(&["-n", "3"], &[]);
    assert_one_table(&ended, 3, "PMI");
}

#[test]
fn mpich_on_two_hosts() {
    let Some(mpirun) = Mpi::installed("mpich", "MPICH") else { return };
    // Two hosts by name, whose daemons are started here.
    let hosts = ["-launcher", "fork", "-hosts", "one,two", "-n", "4"];
    let ended = mpirun.bench(&hosts, &[("RINGTREE_SECRET", "x")]);
    assert_one_table(&ended, 4, "PMI");
    let ended = mpirun.bench(&hosts, &[]);
    assert!(!ended.status.success());
    ended.line("ringtree: the job has no secret: set RINGTREE_SECRET");
}

#[test]
fn intel_mpi() {
    let Some(mpirun) = Mpi::installed("impi", "Intel MPI") else { return };
    let root = mpirun.prefix.display().to_string();
    let ended = mpirun.bench(&["-n", "3"], &[("I_MPI_ROOT", &root)]);
    assert_one_table(&ended, 3, "PMI");
}

#[test]
fn slurm_on_four_nodes() {
    let Some(ended) = srun(&["-N4", "-n4"], &[("RINGTREE_SECRET", "x")]) else { return };
    assert_one_table(&ended, 4, "Slurm");
}

#[test]
fn slurm_with_pmi_on_four_nodes() {
    let secret = ("RINGTREE_SECRET", "x");
    let Some(ended) = srun(&["--mpi=pmi2", "-N4", "-n4"], &[secret]) else { return };
    assert_one_table(&ended, 4, "PMI");
}

#[test]
fn slurm_on_one_node_needs_no_secret() {
    for (options, launcher) in
        [(&["-N1", "-n3"][..], "Slurm"), (&["--mpi=pmi2", "-N1", "-n3"], "PMI")]
    {
        let Some(ended) = srun(options, &[]) else { return };
        assert_one_table(&ended, 3, launcher);
    }
}

#[test]
fn slurm_on_several_nodes_needs_a_secret() {
    let Some(ended) = srun(&["-N2", "-n2"], &[]) else { return };
    assert!(!ended.status.success());
    ended.line("ringtree: the job has no secret: set RINGTREE_SECRET");
}

/// The trainer beside the tool: its ranks find each other in the same ways, and learn the same.
#[test]
fn the_trainer_has_the_same_losses_under_all() {
    let program = Path::new(RINGTREE).with_file_name("ringtree-train");
    let program = program.to_str().expect("a path of letters");
    assert!(Path::new(program).exists(), "{program} is missing: cargo build -p ringtree-trainer");
    let folder = tempfile::tempdir().expect("a folder");
    let losses = |name: &str, ended: &Ended| {
        assert!(ended.status.success(), "{name}: {ended:#?}");
        let metrics = folder.path().join(name).join("metrics.jsonl");
        let text = std::fs::read_to_string(metrics).expect("metrics");
        let lines = text.lines().map(|line| serde_json::from_str(line).expect("JSON"));
        let steps = lines.filter(|line: &serde_json::Value| line["kind"] == "step");
        steps.map(|line| line["loss"].as_f64().expect("a number").to_bits()).collect::<Vec<_>>()
    };
    let arguments = |name: &str| {
        let out = folder.path().join(name).display().to_string();
        ["--steps", "12", "--out", &out].map(str::to_owned).to_vec()
    };
    let mut alone = bench_command(Command::new(program));
    alone.args(["--ranks", "3"]).args(arguments("itself"));
    let expected = losses("itself", &Program::start(alone).await_end());
    assert_eq!(expected.len(), 12);
    let mut run = bench_command(Command::new(RINGTREE));
    run.args(["run", "--ranks", "3", "--", program]).args(arguments("run"));
    assert_eq!(losses("run", &Program::start(run).await_end()), expected, "ringtree run");
    if let Some(mut torchrun) = torchrun_command(3) {
        torchrun.arg(program).args(arguments("torchrun"));
        let ended = Program::start(torchrun).await_end();
        assert_eq!(losses("torchrun", &ended), expected, "torchrun");
    }
    if let Some(mut srun) = srun_command(&["-N1", "-n3"]) {
        srun.arg(program).args(arguments("srun"));
        assert_eq!(losses("srun", &Program::start(srun).await_end()), expected, "srun");
    }
}

#[test]
fn torchrun() {
    let Some(mut command) = torchrun_command(3) else { return };
    command.arg(RINGTREE).args(BENCH);
    assert_one_table(&Program::start(command).await_end(), 3, "torchrun");
}

/// What starts a program's ranks by torchrun; `None` where it is missing.
fn torchrun_command(ranks: u32) -> Option<Command> {
    let prefix = launcher("torch");
    if !is_there(prefix.join("installed").exists(), "torchrun") {
        return None;
    }
    let packages = std::fs::read_dir(prefix.join("lib")).expect("a Python's folder");
    let mut packages = packages.map(|entry| entry.expect("an entry").path().join("site-packages"));
    let packages = packages.find(|path| path.is_dir()).expect("packages");
    // Each of its ports is one that the system gives it.
    let options = "--rdzv-backend c10d --rdzv-endpoint 127.0.0.1:0";
    let mut command = bench_command(Command::new("python3"));
    command.args(["-m", "torch.distributed.run", "--no-python"]);
    command.args(["--nproc-per-node", &ranks.to_string()]).args(options.split(' '));
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("PYTHONPATH", packages);
    Some(command)
}

/// What it told its ranks in an earlier version, as it was recorded.
#[test]
fn torchrun_of_an_earlier_version() {
    // As torchrun 2.9 does it. Its agent holds the port that it tells, and speaks its own protocol there.
    let port = free_ports(2);
    let _agent = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("a port");
    let ranks = (0..3).map(|rank| {
        let mut command = bench_command(Command::new(RINGTREE));
        command.args(BENCH).envs([
            ("RANK", rank.to_string()),
            ("LOCAL_RANK", rank.to_string()),
            ("ROLE_RANK", rank.to_string()),
            ("MASTER_PORT", port.to_string()),
        ]);
        command.envs([
            ("GROUP_RANK", "0"),
            ("GROUP_WORLD_SIZE", "1"),
            ("LOCAL_WORLD_SIZE", "3"),
            ("MASTER_ADDR", "127.0.0.1"),
            ("OMP_NUM_THREADS", "1"),
            ("ROLE_NAME", "default"),
            ("ROLE_WORLD_SIZE", "3"),
            ("TORCHELASTIC_MAX_RESTARTS", "0"),
            ("TORCHELASTIC_RESTART_COUNT", "0"),
            ("TORCHELASTIC_RUN_ID", "none"),
            ("TORCHELASTIC_USE_AGENT_STORE", "True"),
            ("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1"),
            ("WORLD_SIZE", "3"),
        ]);
        Program::start(command)
    });
    let ranks: Vec<Program> = ranks.collect();
    let ended: Vec<Ended> = ranks.into_iter().map(Program::await_end).collect();
    assert_one_table(&ended[0], 3, "torchrun");
    for other in &ended[1..] {
        assert!(other.status.success() && other.lines.is_empty(), "{other:#?}");
    }
}

/// An MPI under `target/launchers`.
struct Mpi {
    prefix: PathBuf,
}

impl Mpi {
    fn installed(folder: &str, name: &str) -> Option<Mpi> {
        let prefix = launcher(folder);
        is_there(prefix.join("installed").exists(), name).then_some(Mpi { prefix })
    }

    /// Its mpirun.
    fn command(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Command {
        let mut command = bench_command(Command::new(self.prefix.join("bin/mpirun")));
        let path = format!("{}/bin:/usr/bin:/bin", self.prefix.display());
        command.env("PATH", path).args(arguments).envs(environment.iter().copied());
        // Containers have no other user.
        command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
        command
    }

    fn bench(&self, options: &[&str], environment: &[(&str, &str)]) -> Ended {
        let arguments = [options, &[RINGTREE], &BENCH].concat();
        Program::start(self.command(&arguments, environment)).await_end()
    }
}

/// The bench on a cluster of its own; `None` where there can be none.
fn srun(options: &[&str], environment: &[(&str, &str)]) -> Option<Ended> {
    let mut command = srun_command(options)?;
    command.arg(RINGTREE).args(BENCH).envs(environment.iter().copied());
    Some(Program::start(command).await_end())
}

/// What starts a program's ranks on a cluster of its own; `None` where there can be none.
fn srun_command(options: &[&str]) -> Option<Command> {
    let has = |program: &str| Path::new("/usr/sbin").join(program).exists();
    let is_possible = has("slurmctld") && has("munged") && nix::unistd::getuid().is_root();
    is_there(is_possible, "Slurm").then(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/slurm.sh");
        let mut command = bench_command(Command::new("bash"));
        command.arg(script).arg("srun").args(options);
        command
    })
}

/// Where `tests/launchers.sh` puts one.
fn launcher(folder: &str) -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("target");
    target.join("launchers").join(folder)
}

/// A command that sees nothing of the environment of the tests.
fn bench_command(mut command: Command) -> Command {
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", "/tmp");
    command.env("RINGTREE_TIMEOUT", "30");
    command
}

fn is_there(is_there: bool, launcher: &str) -> bool {
    if !is_there {
        let in_ci = std::env::var("CI").is_ok_and(|value| value == "true");
        assert!(!in_ci, "{launcher} is missing: tests/launchers.sh installs it");
        // Not by a macro: the line shall be seen although the test passes.
        let _ = writeln!(io::stderr(), "SKIPPED, no test under {launcher}: see tests/launchers.sh");
    }
    is_there
}

/// The first of so many neighbouring ports that are free.
fn free_ports(count: u16) -> u16 {
    loop {
        let bind = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
        let first = bind(0).expect("a port");
        let port = first.local_addr().expect("an address").port();
        if (1..count).all(|more| port.checked_add(more).is_some_and(|port| bind(port).is_ok())) {
            return port;
        }
    }
}

/// Asserts that the ranks did it, and that one of them told of it.
#[track_caller]
fn assert_one_table(ended: &Ended, ranks: u32, launcher: &str) {
    let lines_with =
        |start: &str| ended.lines.iter().filter(|line| line.starts_with(start)).count();
    assert!(ended.status.success(), "{ended:#?}");
    assert_eq!(lines_with("# ringtree "), 1, "one table: {ended:#?}");
    assert!(ended.line("# ringtree ").contains(&format!("among {ranks} ranks")), "{ended:#?}");
    assert!(ended.line("# places told by ").starts_with(launcher), "{ended:#?}");
    let rows = ended.lines.iter().filter(|line| line.contains(" float "));
    let rows: Vec<Vec<&str>> = rows.map(|line| line.split_whitespace().collect()).collect();
    let bytes: Vec<&str> = rows.iter().map(|row| row[0]).collect();
    assert_eq!(bytes, ["4", "1000004"], "{ended:#?}");
    assert!(rows.iter().all(|row| (row[8], row[12]) == ("0", "0")), "{ended:#?}");
}
