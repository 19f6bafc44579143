//! Jobs on several hosts: which ranks run where, and what to type on the other hosts.

use std::ffi::{OsStr, OsString};
use std::ops::Range;

use super::LaunchOptions;

/// The ranks of host `node` of `nodes`: blocks of neighbouring ranks, the first ones one larger
/// where `ranks` does not divide.
pub fn ranks_of_node(ranks: u32, nodes: u32, node: u32) -> Range<u32> {
    let (share, larger) = (ranks / nodes, ranks % nodes);
    let first = node * share + node.min(larger);
    first..first + share + u32::from(node < larger)
}

/// The line that starts this job's part on host `node`, for a shell. `secret` goes in front of
/// it: an assignment that gives it the secret.
pub fn command_for_node(
    options: &LaunchOptions,
    job: &str,
    rendezvous: &str,
    secret: &str,
    node: u32,
) -> String {
    let mut words: Vec<OsString> = ["ringtree", "run", "--ranks"].map(Into::into).to_vec();
    words.push(options.ranks.to_string().into());
    words.extend(["--nodes".into(), options.nodes().to_string().into()]);
    words.extend(["--node-rank".into(), node.to_string().into()]);
    words.extend(["--rendezvous".into(), rendezvous.into()]);
    words.extend(["--job".into(), job.into()]);
    if options.restarts > 0 {
        words.extend(["--restart".into(), options.restarts.to_string().into()]);
    }
    if let Some(min_ranks) = options.min_ranks {
        words.extend(["--min-ranks".into(), min_ranks.to_string().into()]);
    }
    words.push("--".into());
    words.push(options.program.clone());
    words.extend(options.arguments.iter().cloned());
    let words: Vec<String> = words.iter().map(|word| quoted(word)).collect();
    format!("{secret}{}", words.join(" "))
}

/// A word as a shell takes it literally.
pub fn quoted(word: &OsStr) -> String {
    let text = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.into_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Binding, Layout};

    #[test]
    fn every_rank_runs_on_one_host() {
        for ranks in 1..20 {
            for nodes in 1..=ranks {
                let mut next = 0;
                for node in 0..nodes {
                    let share = ranks_of_node(ranks, nodes, node);
                    assert_eq!(share.start, next);
                    assert!(!share.is_empty());
                    next = share.end;
                }
                assert_eq!(next, ranks);
            }
        }
    }

    #[test]
    fn other_hosts_do_the_same_about_ranks_that_die() {
        let mut options = LaunchOptions {
            ranks: 4,
            layout: Layout::Nodes { nodes: 2, node_rank: 0 },
            rendezvous: None,
            job: None,
            binding: Binding::None,
            program: "./train".into(),
            arguments: vec!["a b".into()],
            raw_output_of_rank_0: false,
            grace: Duration::ZERO,
            restarts: 0,
            min_ranks: None,
        };
        let command = |options: &LaunchOptions| command_for_node(options, "j", "h:1", "S=1 ", 1);
        let start = "S=1 ringtree run --ranks 4 --nodes 2 --node-rank 1 --rendezvous h:1 --job j";
        assert_eq!(command(&options), format!("{start} -- ./train 'a b'"));
        options.restarts = 3;
        options.min_ranks = Some(1);
        let wanted = format!("{start} --restart 3 --min-ranks 1 -- ./train 'a b'");
        assert_eq!(command(&options), wanted);
    }

    #[test]
    fn words_survive_a_shell() {
        assert_eq!(quoted("a-b/c.d".as_ref()), "a-b/c.d");
        assert_eq!(quoted("".as_ref()), "''");
        assert_eq!(quoted("it's $x".as_ref()), r"'it'\''s $x'");
    }
}
