//! Environments as launchers made them, and what is wrong with some.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use super::*;
use crate::settings::{Origins, Settings};

/// torchrun 2.9, `--nnodes 2 --nproc-per-node 2 --master-addr node0 --master-port 29444`.
const TORCHRUN: &str = "RANK=3 WORLD_SIZE=4 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 GROUP_RANK=1 \
    GROUP_WORLD_SIZE=2 ROLE_NAME=default ROLE_RANK=3 ROLE_WORLD_SIZE=4 MASTER_ADDR=node0 \
    MASTER_PORT=29444 TORCHELASTIC_RUN_ID=none TORCHELASTIC_USE_AGENT_STORE=True";

/// torchrun 2.9, `--standalone --nproc-per-node 2`.
const TORCHRUN_ON_ONE_HOST: &str = "RANK=1 WORLD_SIZE=2 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 GROUP_RANK=0 \
    GROUP_WORLD_SIZE=1 ROLE_NAME=default ROLE_RANK=1 ROLE_WORLD_SIZE=2 MASTER_ADDR=localhost \
    MASTER_PORT=36660 TORCHELASTIC_RUN_ID=5f2a TORCHELASTIC_USE_AGENT_STORE=True";

/// Open MPI 5.0.11, `mpirun -n 2`.
const OPEN_MPI: &str = "OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2 \
    OMPI_COMM_WORLD_LOCAL_RANK=1 OMPI_COMM_WORLD_LOCAL_SIZE=2 OMPI_COMM_WORLD_NODE_RANK=1 \
    OMPI_UNIVERSE_SIZE=2 PMIX_NAMESPACE=prterun-vm-12074@1 PMIX_RANK=1 PMIX_HOSTNAME=vm";

/// MPICH 5.0.2 and Intel MPI 2021.18, `mpirun -n 2`, without the descriptor.
const MPICH: &str = "PMI_RANK=1 PMI_SIZE=2 MPI_LOCALRANKID=1 MPI_LOCALNRANKS=2";

/// Slurm 22.05, `srun --nodes 4 --ntasks 5`.
const SLURM: &str = "SLURM_PROCID=4 SLURM_NTASKS=5 SLURM_NPROCS=5 SLURM_STEP_NUM_TASKS=5 \
    SLURM_LOCALID=0 SLURM_NODEID=3 SLURM_NNODES=4 SLURM_STEP_NUM_NODES=4 SLURM_JOB_ID=7 \
    SLURM_STEP_ID=2 SLURM_STEP_NODELIST=n[1-4] SLURM_JOB_NODELIST=n[1-4] \
    SLURM_STEP_TASKS_PER_NODE=2,1(x3) SLURM_LAUNCH_NODE_IPADDR=10.0.0.9";

/// The same with `--mpi=pmi2`, without the descriptor.
const SLURM_PMI2: &str = "PMI_RANK=4 PMI_SIZE=5 PMI_JOBID=7.2";

/// Kubeflow's trainer, one process a node.
const KUBEFLOW: &str = "PET_NNODES=4 PET_NPROC_PER_NODE=1 PET_NODE_RANK=2 \
    PET_MASTER_ADDR=sum-node-0-0.sum PET_MASTER_PORT=29400";

/// A pod whose name comes with its domain (`setHostnameAsFQDN`).
const INDEXED_JOB: &str = "JOB_COMPLETION_INDEX=3 HOSTNAME=sum-3.ranks.lab.svc.cluster.local \
    RINGTREE_RANKS=4";

const HOROVOD: &str = "HOROVOD_RANK=1 HOROVOD_SIZE=2 HOROVOD_LOCAL_RANK=1 HOROVOD_LOCAL_SIZE=2 \
    HOROVOD_GLOO_RENDEZVOUS_ADDR=10.0.0.1 HOROVOD_GLOO_RENDEZVOUS_PORT=41234";

/// A file of this host.
const HERE: &str = "file:";

