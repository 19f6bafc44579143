//! Which hosts take how many ranks: `--hosts a:2,b:2`, and hostfiles.
//!
//! ```text
//! # a host in each line, with its slots (1 where nothing is said)
//! a slots=4
//! b:4
//! alice@[fd00::3]:2
//! ```

use std::fs;
use std::ops::Range;
use std::str::FromStr;

use super::LaunchError;

/// Ranks of a job at most.
const MOST_RANKS: u32 = 65_536;

/// Hosts in order, each with its slots: how many ranks it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostList(Vec<(String, u32)>);

/// The ranks of one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostShare {
    /// The host, as ssh takes it.
    pub name: String,
    /// Its ranks: at least one.
    pub ranks: Range<u32>,
}

impl HostList {
    /// Reads a hostfile.
    ///
    /// # Errors
    /// What is wrong, with the line.
    pub fn read(path: &str) -> Result<HostList, String> {
        HostList::of_file(&fs::read_to_string(path).map_err(|error| error.to_string())?)
    }

    /// What a hostfile says.
    ///
    /// # Errors
    /// What is wrong, with the line.
    pub fn of_file(text: &str) -> Result<HostList, String> {
        let mut list = HostList(Vec::new());
        for (line, number) in text.lines().zip(1..) {
            let words = line.split('#').next().unwrap_or_default();
            let mut words = words.split_whitespace();
            let Some(first) = words.next() else { continue };
            let (host, mut slots) =
                entry(first).map_err(|reason| format!("line {number}: {reason}"))?;
            for word in words {
                let given = word.strip_prefix("slots=").and_then(count);
                if given.is_none() || slots.is_some() {
                    return Err(format!(
                        "line {number}: what is \"{word}\"? Write \"{first} slots=4\""
                    ));
                }
                slots = given;
            }
            list.add(host, slots.unwrap_or(1));
        }
        list.checked()
    }

    /// Divides ranks among the hosts, in order, until all have a place; without a number, every
    /// slot gets one.
    ///
    /// # Errors
    /// [`LaunchError::Slots`], where there are fewer slots.
    pub fn share(&self, ranks: Option<u32>) -> Result<Vec<HostShare>, LaunchError> {
        let slots = self.slots();
        let ranks = ranks.unwrap_or(slots);
        if ranks > slots {
            return Err(LaunchError::Slots { ranks, slots });
        }
        let mut next = 0;
        let shares = self.0.iter().map(|(host, slots)| {
            let first = next;
            next = (first + slots).min(ranks);
            HostShare { name: host.clone(), ranks: first..next }
        });
        Ok(shares.filter(|share| !share.ranks.is_empty()).collect())
    }

    fn slots(&self) -> u32 {
        self.0.iter().fold(0, |sum, (_, slots)| sum.saturating_add(*slots))
    }

    /// A host that is named again has more slots.
    fn add(&mut self, host: String, slots: u32) {
        match self.0.iter_mut().find(|(known, _)| *known == host) {
            Some((_, known)) => *known = known.saturating_add(slots),
            None => self.0.push((host, slots)),
        }
    }

    fn checked(self) -> Result<HostList, String> {
        match self.slots() {
            0 => Err("there is no host in it".into()),
            slots if slots > MOST_RANKS => {
                Err(format!("{slots} slots: a job has at most {MOST_RANKS} ranks"))
            }
            _ => Ok(self),
        }
    }
}

impl FromStr for HostList {
    type Err = String;

    /// `a:2,b:2`.
    fn from_str(text: &str) -> Result<HostList, String> {
        let mut list = HostList(Vec::new());
        for word in text.split(',') {
            let (host, slots) = entry(word.trim())?;
            list.add(host, slots.unwrap_or(1));
        }
        list.checked()
    }
}

