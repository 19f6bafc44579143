//! Drivers that do not answer, or end the process that tries them.

use super::super::system::made_up::Machine;
use super::*;

/// What is said of a process that is a shell's script.
fn of_script(script: &str, lack: Level, limit: Duration) -> Vec<Finding> {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    let wish = Wish { library: None, lack, is_first: true };
    let probe = Probe { wish, started: start(command), deadline: Instant::now() + limit };
    probe.check(&Machine::new(&[]).system)
}

#[test]
fn a_driver_that_does_not_answer_is_not_waited_for() {
    let line = r#"echo '{"Tries":"copying from GPU 0 to GPU 1"}'; exec sleep 1000"#;
    let findings = of_script(line, Level::Ok, Duration::from_secs(2));
    let [finding] = &findings[..] else { panic!("{findings:?}") };
    assert_eq!((finding.level, finding.check.as_ref()), (Level::Warning, "gpu-driver"));
    assert!(finding.seen.contains("fails at copying from GPU 0 to GPU 1: nothing"), "{finding:?}");
    assert!(finding.remedy.as_ref().is_some_and(|remedy| remedy.contains("dmesg")));
}

#[test]
fn what_was_found_before_a_driver_ends_the_process_is_said() {
    let found = json_of(&Line::Found(DRIVER.ok("of CUDA 12.8"))).replace('\'', r"'\''");
    let script = format!("echo 'noise'; echo '{found}'; kill -SEGV $$");
    let findings = of_script(&script, Level::Failure, Duration::from_secs(60));
    let [driver, failure] = &findings[..] else { panic!("{findings:?}") };
    assert_eq!((driver.level, driver.seen.as_str()), (Level::Ok, "of CUDA 12.8"));
    assert_eq!(failure.level, Level::Failure);
    assert!(failure.seen.contains("signal: 11"), "{failure:?}");
}

#[test]
fn no_driver_is_a_fault_where_there_should_be_one() {
    let none = || "no CUDA driver: libcuda.so.1".to_owned();
    let wish = |library: Option<&str>, lack| Wish {
        library: library.map(PathBuf::from),
        lack,
        is_first: true,
    };
    let bare = Machine::new(&[]);
    let finding = no_driver(&bare.system, &wish(None, Level::Ok), none());
    assert_eq!((finding.level, finding.seen.as_str()), (Level::Ok, "none on this host"));
    let finding = no_driver(&bare.system, &wish(None, Level::Failure), none());
    assert_eq!((finding.level, finding.seen), (Level::Failure, none()));
    assert!(finding.remedy.unwrap().contains("install nvidia-driver"));
    let finding = no_driver(&bare.system, &wish(Some("/x"), Level::Warning), none());
    assert!(finding.remedy.unwrap().starts_with("unset RINGTREE_CUDA_LIBRARY"));
    let machine = Machine::new(&[(MODULE, "NVRM version: 570")]);
    let finding = no_driver(&machine.system, &wish(None, Level::Ok), none());
    assert_eq!(finding.level, Level::Warning);
    assert!(finding.remedy.unwrap().contains("nvidia-smi"));
}

fn json_of(line: &Line) -> String {
    crate::words::json(line).trim().to_owned()
}