/// What a rank finds out in an environment that has a secret. Words are separated by spaces; of two that
/// set the same variable the later one counts, and an empty value is as good as none.
fn told(words: &[&str]) -> Result<(Settings, Origins), String> {
    let all = ["RINGTREE_SECRET=x"].iter().chain(words).flat_map(|words| words.split_whitespace());
    let pair = |word: &str| {
        let (name, value) = word.split_once('=').expect("NAME=value");
        (name.to_string(), value.to_string())
    };
    Settings::with_origins(&all.map(pair).collect()).map_err(|error| error.to_string())
}

#[track_caller]
fn settings(words: &[&str]) -> Settings {
    told(words).expect("a place").0
}

#[track_caller]
fn refused(words: &[&str]) -> String {
    told(words).expect_err("no place")
}

/// Source, rank, ranks, local rank and rendezvous.
fn place_of(settings: &Settings) -> (Source, u32, u32, Option<u32>, &str) {
    let Settings { source, rank, ranks, local_rank, rendezvous, .. } = settings;
    let rendezvous = if rendezvous.starts_with("file:") { HERE } else { rendezvous };
    (*source, *rank, *ranks, *local_rank, rendezvous)
}

#[test]
fn each_launcher_tells_a_place() {
    let cases = [
        (TORCHRUN, (Source::Torchrun, 3, 4, Some(1), "node0:29445")),
        (TORCHRUN_ON_ONE_HOST, (Source::Torchrun, 1, 2, Some(1), HERE)),
        (OPEN_MPI, (Source::OpenMpi, 1, 2, Some(1), HERE)),
        (SLURM, (Source::Slurm, 4, 5, Some(0), "n1:29929")),
        (KUBEFLOW, (Source::Kubeflow, 2, 4, None, "sum-node-0-0.sum:29400")),
        (INDEXED_JOB, (Source::IndexedJob, 3, 4, None, "sum-0.ranks.lab.svc.cluster.local:29500")),
        (HOROVOD, (Source::Horovod, 1, 2, Some(1), HERE)),
        ("", (Source::Alone, 0, 1, None, "127.0.0.1:0")),
    ];
    for (words, place) in cases {
        let told = settings(&[words]);
        assert_eq!(place_of(&told), place);
        // What is set by hand goes before what the launcher says.
        let set = settings(&[words, "RINGTREE_RENDEZVOUS=n9:7"]);
        let at = if place.0 == Source::Alone { "127.0.0.1:0" } else { "n9:7" };
        assert_eq!(set.rendezvous, at, "{words}");
    }
}

#[test]
fn slurm_tells_the_switches_above_a_node() {
    let switches = |address: &str| {
        let told = settings(&[SLURM, &format!("SLURM_TOPOLOGY_ADDR={address}")]);
        told.switches
    };
    assert_eq!(switches("spine1.leaf3.n4").as_deref(), Some("spine1.leaf3"));
    assert_eq!(switches("leaf3.n4").as_deref(), Some("leaf3"));
    // Without a plugin that knows them.
    assert_eq!(switches("n4"), None);
    assert_eq!(settings(&[SLURM]).switches, None);
    // Whoever starts the ranks in the job.
    let told = settings(&[SLURM, OPEN_MPI, "SLURM_TOPOLOGY_ADDR=leaf3.n4"]);
    assert_eq!((told.source, told.switches.as_deref()), (Source::OpenMpi, Some("leaf3")));
}

#[test]
fn launchers_are_asked_in_order() {
    let ours = "RINGTREE_RANK=0 RINGTREE_RANKS=2 RINGTREE_RENDEZVOUS=n1:7";
    let tf_config =
        r#"TF_CONFIG={"cluster":{"worker":["a:1"]},"task":{"type":"worker","index":0}}"#;
    let all = [
        (Source::Ringtree, ours),
        (Source::Torchrun, TORCHRUN),
        (Source::OpenMpi, OPEN_MPI),
        (Source::Pmi, MPICH),
        (Source::Slurm, SLURM),
        (Source::Kubeflow, KUBEFLOW),
        (Source::IndexedJob, INDEXED_JOB),
        (Source::TfConfig, tf_config),
        (Source::Horovod, HOROVOD),
    ];
    for first in 0..all.len() {
        let words: Vec<&str> = all[first..].iter().map(|(_, words)| *words).collect();
        let set = settings(&[&words[..], &["PMI_FD=9 RINGTREE_RENDEZVOUS=n1:7"]].concat());
        assert_eq!(set.source, all[first].0);
    }
}

