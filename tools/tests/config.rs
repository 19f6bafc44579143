//! `ringtree config`, completions and manual pages, by real processes.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use ringtree::Setting;
use serde_json::Value;

#[test]
fn each_value_says_where_it_comes_from() {
    let torchrun = [
        ("RANK", "1"),
        ("WORLD_SIZE", "2"),
        ("MASTER_ADDR", "node7"),
        ("RINGTREE_SECRET", "hush"),
        ("RINGTREE_SOCKETS", "3"),
    ];
    let output = ringtree("config --json", &torchrun);
    assert_eq!(output.status.code(), Some(0), "{output:#?}");
    let config: Value = serde_json::from_str(&text(&output.stdout)).unwrap();
    assert_eq!(config["launcher"], "torchrun");
    for (name, value, from) in [
        ("RINGTREE_RANK", "1".into(), "RANK".into()),
        ("RINGTREE_RANKS", "2".into(), "WORLD_SIZE".into()),
        ("RINGTREE_RENDEZVOUS", "node7:29500".into(), "MASTER_ADDR".into()),
        ("RINGTREE_SOCKETS", "3".into(), "RINGTREE_SOCKETS".into()),
        ("RINGTREE_TIMEOUT", "60".into(), "default".into()),
        ("RINGTREE_INTERFACE", Value::Null, Value::Null),
        ("RINGTREE_SECRET", Value::Null, "RINGTREE_SECRET".into()),
    ] {
        let setting = setting(&config, name);
        assert_eq!((&setting["value"], &setting["from"]), (&value, &from), "{name}");
    }
}

#[test]
fn secrets_are_never_shown() {
    for arguments in ["config", "config --json"] {
        let output = ringtree(arguments, &[("RINGTREE_SECRET", "hush")]);
        let all = format!("{}{}", text(&output.stdout), text(&output.stderr));
        assert!(!all.contains("hush"), "{all}");
    }
    let shown = text(&ringtree("config", &[("RINGTREE_SECRET", "hush")]).stdout);
    let line = shown.lines().find(|line| line.starts_with("RINGTREE_SECRET ")).unwrap();
    assert!(line.contains("(set)") && line.contains("environment"), "{line}");
}

#[test]
fn without_a_launcher_all_settings_have_their_defaults() {
    let output = ringtree("config", &[]);
    assert_eq!(output.status.code(), Some(0));
    let shown = text(&output.stdout);
    assert!(shown.starts_with("# no launcher has started this process\n"), "{shown}");
    let names: Vec<&str> =
        shown.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    assert!(names.iter().eq(Setting::ALL.iter().map(|setting| &setting.name)), "{shown}");
    let line = shown.lines().find(|line| line.starts_with("RINGTREE_TRANSPORT")).unwrap();
    assert_eq!(line.split_whitespace().take(3).last(), Some("default"), "{line}");
}

#[test]
fn what_cannot_be_meant_is_pointed_out() {
    let output = ringtree("config", &[("RINGTREE_TIMOUT", "5"), ("RINGTREE_COLOUR", "red")]);
    let shown = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{shown}");
    assert!(shown.contains("# RINGTREE_COLOUR is no setting\n"), "{shown}");
    let meant = "# RINGTREE_TIMOUT is no setting: did you mean RINGTREE_TIMEOUT?\n";
    assert!(shown.contains(meant), "{shown}");
    for wrong in [&[("RINGTREE_TIMEOUT", "soon")][..], &[("RINGTREE_RANK", "0")]] {
        let output = ringtree("config", wrong);
        let shown = text(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{shown}");
        assert!(shown.contains("# a rank cannot be started so: RINGTREE_"), "{shown}");
    }
}

/// The list that `ringtree config` prints is that of the README, and of what the library reads.
#[test]
fn the_list_of_settings_is_complete() {
    let listed: BTreeSet<String> =
        Setting::ALL.iter().map(|setting| setting.name.to_owned()).collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    let rows = readme.lines().filter(|line| line.starts_with("| `RINGTREE_"));
    let named: BTreeSet<String> =
        rows.flat_map(|row| names(row.split('|').nth(1).unwrap_or_default())).collect();
    assert_eq!(named, listed, "the README's table");
    let mut read = BTreeSet::new();
    let mut folders = vec![root.join("collectives/src/settings")];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            match path.is_dir() {
                true => folders.push(path),
                false => read.extend(names(&fs::read_to_string(path).unwrap())),
            }
        }
    }
    // The others are the program's.
    let for_program = ["RINGTREE_LOCAL_RANK", "RINGTREE_LOG"].map(str::to_owned);
    assert!(read.is_superset(&(&listed - &for_program.into())), "{read:?}");
    assert!(read.is_subset(&listed), "{:?} are read and not listed", &read - &listed);
}