/// A host, perhaps with a user in front and slots behind it.
fn entry(word: &str) -> Result<(String, Option<u32>), String> {
    let wrong = || format!("\"{word}\" is not a host with slots, such as node7:4 or [fd00::3]:4");
    let (user, rest) = word.rsplit_once('@').map_or(("", word), |(user, rest)| (user, rest));
    let (host, slots) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']').ok_or_else(wrong)?,
        None => rest.split_at(rest.find(':').unwrap_or(rest.len())),
    };
    let slots = match slots.strip_prefix(':') {
        Some(digits) => Some(count(digits).ok_or_else(wrong)?),
        None if slots.is_empty() => None,
        None => return Err(wrong()),
    };
    // What begins with a dash would be an option of ssh.
    if host.is_empty() || word.starts_with('-') || (user.is_empty() && word.contains('@')) {
        return Err(wrong());
    }
    let at = if user.is_empty() { "" } else { "@" };
    Ok((format!("{user}{at}{host}"), slots))
}

/// A number of slots.
fn count(digits: &str) -> Option<u32> {
    digits.parse().ok().filter(|slots| *slots > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> Vec<(String, u32)> {
        text.parse::<HostList>().unwrap().0
    }

    fn of_file(text: &str) -> Result<Vec<(String, u32)>, String> {
        let path = env_path();
        fs::write(&path, text).unwrap();
        let read = HostList::read(path.to_str().unwrap());
        fs::remove_file(path).unwrap();
        read.map(|list| list.0)
    }

    /// A file for each test thread.
    fn env_path() -> std::path::PathBuf {
        let thread = format!("{:?}", std::thread::current().id());
        std::env::temp_dir().join(format!("ringtree-hosts-{}-{thread}", std::process::id()))
    }

    fn pairs(pairs: &[(&str, u32)]) -> Vec<(String, u32)> {
        pairs.iter().map(|(host, slots)| (host.to_string(), *slots)).collect()
    }

    #[test]
    fn a_list_of_hosts_with_slots() {
        assert_eq!(list("a:2,b:2"), pairs(&[("a", 2), ("b", 2)]));
        assert_eq!(list("a, b, a:3"), pairs(&[("a", 4), ("b", 1)]));
        let ipv6 = pairs(&[("fd00::3", 4), ("me@fd00::4", 1), ("me@c", 2)]);
        assert_eq!(list("[fd00::3]:4,me@[fd00::4],me@c:2"), ipv6);
        for text in
            ["", "a,,b", "a:", "a:0", "a:x", "fd00::3", "[fd00::3", "[fd00::3]4", "-oX:1", "@a"]
        {
            let error = text.parse::<HostList>().unwrap_err();
            assert!(error.contains("node7:4"), "{text}: {error}");
        }
        assert!("a:65537".parse::<HostList>().unwrap_err().contains("at most 65536"));
    }

    #[test]
    fn a_file_of_hosts_with_slots() {
        let text = "# the rack\n\n a slots=4   # first\nb:3\nc\n\t[fd00::3] slots=2\na\n";
        let expected = pairs(&[("a", 5), ("b", 3), ("c", 1), ("fd00::3", 2)]);
        assert_eq!(of_file(text).unwrap(), expected);
        for (text, said) in [
            ("a\nb slots=0\n", "line 2: what is \"slots=0\"?"),
            ("a cpus=3\n", "line 1: what is \"cpus=3\"?"),
            ("a:2 slots=3\n", "line 1: what is \"slots=3\"?"),
            ("a::2\n", "line 1: \"a::2\" is not a host"),
            ("# nobody\n", "no host"),
        ] {
            let error = of_file(text).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
        assert!(HostList::read("/no/such/file").is_err());
    }

    #[test]
    fn ranks_fill_the_hosts_in_order() {
        let list: HostList = "a:2,b:3,c:1".parse().unwrap();
        let shares = |ranks| -> Vec<(String, Range<u32>)> {
            let shares = list.share(ranks).unwrap();
            shares.into_iter().map(|share| (share.name, share.ranks)).collect()
        };
        let named = |name: &str, ranks: Range<u32>| (name.to_string(), ranks);
        assert_eq!(shares(None), [named("a", 0..2), named("b", 2..5), named("c", 5..6)]);
        assert_eq!(shares(Some(3)), [named("a", 0..2), named("b", 2..3)]);
        assert_eq!(shares(Some(1)), [named("a", 0..1)]);
        let error = list.share(Some(7)).unwrap_err().to_string();
        assert!(error.contains("--ranks 7") && error.contains("6 slots"), "{error}");
    }
}