#[test]
fn which_variable_told_what_is_known() {
    let (_, origins) = told(&[SLURM]).unwrap();
    let expected = Origins {
        rank: "SLURM_PROCID",
        ranks: "SLURM_STEP_NUM_TASKS",
        local_rank: "SLURM_LOCALID",
        rendezvous: "SLURM_STEP_NODELIST",
        job: "SLURM_JOB_ID",
    };
    assert_eq!(origins, expected);
    let (_, origins) = told(&[SLURM, "RINGTREE_RENDEZVOUS=n1:7 RINGTREE_JOB=sum"]).unwrap();
    assert_eq!((origins.rendezvous, origins.job), ("RINGTREE_RENDEZVOUS", "RINGTREE_JOB"));
    assert_eq!(told(&[]).unwrap().1.rank, "");
}

#[test]
fn what_is_half_told_is_a_mistake_that_names_the_other_half() {
    for (words, missing) in [
        ("RINGTREE_RANK=0", "RINGTREE_RANKS is not set"),
        ("RINGTREE_RANKS=2", "RINGTREE_RANK is not set"),
        ("RANK=0", "RANK is set and WORLD_SIZE is not"),
        ("WORLD_SIZE=2", "WORLD_SIZE is set and RANK is not"),
        ("RANK=0 WORLD_SIZE=2", "MASTER_ADDR is not set"),
        ("OMPI_COMM_WORLD_RANK=0", "OMPI_COMM_WORLD_SIZE is not set"),
        ("PMI_SIZE=2", "PMI_RANK is not set"),
        ("PMI_RANK=0 PMI_SIZE=2", "PMI_FD is not"),
        (
            "SLURM_STEP_NUM_TASKS=2 SLURM_JOB_ID=1 SLURM_STEP_ID=0",
            "SLURM_LAUNCH_NODE_IPADDR is not",
        ),
        ("SLURM_STEP_NUM_TASKS=2", "SLURM_JOBID is not set"),
        ("PET_NNODES=2 PET_NODE_RANK=0", "PET_MASTER_ADDR is not set"),
        ("PET_NODE_RANK=0 PET_MASTER_ADDR=a", "PET_NNODES is not set"),
        ("JOB_COMPLETION_INDEX=0", "set RINGTREE_RANKS"),
        ("HOROVOD_RANK=0", "HOROVOD_SIZE is not set"),
        ("HOROVOD_RANK=0 HOROVOD_SIZE=2", "set RINGTREE_RENDEZVOUS"),
    ] {
        let error = refused(&[words]);
        assert!(error.contains(missing), "{words}: {error}");
    }
}