#[test]
fn bash_completes_commands_and_options() {
    for (typed, completed) in [
        ("ringtree ben", "bench"),
        ("ringtree doctor --js", "--json"),
        ("ringtree bench all-red", "all-reduce"),
    ] {
        let script = "eval \"$(ringtree completions bash)\"
            COMP_WORDS=($TYPED) COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
            function=$(complete -p ringtree | sed 's/.*-F \\([^ ]*\\).*/\\1/')
            $function ringtree \"${COMP_WORDS[-1]}\" \"${COMP_WORDS[-2]}\" 2>/dev/null
            echo \"${COMPREPLY[@]}\"";
        let mut bash = Command::new("bash");
        bash.args(["--norc", "-c", script]).env("TYPED", typed).env("PATH", path());
        let output = bash.output().unwrap();
        assert_eq!(text(&output.stdout).trim(), completed, "{typed}: {output:#?}");
    }
}

#[test]
fn every_shell_has_its_own_completions() {
    for (shell, says) in [
        ("bash", "complete -F _ringtree"),
        ("zsh", "#compdef ringtree"),
        ("fish", "complete -c ringtree"),
        ("elvish", "edit:completion:arg-completer[ringtree]"),
        ("powershell", "Register-ArgumentCompleter"),
    ] {
        let output = ringtree(&format!("completions {shell}"), &[]);
        assert_eq!(output.status.code(), Some(0), "{shell}");
        assert!(text(&output.stdout).contains(says), "{shell}");
    }
    assert_eq!(ringtree("completions tcsh", &[]).status.code(), Some(2));
}

#[test]
fn each_command_has_a_manual_page_that_renders() {
    let folder = Folder::new();
    let output = ringtree(&format!("man --dir {}", folder.0.display()), &[]);
    assert_eq!(output.status.code(), Some(0), "{output:#?}");
    for command in ["", "-bench", "-completions", "-config", "-doctor", "-man", "-plan", "-run"] {
        let page = fs::read_to_string(folder.0.join(format!("ringtree{command}.1"))).unwrap();
        for section in ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS"] {
            assert!(page.contains(&format!(".SH {section}")), "{section} of ringtree{command}");
        }
        assert!(renders(&page).is_none_or(|shown| shown.contains("SYNOPSIS")), "{page}");
    }
    let main = text(&ringtree("man", &[]).stdout);
    assert_eq!(main, fs::read_to_string(folder.0.join("ringtree.1")).unwrap());
}

/// A page as a terminal shows it; `None` where there is no groff. It must not complain.
fn renders(page: &str) -> Option<String> {
    let mut groff = Command::new("groff");
    groff.args(["-man", "-Tascii", "-ww", "-P-cbou"]).stdin(Stdio::piped());
    let mut groff = groff.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().ok()?;
    let mut input = groff.stdin.take().unwrap();
    let page = page.to_owned();
    let writer = std::thread::spawn(move || input.write_all(page.as_bytes()));
    let output = groff.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert_eq!(text(&output.stderr), "");
    Some(text(&output.stdout))
}

/// The variables of Ringtree that a text names.
fn names(text: &str) -> impl Iterator<Item = String> {
    let is_part = |c: char| c.is_ascii_uppercase() || c == '_';
    let words = text.split(move |c| !is_part(c));
    words.filter(|word| word.len() > 9 && word.starts_with("RINGTREE_")).map(str::to_owned)
}

fn setting<'a>(config: &'a Value, name: &str) -> &'a Value {
    let mut settings = config["settings"].as_array().unwrap().iter();
    settings.find(|setting| setting["name"] == name).unwrap()
}

/// Runs the program with nothing else in its environment.
fn ringtree(arguments: &str, environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringtree"));
    command.args(arguments.split_whitespace()).stdin(Stdio::null()).env_clear();
    command.envs(environment.iter().copied()).output().unwrap()
}

/// Where this program is found by its name.
fn path() -> String {
    let folder = Path::new(env!("CARGO_BIN_EXE_ringtree")).parent().unwrap();
    format!("{}:/usr/bin:/bin", folder.display())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A folder of this test's own.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        let name = format!("ringtree-config-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