#[test]
fn what_contradicts_itself_is_a_mistake() {
    for (words, change, says) in [
        (TORCHRUN, "RANK=4", "RANK=4 must be below WORLD_SIZE=4"),
        (TORCHRUN, "LOCAL_RANK=2", "LOCAL_RANK=2 must be below LOCAL_WORLD_SIZE=2"),
        (TORCHRUN, "MASTER_ADDR=fe80::1", "MASTER_ADDR: \"[fe80::1]\" is a link-local address"),
        (TORCHRUN, "MASTER_PORT=0", "MASTER_PORT=0 is not a port"),
        (TORCHRUN, "MASTER_PORT=65535", "leaves no port"),
        (OPEN_MPI, "OMPI_COMM_WORLD_RANK=2", "must be below OMPI_COMM_WORLD_SIZE=2"),
        (OPEN_MPI, "OMPI_COMM_WORLD_SIZE=x", "OMPI_COMM_WORLD_SIZE=x is not a number"),
        (OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE=3 MASTER_ADDR=a", "this host has 3 ranks, but"),
        (SLURM, "SLURM_PROCID=5", "SLURM_PROCID=5 must be below SLURM_STEP_NUM_TASKS=5"),
        (SLURM, "SLURM_LOCALID=1", "must be below SLURM_STEP_TASKS_PER_NODE=1"),
        (SLURM, "SLURM_NODEID=4", "has 4 nodes, but SLURM_NODEID=4"),
        (SLURM, "SLURM_STEP_TASKS_PER_NODE=2(x4)", "adds up to 8, but SLURM_STEP_NUM_TASKS=5"),
        (SLURM, "SLURM_STEP_TASKS_PER_NODE=2(3)", "no count such as 2 or 2(x3)"),
        (SLURM, "SLURM_STEP_NODELIST=n[1-d]", "SLURM_STEP_NODELIST=n[1-d] has"),
        (KUBEFLOW, "PET_NPROC_PER_NODE=8", "ringtree run --nodes"),
        (KUBEFLOW, "PET_NNODES=1:4", "PET_NNODES=1:4 leaves open"),
        (KUBEFLOW, "PET_NODE_RANK=4", "PET_NODE_RANK=4 must be below PET_NNODES=4"),
        (INDEXED_JOB, "HOSTNAME=sum-2.ranks", "set RINGTREE_RENDEZVOUS"),
        (INDEXED_JOB, "HOSTNAME=no-host-of-this-name-3", "`subdomain`"),
        (INDEXED_JOB, "RINGTREE_RANKS=3", "JOB_COMPLETION_INDEX=3 must be below RINGTREE_RANKS=3"),
        (HOROVOD, "HOROVOD_LOCAL_RANK=2", "must be below HOROVOD_LOCAL_SIZE=2"),
    ] {
        let error = refused(&[words, change]);
        assert!(error.contains(says), "{change}: {error}");
    }
}

#[test]
fn open_mpi_on_several_hosts_needs_an_address() {
    let two_hosts = "OMPI_COMM_WORLD_SIZE=4";
    let error = refused(&[OPEN_MPI, two_hosts]);
    assert!(error.contains("mpirun -x RINGTREE_RENDEZVOUS=HOST:29500"), "{error}");
    let master = settings(&[OPEN_MPI, two_hosts, "MASTER_ADDR=fd00::7"]);
    assert_eq!(master.rendezvous, "[fd00::7]:29500");
}

/// A descriptor as the launcher leaves it open, and what serves it.
fn descriptor() -> (UnixStream, String) {
    let (rank, _) = UnixStream::pair().unwrap();
    let word = format!("PMI_FD={}", rank.as_raw_fd());
    (rank, word)
}

#[test]
fn pmi_tells_an_address_later() {
    let (socket, descriptor) = descriptor();
    let number = socket.as_raw_fd();
    let one_host = settings(&[MPICH, &descriptor]);
    assert_eq!(place_of(&one_host).3, Some(1));
    assert_eq!(one_host.rendezvous, format!("pmi:{number}"));
    assert_eq!(one_host.job.name, format!("pmi-{}", std::process::id()));
    let hosts = settings(&[MPICH, "PMI_SIZE=4", &descriptor]);
    assert_eq!(hosts.rendezvous, format!("pmi:{number}"));
    assert_eq!(hosts.job.name, "default");
}

#[test]
fn what_slurm_says_counts_where_pmi_is_its_own() {
    let (socket, descriptor) = descriptor();
    let number = socket.as_raw_fd();
    let step = settings(&[SLURM, SLURM_PMI2, &descriptor]);
    assert_eq!(place_of(&step), (Source::Pmi, 4, 5, Some(0), format!("pmi:{number}").as_str()));
    let one_node = settings(&[SLURM, SLURM_PMI2, "SLURM_STEP_NUM_NODES=1", &descriptor]);
    assert_eq!(one_node.job.name, format!("pmi-{}", std::process::id()));
    // Another launcher, which Slurm started once on each node.
    let inner = settings(&[SLURM, "SLURM_STEP_NUM_NODES=1", MPICH, "PMI_SIZE=4", &descriptor]);
    assert_eq!(place_of(&inner), (Source::Pmi, 1, 4, Some(1), format!("pmi:{number}").as_str()));
}

#[test]
fn a_batch_script_and_a_step_of_one_task_are_single_processes() {
    let script = "SLURM_PROCID=0 SLURM_NTASKS=4 SLURM_JOB_ID=7 SLURM_JOB_NODELIST=n[1-4]";
    assert_eq!(settings(&[script]).source, Source::Alone);
    assert_eq!(settings(&[SLURM, "SLURM_STEP_NUM_TASKS=1"]).source, Source::Alone);
}

#[test]
fn ranks_of_one_slurm_node_need_no_name_and_no_port() {
    let one_node = "SLURM_PROCID=4 SLURM_NODEID=0 SLURM_LOCALID=4 SLURM_STEP_TASKS_PER_NODE=5";
    let rendezvous = settings(&[SLURM, one_node]).rendezvous;
    assert!(rendezvous.starts_with("file:/") && rendezvous.contains("slurm_7_2"), "{rendezvous}");
    let next = settings(&[SLURM, one_node, "SLURM_STEP_ID=3"]).rendezvous;
    assert_ne!(rendezvous, next, "each step has a file of its own");
}

#[test]
fn slurm_without_a_list_of_nodes_names_where_the_step_was_started() {
    let no_lists = "SLURM_STEP_NODELIST= SLURM_JOB_NODELIST=";
    assert_eq!(settings(&[SLURM, no_lists]).rendezvous, "10.0.0.9:29929");
    assert_eq!(settings(&[SLURM, "SLURM_STEP_NODELIST="]).rendezvous, "n1:29929");
}

#[test]
fn tf_config_counts_the_chief_first_and_leaves_out_servers() {
    let config = |task: &str| {
        let cluster = r#"{"chief":["c:1"],"worker":["w0:1","w1:1"],"ps":["p:1"]}"#;
        format!(r#"TF_CONFIG={{"cluster":{cluster},"task":{task}}}"#)
    };
    let place = |task| settings(&[&config(task)]);
    let worker = place(r#"{"type":"worker","index":1}"#);
    assert_eq!(place_of(&worker), (Source::TfConfig, 2, 3, None, "c:1"));
    assert_eq!(place(r#"{"type":"chief","index":"0"}"#).rank, 0);
    for (words, says) in [
        (config(r#"{"type":"ps","index":0}"#), "type ps, which has no rank"),
        (config(r#"{"type":"worker","index":2}"#), "index is none of theirs"),
        (config(r#"{"type":"worker","index":-1}"#), "not what TensorFlow expects"),
        (config("null"), "has no task"),
        ("TF_CONFIG={".to_string(), "TF_CONFIG is not what TensorFlow expects"),
    ] {
        let error = refused(&[&words]);
        assert!(error.contains(says), "{words}: {error}");
    }
    assert_eq!(settings(&[r#"TF_CONFIG={"cluster":{}}"#]).source, Source::Alone);
}

#[test]
fn several_hosts_need_a_secret_and_one_host_does_not() {
    for words in [OPEN_MPI, HOROVOD] {
        let settings = settings(&[words, "RINGTREE_SECRET="]);
        crate::settings::forget_host_secret(&settings.job.secret);
    }
    let error = refused(&[SLURM, "RINGTREE_SECRET="]);
    assert!(error.contains("set RINGTREE_SECRET, or RINGTREE_SECRET_FILE"), "{error}");
    let twice = [0, 1].map(|_| settings(&["RINGTREE_SECRET="]).job.secret);
    assert_eq!(twice[0], twice[1], "communicators of one process share what it serves");
}
